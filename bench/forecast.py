"""Checks the virtual clock: forecast tokens per second beside measured ones, on a shape twin with recorded routing.

    python bench/forecast.py TWIN.gguf TRACE.npz [--tokens N]

The machine's figures come from one run with an eighth of the experts resident; the other placements are forecast from
them by `edgemoe.replay` and then measured. The device is ``sim`` and only pretends (see ``SimConfig.compute_rate``): it
takes the time that a GPU would take to read the weights, and its link has a set speed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgemoe import Llama, OffloadConfig, predictor, replay, trace
from edgemoe.clock import Clock, Machine
from edgemoe.config import SimConfig
from edgemoe.types import ExpertStats, ModelShape

FIRST = "12.5%"


def measure(
    given: argparse.Namespace, ids: np.ndarray, share: str, prefetch: str
) -> tuple[float, int, ExpertStats, ModelShape]:
    """Median seconds of a token, slots of a layer, the counters of the run, and the model's shape."""
    sim = SimConfig(bandwidth=int(given.link), compute_rate=int(given.device))
    offload = OffloadConfig("sim", share, prefetch=prefetch, profile="off", sim=sim)
    llm = Llama(given.model, n_ctx=len(ids) + 64, n_gpu_layers=0, n_threads=given.threads, offload=offload)
    llm.experts.force(ids)
    llm.experts.wait(600)
    before, steps = llm.experts.stats(), []
    for token in range(len(ids)):
        started = time.perf_counter()
        llm.eval([token % 1000])
        steps.append(time.perf_counter() - started)
    after, shape = llm.experts.stats(), llm.experts.shape
    llm.close()
    counted = {name: getattr(after, name) - getattr(before, name) for name in vars(after)}
    return median(steps), after.slots // shape.layers, ExpertStats(**counted), shape


def machine_of(given: argparse.Namespace, step_s: float, stats: ExpertStats, shape: ModelShape, tokens: int) -> Machine:
    """What one run tells of the machine."""
    size = float(np.mean(shape.expert_bytes))
    on_device = stats.hits * size / given.device
    return Machine(
        cpu=stats.misses * size / (stats.cpu_ns / 1e9),
        device=given.device,
        link=given.link,
        join=max(stats.join_ns / 1e9 - on_device, 1e-6) / max(stats.joins, 1),
        rest=max(step_s - stats.moe_ns / 1e9 / tokens, 1e-6),
        expert=size,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--link", type=float, default=25e9)
    parser.add_argument("--device", type=float, default=5e11)
    given = parser.parse_args()
    ids = replay.split([trace.read(given.trace)], []).test[: given.tokens]
    step_s, _, stats, shape = measure(given, ids, FIRST, "off")
    machine = machine_of(given, step_s, stats, shape, len(ids))
    print(f"TWIN {given.model.name}; {machine}\n\n| resident | prefetch | forecast tok/s | measured | error |")
    print("|---|---|---:|---:|---:|")
    for share in (FIRST, "25%", "37.5%", "50%", "75%", "100%"):
        for prefetch in ("off", "history"):
            step_s, slots, _, _ = measure(given, ids, share, prefetch)
            tables = predictor.untrained(shape.layers, shape.experts, shape.used)
            heat = np.zeros((shape.layers, shape.experts), dtype=np.float32)
            clock = Clock(machine, shape.layers, shape.expert_bytes)
            tally = replay.simulate(
                "adaptive", ids, shape, slots, replay.UPLOADS, heat, tables, prefetch != "off", clock=clock
            )
            forecast = len(ids) / tally.seconds
            print(
                f"| {share} | {prefetch} | {forecast:.2f} | {1 / step_s:.2f} | {forecast * step_s - 1:+.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
