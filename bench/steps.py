"""Measure decode steps of several tokens on a shape twin with real routing: experts, misses, and the time of a token.

    python bench/steps.py TWIN.gguf TRACE.npz [--device sim] [--link 25e9] [--vram 25%] [--sizes 1,2,4,8] [--tokens N]

The sizes take turns, each with the same tokens and the same experts in slots (``policy="static"``). One line per size:
distinct experts of a layer and step, distinct cold experts that a token costs, pairs of a token that miss, and the time
of a token as a share of steps of one token (median of the rounds).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgemoe import Llama, OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.replay import replay
from edgemoe.routing import trace
from edgemoe.types import BoolArray, IdArray


def steps(ids: IdArray, size: int) -> list[list[IdArray]]:
    """Give the distinct experts of each layer for each step of ``size`` tokens."""
    layers = ids.shape[1]
    return [[np.unique(ids[at : at + size, layer]) for layer in range(layers)] for at in range(0, len(ids), size)]


def run(llm: Llama, ids: IdArray, size: int) -> tuple[float, float]:
    """Compute the tokens of a trace in steps of ``size``; return the seconds and the missed pairs of a token."""
    llm.n_tokens = 0
    llm.experts.force(ids)
    before, seconds = llm.experts.stats(), 0.0
    for at in range(0, len(ids), size):
        started = time.perf_counter()
        llm._eval_rows([1 + token % 8000 for token in range(at, at + size)])
        seconds += time.perf_counter() - started
    after = llm.experts.stats()
    return seconds / len(ids), (after.misses - before.misses) / len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--device", default="none")
    parser.add_argument("--link", type=float, default=25e9, help="bytes per second of the sim device's link")
    parser.add_argument("--vram", default="25%")
    parser.add_argument("--sizes", default="1,2,4,8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    offload = OffloadConfig(
        given.device, given.vram, policy="static", prefetch="off", profile="off", speculative="off",
        sim=SimConfig(bandwidth=int(given.link), latency_us=10),
    )  # fmt: skip
    threads = {"n_threads": given.threads, "n_threads_batch": given.threads}
    llm = Llama(given.model, n_ctx=given.tokens + 16, offload=offload, **threads)
    shape = llm.experts.shape
    assert shape is not None
    sizes = [int(size) for size in given.sizes.split(",")]
    known = replay.split([trace.read(given.trace)], []).test[: given.tokens, : shape.layers]
    ids = np.ascontiguousarray(known[: len(known) // max(sizes) * max(sizes)])
    llm.experts.wait(600)
    hot: BoolArray = llm.experts.residency()
    times: dict[int, list[float]] = {size: [] for size in sizes}
    missed: dict[int, float] = {}
    run(llm, ids, 1)
    for _ in range(given.rounds):
        for size in sizes:
            seconds, missed[size] = run(llm, ids, size)
            times[size].append(seconds)
    print("| tokens a step | experts of a layer | cold experts a token | missed pairs a token | ms/token | share |")
    print("|---:|---:|---:|---:|---:|---:|")
    for size in sizes:
        distinct = steps(ids, size)
        experts = np.mean([len(layer) for step in distinct for layer in step])
        cold = sum(int((~hot[at, layer]).sum()) for step in distinct for at, layer in enumerate(step)) / len(ids)
        share = median(one / other for one, other in zip(times[size], times[sizes[0]], strict=True))
        figures = f"{experts:.1f} | {cold:.1f} | {missed[size]:.1f} | {median(times[size]) * 1e3:.1f} | {share:.2f}"
        print(f"| {size} | {figures} |")
    llm.close()


if __name__ == "__main__":
    main()
