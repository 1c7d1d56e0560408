"""Run short copies of a model through the engine, to forecast the speed of the whole model.

Speed depends on shapes, types and routing, not on the values of the weights. An artificial trace with the expected hit
rate chooses the experts. Only the model's header is read, so a forecast needs no download.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..config import OffloadConfig, child_environment
from ..errors import BadGguf
from ..models import gguf
from ..models.gguf import GgufFile, moe_shape
from ..planning import model_needs
from ..planning.forecast import Run
from ..planning.placement import BATCH, ModelNeeds, Placement
from ..types import BoolArray, IdArray
from .truncated_model import bytes_of, copies, short_copy

MOST_BYTES = 2 << 30
RAM_SHARE, MOST_SHARE = 0.25, 0.5  # shares of the free memory: the target for a copy, and the limit
CONTEXT = 1024
TOKENS, WARM_UP = 40, 8
PATIENCE_S = 2.0  # longest time for the measured prefills together
# Some architectures alternate kinds of attention and need one layer of each kind. The kinds repeat after PERIOD layers.
# llama.cpp tells some other models apart by their number of layers. Copies of these have all layers and few experts.
PERIOD = 4


def run(
    file: GgufFile, device: str, placed: Placement, hit_rate: float, threads: int, free_bytes: int,
    progress: Callable[[float, str], None] = lambda share, step: None, attention: Mapping[str, Any] | None = None,
) -> list[Run]:  # fmt: skip
    """Run a copy with few layers and, unless that is the whole model, a copy with more layers.

    Args:
        file: header of the model.
        device: ggml name of the device, or empty for none.
        placed: placement of the whole model.
        hit_rate: expected hit rate of decode, 0..1.
        threads: number of CPU threads.
        free_bytes: bytes of RAM that are free.
        progress: called with the share done in 0..1 and the name of the current step.
        attention: llama_cpp's keywords for the types of the cache and for flash attention; None for its defaults.

    Returns:
        The runs, the shorter copy first; empty if llama.cpp does not run a copy.
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
                    settings = _settings(path, file, device, placed, hit_rate, threads)
                    seconds = _in_a_child(settings | {"attention": dict(attention or {})})
            except (OSError, BadGguf):  # the disk refuses the copy, or its header is refused
                return []
            if seconds is None:
                break
            found.append(Run(layers, *seconds))
        else:
            return found
    return []


def _settings(
    path: Path, whole: GgufFile, device: str, placed: Placement, hit_rate: float, threads: int
) -> dict[str, Any]:
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
    """Measure the seconds of a batch and of a token in a child, because llama.cpp may end its process. None: failed."""
    command = [sys.executable, "-m", "edgemoe.machine.trial_run", json.dumps(settings)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=child_environment(),
    )  # fmt: skip
    if done.returncode != 0:
        return None
    prefill_s, decode_s = json.loads(done.stdout)
    return float(prefill_s), float(decode_s)


def main(settings: dict[str, Any]) -> None:
    """Load a copy, measure it and print both figures. The child process runs this function."""
    from ..engine import Llama

    threads, hit_rate = settings["threads"], settings["hit_rate"]
    offload = OffloadConfig(**settings["offload"], policy="static", prefetch="off", profile="off")
    dense = {name: settings[name] for name in ("n_gpu_layers", "offload_kqv")} | settings["attention"]
    llm = Llama(settings["path"], n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, offload=offload, **dense)
    try:
        llm.experts.wait()
        print(json.dumps([_prefill_s(llm, hit_rate), _decode_s(llm, hit_rate)]))
    finally:
        llm.close()


def _budget(placed: Placement, model: ModelNeeds, experts: int) -> int:
    """Compute the budget that keeps the same share of experts resident as in the whole model."""
    if model.shape is None or not any(placed.slots):
        return 0
    share = sum(placed.slots) / len(placed.slots) / experts
    return math.ceil(share * model.expert_bytes)


def _prefill_s(llm: Any, hit_rate: float) -> float:
    """Measure a batch of `BATCH` tokens: the median of all repetitions in ``PATIENCE_S``."""
    random, times = np.random.default_rng(1), [0.0]
    tokens = random.integers(0, llm.n_vocab(), BATCH).tolist()
    _force(llm, BATCH, hit_rate, random)
    _seconds(llm, tokens)  # the first batch allocates memory, so it does not count
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
    used = min(shape.used, shape.experts)  # if layers have different numbers of experts, their routers choose
    able = resident.any(axis=1).mean()  # share of layers with slots: a layer has at least 2 x top-k slots, or none
    llm.experts.force(routes(resident, used, tokens, min(1.0, hit_rate / able) if able else 0.0, random))


def routes(resident: BoolArray, used: int, tokens: int, hit_rate: float, random: np.random.Generator) -> IdArray:
    """Make a trace with a given hit rate, as far as there are enough resident and cold experts.

    Args:
        resident: marks the resident experts, ``(layers, experts)``.
        used: experts per layer and token.
        tokens: length of the trace.
        hit_rate: probability that a chosen expert is resident, 0..1.
        random: generator for the choice.

    Returns:
        Ids of the chosen experts, ``(tokens, layers, used)``.
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
