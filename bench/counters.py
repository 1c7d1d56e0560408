"""Measure the cost of observing every token, as `edgemoe profile` does for its traces and maps: A B A B.

    python bench/counters.py MODEL [--device sim] [--vram 50%] [--threads N] [--rounds N]

The core's counters are always on. Their clock reads are counted, and the cost of a clock read is measured.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

from edgemoe import Llama, OffloadConfig
from edgemoe.profiling.observe import likeliest, observe

TOKENS, OPENING = 64, 8
READS_PER_LAYER = 10  # most clock reads of one layer in a decode step


def alone(llm: Llama, text: list[int]) -> float:
    """Measure the median seconds of a token without observation."""
    llm.reset()
    llm.eval(text[:OPENING])
    token, started = likeliest(llm), []
    for _ in range(TOKENS):
        started.append(time.perf_counter_ns())
        llm.eval([token])
        token = likeliest(llm)
    return median(map(float.__sub__, map(float, started[1:]), map(float, started))) / 1e9


def watched(llm: Llama, text: list[int]) -> float:
    """Measure the seconds of the same tokens under observation, from start to start."""
    seen = observe(llm, text, OPENING, TOKENS)
    assert seen is not None
    started = [float(step.start_ns) for step in seen.steps]
    return median(map(float.__sub__, started[1:], started)) / 1e9


def clock_read_ns() -> float:
    """Measure a read of the core's clock from Python, which costs more than in the core."""
    started = time.perf_counter_ns()
    for _ in range(100_000):
        time.perf_counter_ns()
    return (time.perf_counter_ns() - started) / 100_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="sim")
    parser.add_argument("--vram", default="50%")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    offload = OffloadConfig(given.device, given.vram, profile="off", prefetch="off")
    llm = Llama(given.model, n_ctx=256, n_threads=given.threads, n_threads_batch=given.threads, offload=offload)
    text = [i * 37 % 8000 + 1 for i in range(OPENING)]
    alone(llm, text)
    llm.experts.wait()
    ratios, times = [], []
    for _ in range(given.rounds):
        first, second = alone(llm, text), watched(llm, text)
        third, fourth = alone(llm, text), watched(llm, text)
        ratios.append((second + fourth) / (first + third))
        times += [first, third]
    token = median(times)
    reads = READS_PER_LAYER * (llm.experts.shape.layers if llm.experts.shape else 0) * clock_read_ns() / 1e9
    print(
        f"watched over unwatched, {given.rounds} times A B A B, {TOKENS} tokens each: median {median(ratios):.4f}, ",
        end="",
    )
    print(f"{min(ratios):.4f} .. {max(ratios):.4f}; a token takes {token * 1e3:.2f} ms")
    print(f"clock reads of the counters that are always on: at most {reads * 1e6:.1f} us a token, {reads / token:.3%}")


if __name__ == "__main__":
    main()
