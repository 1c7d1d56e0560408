"""What the scheduler costs and does on a shape twin with real, recorded routing, on the sim device.

    python bench/scheduler.py TWIN.gguf TRACE.npz [--tokens N]

The first half of the trace trains a predictor (kept beside the twin), the second half is run. For each link speed: hit
rate, uploads and prefetches per token, milliseconds per token, the scheduler's share of them, and how often the
controller let prefetch run. The sim device computes on the CPU: hits save no time here; speeds compare settings only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgemoe import Llama, OffloadConfig, predictor, replay, trace
from edgemoe.config import SimConfig
from edgemoe.gguf import check, model_identity


def run(model: Path, ids: np.ndarray, tokens: int, bandwidth: int, prefetch: str, share: str) -> None:
    folder = model.parent / "profiles"
    sim = SimConfig(bandwidth=bandwidth, latency_us=10)
    offload = OffloadConfig(device="sim", vram=share, prefetch=prefetch, profile=str(folder), sim=sim)
    llm = Llama(model, n_ctx=tokens + 64, n_gpu_layers=0, offload=offload)
    llm.experts.force(ids)
    llm.experts.wait(600)
    scheduled, steps, on = 0.0, [], 0
    after_step = llm.experts.after_step

    def timed(elapsed_ns: int = 0) -> None:
        nonlocal scheduled
        started = time.perf_counter()
        after_step(elapsed_ns)
        scheduled += time.perf_counter() - started

    llm.experts.after_step = timed
    before = llm.experts.stats()
    for _ in range(tokens):
        started = time.perf_counter()
        llm.eval([5])
        steps.append(time.perf_counter() - started)
        on += llm.experts._ahead
    s = llm.experts.stats()
    pairs = s.hits + s.misses - before.hits - before.misses
    share_of_time = (scheduled + (s.schedule_ns - before.schedule_ns) / 1e9) / sum(steps)
    ahead = tuple(
        getattr(s, f"prefetch_{what}") - getattr(before, f"prefetch_{what}") for what in ("useful", "late", "wasted")
    )
    print(
        f"| {bandwidth / 1e9:5.1f} GB/s | {prefetch:7} | {(s.hits - before.hits) / pairs:.3f} | "
        f"{(s.uploads - before.uploads) / tokens:6.1f} | {ahead[0] / tokens:5.1f} {ahead[1] / tokens:5.1f} "
        f"{ahead[2] / tokens:5.1f} | {median(steps) * 1e3:6.1f} | {share_of_time:5.1%} | {on / tokens:4.0%} |",
        flush=True,
    )
    llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--vram", default="25%")
    parser.add_argument("--links", default="0,25e9,8e9,1e9", help="bytes per second")
    given = parser.parse_args()
    data = replay.split([trace.read(given.trace)], [])
    identity, folder = model_identity(check(given.model)), given.model.parent / "profiles"
    layers, used = data.test.shape[1:]
    if predictor.load(identity, folder, (layers, data.experts, used), []) is None:
        predictor.save(replay.learn(data), identity, folder)
    print(f"TWIN {given.model.name}: real shapes and recorded routing, arbitrary weights; {given.vram} resident\n")
    print("| link | prefetch | hit rate | uploads/token | useful, late, wasted | ms/token | scheduler | on |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for bandwidth in map(float, given.links.split(",")):
        for prefetch in ("off", "history"):
            run(given.model, data.test, given.tokens, int(bandwidth), prefetch, given.vram)


if __name__ == "__main__":
    main()
