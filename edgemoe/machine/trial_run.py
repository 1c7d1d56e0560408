"""Runs short copies of a model through the engine, to forecast the speed of the whole.

Speed depends on shapes, types and routing, not on what the weights say. Experts are chosen by a made-up trace that has
the hit rate to be expected. Nothing but the model's header is read, so a forecast needs no download.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..config import OffloadConfig
from ..errors import BadGguf
from ..models import gguf
from ..models.gguf import GgufFile, moe_shape
from ..planning import model_needs
from ..planning.forecast import Run
from ..planning.placement import BATCH, ModelNeeds, Plan
from ..types import BoolArray, IdArray
from .truncated_model import bytes_of, copies, short_copy

MOST_BYTES = 2 << 30
RAM_SHARE, MOST_SHARE = 0.25, 0.5  # of the free memory that a copy should take, and may take at most
CONTEXT = 1024
TOKENS, WARM_UP = 40, 8
PATIENCE_S = 2.0  # of the prefills that count
# Layers after which kinds of attention come again: some architectures do not run without one of each. llama.cpp tells
# others by the number of their layers: of those, copies have all, and few experts.
PERIOD = 4


def run(
    file: GgufFile, device: str, placed: Plan, hit_rate: float, threads: int, free_bytes: int,
    progress: Callable[[float, str], None] = lambda share, step: None,
) -> list[Run]:  # fmt: skip
    """Run a copy of few layers, and one of more unless that is all of them.

    Args:
        file: the model's header.
        device: ggml name, empty for none.
        placed: where the whole model would go.
        hit_rate: of decode, 0..1.
        threads: of the CPU.
        free_bytes: of RAM.
        progress: told the share done and what is being done.

    Returns:
        The shorter copy first; empty when llama.cpp does not run a copy.
    """
    most = min(MOST_BYTES, int(free_bytes * RAM_SHARE))
    for more in (0, PERIOD - 1, file.run_blocks or 1):
        planned = copies(file, most, more)
        if max(bytes_of(file, *copy) for copy in planned) > free_bytes * MOST_SHARE:
            break
        found: list[Run] = []
        for done, (layers, experts) in enumerate(planned):
            progress(done / len(planned), f"running {layers} layers")
            try:
                with short_copy(file, layers, experts) as path:
                    seconds = _in_a_child(_settings(path, file, device, placed, hit_rate, threads))
            except (OSError, BadGguf):  # no place for the copy, or its shapes are not those of a model
                return []
            if seconds is None:
                break
            found.append(Run(layers, *seconds))
        else:
            return found
    return []


def _settings(path: Path, whole: GgufFile, device: str, placed: Plan, hit_rate: float, threads: int) -> dict[str, Any]:
    from ..engine.host import endpoint_of

    shape = moe_shape(whole)
    return {
        "path": str(path),
        "offload": {
            "device": device or "none",
            "rpc": endpoint_of(device),
            "vram": _budget(placed, model_needs.of(gguf.read(path)), shape.experts if shape else 1),
            "stream_tokens": OffloadConfig.stream_tokens if placed.stream_slots else 0,
        },
        "threads": threads,
        "n_gpu_layers": -1 if placed.dense_on_device else 0,
        "offload_kqv": placed.kv_on_device,
        "hit_rate": hit_rate,
    }


def _in_a_child(settings: dict[str, Any]) -> tuple[float, float] | None:
    """Seconds of a batch and of a token; None where it failed: llama.cpp may end the process it runs in."""
    command = [sys.executable, "-m", "edgemoe.machine.trial_run", json.dumps(settings)]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    if done.returncode != 0:
        return None
    prefill_s, decode_s = json.loads(done.stdout)
    return float(prefill_s), float(decode_s)


def main(settings: dict[str, Any]) -> None:
    """Load a copy, time it and print both figures: the child's part."""
    from ..engine import Llama

    threads, hit_rate = settings["threads"], settings["hit_rate"]
    offload = OffloadConfig(**settings["offload"], policy="static", prefetch="off", profile="off")
    dense = {name: settings[name] for name in ("n_gpu_layers", "offload_kqv")}
    llm = Llama(settings["path"], n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, offload=offload, **dense)
    try:
        llm.experts.wait()
        print(json.dumps([_prefill_s(llm, hit_rate), _decode_s(llm, hit_rate)]))
    finally:
        llm.close()


def _budget(placed: Plan, model: ModelNeeds, experts: int) -> int:
    """Bytes that give the copy's layers the share of ``experts`` that layers of the whole model have."""
    if model.shape is None or not any(placed.slots):
        return 0
    share = sum(placed.slots) / len(placed.slots) / experts
    return math.ceil(share * model.expert_bytes)


def _prefill_s(llm: Any, hit_rate: float) -> float:
    """A batch of `BATCH` tokens, the median of as many as there is patience for."""
    random, times = np.random.default_rng(1), [0.0]
    tokens = random.integers(0, llm.n_vocab(), BATCH).tolist()
    _force(llm, BATCH, hit_rate, random)
    _seconds(llm, tokens)  # the first allocates
    while len(times) < 2 or sum(times) + times[-1] < PATIENCE_S:
        llm.reset()
        times.append(_seconds(llm, tokens))
    return median(times[1:])


def _decode_s(llm: Any, hit_rate: float) -> float:
    llm.reset()
    _force(llm, WARM_UP + TOKENS, hit_rate, np.random.default_rng(2))
    times = [_seconds(llm, [0]) for _ in range(WARM_UP + TOKENS)]
    return median(times[WARM_UP:])


def _seconds(llm: Any, tokens: list[int]) -> float:
    from ..profiling.observe import likeliest

    started = time.perf_counter()
    llm.eval(tokens)
    likeliest(llm)  # waits for the device
    return time.perf_counter() - started


def _force(llm: Any, tokens: int, hit_rate: float, random: np.random.Generator) -> None:
    shape = llm.experts.shape
    if shape is None:
        return
    resident = llm.experts.residency()
    used = min(shape.used, shape.experts)  # where layers use different numbers, routers choose
    able = resident.any(axis=1).mean()  # a layer has 2 x top-k places or none
    llm.experts.force(routes(resident, used, tokens, min(1.0, hit_rate / able) if able else 0.0, random))


def routes(resident: BoolArray, used: int, tokens: int, hit_rate: float, random: np.random.Generator) -> IdArray:
    """A trace whose experts are resident with the probability asked for, as far as there are so many.

    Args:
        resident: ``(layers, experts)``.
        used: experts per layer and token.
        tokens: of the trace.
        hit_rate: 0..1.
        random: chooses.

    Returns:
        ``(tokens, layers, used)``.
    """
    ids = np.empty((tokens, len(resident), used), dtype=np.int32)
    for layer, row in enumerate(resident):
        hot, cold = np.flatnonzero(row), np.flatnonzero(~row)
        for token in range(tokens):
            hits = int(np.clip(random.binomial(used, hit_rate), used - min(used, len(cold)), min(used, len(hot))))
            ids[token, layer, :hits] = random.permutation(hot)[:hits]
            ids[token, layer, hits:] = random.permutation(cold)[: used - hits]
    return ids


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
