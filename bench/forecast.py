"""Check the virtual clock: compare forecast and measured tokens per second on a shape twin with recorded routing.

    python bench/forecast.py TWIN.gguf TRACE.npz [--tokens N]

The machine's rates come from two runs: with an eighth and with all of the experts resident. `edgemoe.replay` forecasts
the placements between them, which are then measured. The device is ``sim`` and only pretends to compute (see
``SimConfig.compute_rate``). It takes a GPU's time to read the weights, and its link has a set speed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from edgemoe import Llama, OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.replay import replay
from edgemoe.replay.virtual_clock import Clock, ClockModel
from edgemoe.routing import predictor, trace
from edgemoe.types import ExpertStats, ModelShape

FEW, ALL = "12.5%", "100%"
WARM_UP = 30  # tokens that warm up the file's pages and the first placement


@dataclass(frozen=True)
class Run:
    """Hold a run's mean seconds per token, slots per layer, counters, and the model's shape."""

    step_s: float
    slots: int
    stats: ExpertStats
    shape: ModelShape


def measure(given: argparse.Namespace, ids: np.ndarray, share: str, prefetch: str) -> Run:
    """Run a placement."""
    sim = SimConfig(bandwidth=int(given.link), compute_rate=int(given.device))
    offload = OffloadConfig("sim", share, prefetch=prefetch, profile="off", sim=sim)
    llm = Llama(given.model, n_ctx=len(ids) + 64, n_gpu_layers=0, n_threads=given.threads, offload=offload)
    llm.experts.force(ids)
    llm.experts.wait(600)
    for token in range(WARM_UP):
        llm.eval([token])
    before, steps = llm.experts.stats(), []
    for token in range(len(ids) - WARM_UP):
        started = time.perf_counter()
        llm.eval([token % 1000])
        steps.append(time.perf_counter() - started)
    after, shape = llm.experts.stats(), llm.experts.shape
    llm.close()
    counted = {name: getattr(after, name) - getattr(before, name) for name in vars(after)}
    return Run(fmean(steps), after.slots // shape.layers, ExpertStats(**counted), shape)


def machine_of(given: argparse.Namespace, few: Run, every: Run, tokens: int) -> ClockModel:
    """Derive the machine's rates from the two runs."""
    size = float(np.mean(few.shape.expert_bytes))
    hit_s = every.stats.hits * size / given.device
    layers = tokens * few.shape.layers
    return ClockModel(
        cpu=few.stats.misses * size / (few.stats.cpu_ns / 1e9),
        device=given.device,
        link=given.link,
        launch=(every.stats.moe_ns - every.stats.device_ns) / 1e9 / layers,
        join=(every.stats.device_ns / 1e9 - hit_s) / layers,
        rest=every.step_s - every.stats.moe_ns / 1e9 / tokens,
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
    few, every = (measure(given, ids, share, "off") for share in (FEW, ALL))
    machine, shape = machine_of(given, few, every, len(ids) - WARM_UP), few.shape
    print(f"TWIN {given.model.name}; {machine}\n\n| resident | prefetch | forecast tok/s | measured | error |")
    print("|---|---|---:|---:|---:|")
    for share in (FEW, "25%", "37.5%", "50%", "75%", ALL):
        for prefetch in ("off", "history"):
            run = measure(given, ids, share, prefetch)
            tables = predictor.untrained(shape.layers, shape.experts, shape.used)
            heat = np.zeros((shape.layers, shape.experts), dtype=np.float32)
            clock = Clock(machine, shape.layers, shape.expert_bytes)
            tally = replay.simulate(
                "adaptive", ids, shape, run.slots, replay.UPLOADS, heat, tables, prefetch != "off", clock=clock
            )
            forecast = len(ids) / tally.seconds
            print(
                f"| {share} | {prefetch} | {forecast:.2f} | {1 / run.step_s:.2f} | {forecast * run.step_s - 1:+.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
