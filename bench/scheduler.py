"""Measure the cost and the effect of the scheduler on the sim device, on a shape twin with recorded routing.

    python bench/scheduler.py TWIN.gguf TRACE.npz [--tokens N]

The first half of the trace trains a predictor, which is kept beside the twin. The second half is run. Each link speed
gives hit rate, uploads and prefetches per token, milliseconds per token with the scheduler's share, and the share of
tokens with prefetch on. The sim device computes on the CPU, so hits save no time. With ``--pretend 1e12`` it only takes
a GPU's time to read the weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgemoe import Llama, OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.models.gguf import check, model_identity
from edgemoe.replay import replay
from edgemoe.routing import predictor, trace


def run(given: argparse.Namespace, data: replay.Split, bandwidth: int, prefetch: str) -> float:
    """One row of the table; returns milliseconds per token."""
    sim = SimConfig(bandwidth=bandwidth, latency_us=10, compute_rate=int(given.pretend))
    offload = OffloadConfig("sim", given.vram, prefetch=prefetch, profile=str(profiles(given.model)), sim=sim)
    llm = Llama(given.model, n_ctx=given.tokens + 64, n_gpu_layers=0, n_threads=given.threads, offload=offload)
    llm.experts.force(data.test[: given.tokens])
    llm.experts.wait(600)
    words = np.maximum(data.test_tokens[: given.tokens], 0) % llm.n_vocab()
    steps, on = [], 0
    before, scheduled = llm.experts.stats(), llm.experts.scheduler_ns
    for word in words.tolist():
        started = time.perf_counter_ns()
        llm.eval([word])
        steps.append(time.perf_counter_ns() - started)
        on += llm._scheduler.prefetching
    s = llm.experts.stats()
    pairs = s.hits + s.misses - before.hits - before.misses
    scheduled = llm.experts.scheduler_ns - scheduled + s.schedule_ns - before.schedule_ns
    ahead = tuple(
        getattr(s, f"prefetch_{what}") - getattr(before, f"prefetch_{what}") for what in ("useful", "late", "wasted")
    )
    tokens = len(steps)
    print(
        f"| {bandwidth / 1e9:5.1f} GB/s | {prefetch:9} | {(s.hits - before.hits) / pairs:.3f} | "
        f"{(s.uploads - before.uploads) / tokens:6.1f} | {ahead[0] / tokens:5.1f} {ahead[1] / tokens:5.1f} "
        f"{ahead[2] / tokens:5.1f} | {median(steps) / 1e6:6.1f} | {scheduled / sum(steps):5.1%} | {on / tokens:4.0%} |",
        flush=True,
    )
    llm.close()
    return median(steps) / 1e6


def profiles(model: Path) -> Path:
    return model.parent / "profiles"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--vram", default="25%")
    parser.add_argument("--pretend", type=float, default=0, help="bytes per second of a device that only pretends")
    parser.add_argument("--prefetch", default="off,history", help="settings; the others are compared with the first")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; leave one core for copies")
    parser.add_argument("--repeat", type=int, default=1, help="A B A B")
    parser.add_argument("--links", default="0,25e9,8e9,1e9", help="bytes per second")
    given = parser.parse_args()
    data = replay.split([trace.read(given.trace)], [])
    identity, folder = model_identity(check(given.model)), profiles(given.model)
    layers, used = data.test.shape[1:]
    if predictor.load(identity, folder, (layers, data.experts, used), []) is None:
        predictor.save(replay.learn(data), identity, folder)
    print(f"TWIN {given.model.name}: real shapes and recorded routing, arbitrary weights; {given.vram} resident\n")
    print("| link | prefetch | hit rate | uploads/token | useful, late, wasted | ms/token | scheduler | on |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for bandwidth in map(float, given.links.split(",")):
        times: dict[str, list[float]] = {name: [] for name in given.prefetch.split(",")}
        for _ in range(given.repeat):
            for name, taken in times.items():
                taken.append(run(given, data, int(bandwidth), name))
        base, *_ = times.values()
        for name, taken in list(times.items())[1:]:
            ratio = median(a / b for a, b in zip(base, taken, strict=True))
            print(f"{bandwidth / 1e9:.1f} GB/s: {name} is {ratio:.3f} times as fast as {next(iter(times))}", flush=True)


if __name__ == "__main__":
    main()
