"""Test whether the prefetch controller follows the link: the link's speed changes during a run on a shape twin.

    python bench/controller.py TWIN.gguf TRACE.npz [--tokens N] [--links 25e9,5e8,25e9]

One line per stretch of tokens: milliseconds per token, prefetches, and how often the controller had prefetch on. The
device is ``sim`` and only pretends to compute. Its uploads take the time that follows from the link's speed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from edgemoe import Llama, OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.engine import host
from edgemoe.replay import replay
from edgemoe.routing import trace

STRETCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--tokens", type=int, default=500, help="tokens at each speed")
    parser.add_argument("--links", default="25e9,5e8,25e9")
    parser.add_argument("--vram", default="25%")
    given = parser.parse_args()
    links = [int(float(link)) for link in given.links.split(",")]
    ids = replay.split([trace.read(given.trace)], []).test[: given.tokens * len(links)]
    sim = SimConfig(bandwidth=links[0], latency_us=10, compute_rate=500_000_000_000)
    offload = OffloadConfig("sim", given.vram, prefetch="history", profile="off", sim=sim)
    llm = Llama(given.model, n_ctx=len(ids) + 64, n_gpu_layers=0, n_threads=1, offload=offload)
    llm.experts.force(ids)
    llm.experts.wait(600)
    print("| link | tokens | ms/token | prefetched a token | prefetch on |\n|---|---:|---:|---:|---:|")
    for link in links:
        host.core().configure_sim(replace(sim, bandwidth=link))
        for first in range(0, given.tokens, STRETCH):
            steps, on, before = [], 0, llm.experts.stats()
            for token in range(STRETCH):
                started = time.perf_counter()
                llm.eval([token])
                steps.append(time.perf_counter() - started)
                on += llm._scheduler.prefetching
            s = llm.experts.stats()
            names = ("prefetch_useful", "prefetch_late", "prefetch_wasted")
            loaded = sum(getattr(s, name) - getattr(before, name) for name in names)
            print(
                f"| {link / 1e9:.1f} GB/s | {first}.. | {median(steps) * 1e3:.1f} | {loaded / STRETCH:.1f} | "
                f"{on / STRETCH:.0%} |",
                flush=True,
            )
    llm.close()


if __name__ == "__main__":
    main()
