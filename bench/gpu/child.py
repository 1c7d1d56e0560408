"""Load and measure one model in a process of its own; answer each request with a JSON line.

python -m bench.gpu.child     # requests on stdin, answers on stdout; everything else goes to stderr
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil

from edgemoe import Llama, OffloadConfig
from edgemoe.engine import host
from edgemoe.models.gguf import check, model_identity
from edgemoe.profiling import Test
from edgemoe.profiling.measure import Samples
from edgemoe.profiling.observe import likeliest
from edgemoe.profiling.placements import Placement, placements
from edgemoe.routing import history

from . import agreement, cells, devices, events, routing, soak

Request = dict[str, Any]
WARM_PROMPT = 64
THOUGHT_OF_PROFILE = 20_000.0  # number of tokens behind the heat of a saved profile


class Runner:
    """Hold the model that this process has open."""

    def __init__(self) -> None:
        """Begin without a model."""
        self._llm: Any = None
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="edgemoe-bench-"))
        self._filled = 0
        self._routing: routing.Routing | None = None
        self._soak: soak.Soak | None = None

    # ---- the requests ----

    def device(self, request: Request) -> Request:
        """Open the device in this process; describe it."""
        if request.get("rpc"):
            self._server = devices.serve(Path(request["backend"]))
        elif request.get("backend"):
            devices.load(Path(request["backend"]))
        name = request["device"]
        free, total = host.device_memory(name)
        there = name in cells.WITHOUT_GPU or bool(total) or name in host.devices()
        found = {"devices": host.devices(), "there": there, "free": free, "total": total, "build": host.version()}
        return found | {"description": devices.description(name)}

    def zoo(self, request: Request) -> Request:
        """Compare small models of an architecture on the device, see `agreement.zoo`."""
        return asdict(agreement.zoo(request["arch"], request["device"], self._folder))

    def open(self, request: Request) -> Request:
        """Load a contender, and warm it up unless the test needs a fresh model."""
        contender = cells.Contender(**request["contender"])
        path, device = Path(request["path"]), request["device"]
        self._routing = routing.load(Path(request["routing"]))
        keywords = _sizes(request)
        before, started = host.device_memory(device)[0], time.perf_counter()
        layers = 0
        if contender.ours:
            self._llm = self._open_ours(path, device, contender, keywords)
        else:
            placement = _placement(path, device, contender, request["equal_bytes"])
            layers = _experts_on_device(path, placement)
            self._llm = placement.open(
                path, keywords | {"verbose": False, "use_mmap": not placement.on_cpu}
            )  # llama.cpp's advice
        load_s = time.perf_counter() - started
        if not contender.fresh:
            self._warm(request["warm_tokens"])
        found: Request = {"load_s": load_s, "whole_layers": layers, "rss": psutil.Process().memory_info().rss}
        found["device_free"] = host.device_memory(device)[0]
        if device not in cells.WITHOUT_GPU:
            found["device_bytes"] = before - found["device_free"]
        if contender.ours:
            stats = self._llm.experts.stats()
            found |= {"slot_bytes": stats.slot_bytes, "slots": stats.slots, "stage_bytes": stats.stage_bytes}
            found |= {"notes": list(dict.fromkeys(self._llm.experts.notes)), "plain_layers": stats.plain_layers}
        return found

    def answer(self, request: Request) -> Request:
        """Generate greedily after a prompt, routed by the model itself. The logits go to a file."""
        self._filled = 0
        tokens, logits = agreement.answer(self._llm)
        np.save(request["logits"], logits)
        return {"tokens": tokens}

    def measure(self, request: Request) -> Request:
        """Run one repetition of a test, and give it in the form of `Samples`."""
        test = Test(**request["test"])
        sample = Samples(request["contender"], test)
        started = time.perf_counter()
        if test.depth:
            self._go_to(test.depth)
        else:
            self._llm.reset()
        if test.prompt:
            self._prefill(test.prompt, request["repetition"], sample)
        else:
            self._decode(test, request["at"], sample)
        found: Request = {name: value for name, value in vars(sample).items() if name not in ("placement", "test")}
        found["elapsed_s"] = time.perf_counter() - started
        found["rss"] = psutil.Process().memory_info().rss
        return found

    def events(self, request: Request) -> Request:
        """Repeat a decoding test with the device's own events, see `events`; empty without a source of events."""
        test, sample = Test(**request["test"]), Samples("", Test(**request["test"]))
        if test.depth:
            self._go_to(test.depth)
        else:
            self._llm.reset()
        found = events.record(lambda: self._decode(test, request["at"], sample))
        return found and found | {"tokens": test.generate, "clock_ns": sample.ns[0]}

    def rates(self, request: Request) -> Request:
        """Measure this machine's rates for the model's types, through ggml itself."""
        from edgemoe.engine.bandwidth import weights_of
        from edgemoe.machine import hardware

        device = "" if request["device"] == "none" else request["device"]
        experts, others = weights_of(check(Path(request["path"])))
        return hardware.measure(device, request["n_threads"], experts, others, memory=False)

    def cycle(self, request: Request) -> Request:
        """Load, answer and free once, see `soak`."""
        if self._soak is None:
            self._soak = soak.Soak(Path(request["path"]), request["device"], _sizes(request), request["share"])
        return self._soak.cycle()

    def turn(self, request: Request) -> Request:
        """Run a round of mixed load, see `soak`."""
        if self._soak is None:
            self._soak = soak.Soak(Path(request["path"]), request["device"], _sizes(request), request["share"])
        return self._soak.turn(routing.load(Path(request["routing"])))

    def close(self, request: Request) -> Request:
        """Close the model."""
        if self._soak is not None:
            self._soak.close()
        if self._llm is not None:
            self._llm.close()
        self._llm = None
        shutil.rmtree(self._folder, ignore_errors=True)
        return {}

    def end(self) -> None:
        """End the process."""
        self.close({})
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    # ---- how ----

    def _open_ours(self, path: Path, device: str, contender: cells.Contender, keywords: Request) -> Llama:
        profile = "off"
        if not contender.fresh:  # a user has such a profile from the second start on
            assert self._routing is not None
            saved = history.Profile(model_identity(check(path)), self._routing.heat, THOUGHT_OF_PROFILE)
            history.save(saved, self._folder)
            profile = str(self._folder)
        # The routers of a twin do not know the forced routing, so they cannot look ahead.
        prefetch = "history" if contender.prefetch == "auto" else contender.prefetch
        config = OffloadConfig(
            device, f"{contender.share:g}%", policy=contender.policy, prefetch=prefetch, profile=profile
        )
        if device not in cells.WITHOUT_GPU:  # EdgeMoE itself leaves some cores to copies; llama.cpp uses all cores
            keywords = {name: value for name, value in keywords.items() if not name.startswith("n_threads")}
        return Llama(path, offload=config, **keywords)

    def _warm(self, tokens: int) -> None:
        """Run the test once unmeasured: lazy allocations and first uploads end, and experts move."""
        self._llm.eval(self._text(0)[:WARM_PROMPT])
        self._llm.reset()
        if hasattr(self._llm, "experts"):
            self._llm.experts.wait()
        self._decode(Test(generate=tokens), -tokens, Samples("", Test(generate=tokens)))

    def _ids(self) -> np.ndarray:
        assert self._routing is not None
        return self._routing.ids

    def _decode(self, test: Test, at: int, sample: Samples) -> None:
        """Decode the routing's tokens from ``at`` on, forced to their experts. Plain llama.cpp uses its router."""
        llm, ids = self._llm, self._ids()
        rows = np.arange(at, at + test.generate) % len(ids)
        assert self._routing is not None
        words = np.maximum(self._routing.tokens[rows], 0) % llm.n_vocab()
        experts = getattr(llm, "experts", None)
        if experts is not None and not experts.residency().all():  # for other contenders it has no effect, but a cost
            experts.force(np.ascontiguousarray(ids[rows]))
        scheduled = experts.scheduler_ns if experts is not None else 0
        before = asdict(experts.stats()) if experts is not None else None
        if not test.depth:
            self._filled = 0
        last = first = time.perf_counter_ns()
        for word in words.tolist():
            started = time.perf_counter_ns()
            llm.eval([word])
            computed = time.perf_counter_ns()
            likeliest(llm)  # waits for the device
            now = time.perf_counter_ns()
            sample.computing_ns += computed - started
            sample.sampling_ns += now - computed
            sample.between_ns.append(now - last)
            last = now
        sample.ns.append(last - first)
        sample.first_ns.append(sample.between_ns[0])
        if experts is not None and before is not None:
            sample.scheduler_ns = experts.scheduler_ns - scheduled
            sample.stats = _difference(before, asdict(experts.stats()))
            experts.force(ids[:0])  # the model itself routes prompts, as plain llama.cpp does

    def _prefill(self, tokens: int, repetition: int, sample: Samples) -> None:
        """Compute another prompt each time. The model's own router chooses the experts."""
        llm, text = self._llm, self._text(repetition + 1)[:tokens]
        experts = getattr(llm, "experts", None)
        self._filled = 0
        before = asdict(experts.stats()) if experts is not None else None
        started = time.perf_counter_ns()
        llm.eval(text)
        likeliest(llm)
        sample.ns.append(time.perf_counter_ns() - started)
        sample.first_ns.append(sample.ns[-1])
        if experts is not None and before is not None:
            sample.stats = _difference(before, asdict(experts.stats()))

    def _go_to(self, depth: int) -> None:
        """Compute ``depth`` tokens once. Later calls remove the tokens after them."""
        if self._filled != depth:
            self._llm.reset()
            self._llm.eval(self._text(0)[:depth])
            likeliest(self._llm)
            self._filled = depth
        self._llm.n_tokens = depth

    def _text(self, number: int) -> list[int]:
        random = np.random.default_rng(number)
        found: list[int] = random.integers(1, self._llm.n_vocab(), int(self._llm.n_ctx())).tolist()
        return found


def _sizes(request: Request) -> Request:
    found = {key: request[key] for key in ("n_ctx", "n_threads", "n_threads_batch")}
    if request["kv"] != "f16":  # llama.cpp reads quantised values with flash attention only
        found |= {"type_k": cells.KV_TYPES[request["kv"]], "type_v": cells.KV_TYPES[request["kv"]], "flash_attn": True}
    return found


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    from edgemoe.profiling.measure import GAUGES

    return {name: after[name] if name in GAUGES else after[name] - before[name] for name in after}


def _placement(path: Path, device: str, contender: cells.Contender, equal_bytes: int) -> Placement:
    """Give llama.cpp's settings for a contender."""
    if contender.placement == cells.CPU_ALONE:
        return Placement(cells.CPU_ALONE, 0)
    if contender.placement == cells.IN_VRAM:
        return Placement(cells.IN_VRAM, -1)
    found = placements(check(path), device, equal_bytes)
    return found[0] if contender.placement == cells.ON_CPU else found[-1]


def _experts_on_device(path: Path, placement: Placement) -> int:
    """Count the layers with their experts on the device."""
    from edgemoe.models.gguf import EXPERTS

    if placement.gpu_layers == 0:
        return 0
    blocks = {match[1] for name in check(path).tensors if (match := EXPERTS.match(name))}
    return len(blocks) - len(placement.on_cpu)


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    runner = Runner()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                found = getattr(runner, request.pop("do"))(request)
            except Exception as error:  # the parent interprets the error
                found = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(found, default=_plain) + "\n")
            answers.flush()
    finally:
        runner.end()


def _plain(value: Any) -> Any:
    """Encode numpy's scalars as numbers."""
    return value.item() if isinstance(value, np.generic) else str(value)


if __name__ == "__main__":
    assert llama_cpp.__version__  # imported here so that a failure is seen at once
    main()
