"""Compare two ways to compute the misses of decode steps: with and without fetches by the device. A B A B.

    python bench/fetch.py MODEL [--link 50e9] [--hits 0.5] [--threads 1] [--rounds 3]

The device is `sim`, which only pretends to compute. An artificial trace has the given hit rate, and the link carries
nothing else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgemoe import Llama, OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.machine.trial_run import routes

TOKENS, WARM_UP = 60, 15


def run(given: argparse.Namespace, stream_tokens: int) -> tuple[float, float, float]:
    """Measure the seconds, the misses and the fetched experts per token."""
    sim = SimConfig(bandwidth=int(given.link), latency_us=10, compute_rate=int(5e11))
    offload = OffloadConfig("sim", "25%", "static", "off", "off", stream_tokens=stream_tokens, sim=sim)
    llm = Llama(given.model, n_ctx=256, n_gpu_layers=0, n_threads=given.threads, offload=offload)
    llm.experts.wait(600)
    shape = llm.experts.shape
    assert shape is not None
    random = np.random.default_rng(0)
    llm.experts.force(routes(llm.experts.residency(), shape.used, TOKENS, given.hits, random))
    times = []
    for token in range(TOKENS):
        started = time.perf_counter()
        llm.eval([token + 1])
        times.append(time.perf_counter() - started)
    stats = llm.experts.stats()
    llm.close()
    return median(times[WARM_UP:]), stats.misses / TOKENS, stats.fetched / TOKENS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--link", type=float, default=50e9, help="bytes per second")
    parser.add_argument("--hits", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; sim needs its own core")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ratios = []
    for _ in range(given.rounds):
        (computed, misses, _), (mixed, _, fetched) = run(given, 0), run(given, 32)
        ratios.append(computed / mixed)
        print(
            f"{misses:.1f} misses a token: {computed * 1e3:.1f} ms; {fetched:.1f} of them fetched: {mixed * 1e3:.1f} ms"
        )
    print(f"fetching is {median(ratios):.3f} times as fast ({min(ratios):.3f} .. {max(ratios):.3f})")


if __name__ == "__main__":
    main()
