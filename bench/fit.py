"""How far below the bound of `edgemoe fit` a model runs: against the clock, placement by placement.

    python bench/fit.py [--model FILE ...] [--threads N] [--rounds N] [--json]

For each placement, rates and model are measured in turns, close in time, several rounds, and medians compared: a
machine that does other things is slower for both. The hit rate of a forecast is the measured one: routing is another
question.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemoe import Llama, OffloadConfig, gguf, hardware, needs
from edgemoe.config import Budget, SimConfig
from edgemoe.console import table, talk
from edgemoe.engine import host
from edgemoe.engine.bandwidth import weights_of
from edgemoe.forecast import forecast
from edgemoe.plan import BATCH, plan
from edgemoe.profiling.measure import _tokens
from edgemoe.profiling.observe import likeliest

PLACEMENTS = (("none", "0%"), ("sim", "25%"), ("sim", "50%"), ("sim", "75%"), ("sim", "100%"))
CONTEXT, TOKENS = 1024, 48


def speeds(llm: Any, round_number: int) -> tuple[float, float, float]:
    """Prefill and decode in tokens per second, and the hit rate of decode."""
    text = next(_tokens(llm, BATCH, False)(round_number))
    if len(text) < BATCH:  # a vocabulary of made-up words
        text = [(i * 131 + round_number * 17) % (llm.n_vocab() - 8) + 1 for i in range(BATCH)]
    llm.reset()
    started = time.perf_counter()
    llm.eval(text)
    token = likeliest(llm)
    prefill = BATCH / (time.perf_counter() - started)
    llm.reset()
    llm.eval(text[:32])
    before = llm.experts.stats()
    started = time.perf_counter()
    for _ in range(TOKENS):
        llm.eval([token])
        token = likeliest(llm)
    decode = TOKENS / (time.perf_counter() - started)
    after = llm.experts.stats()
    used = after.hits + after.misses - before.hits - before.misses
    return prefill, decode, (after.hits - before.hits) / used if used else 0.0


def compare(path: Path, device: str, vram: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Forecast and measurement of prefill and decode in one placement."""
    file = gguf.check(path)
    model = needs.of(file)
    experts, others = weights_of(file)
    name = "" if device == "none" else device
    host.core().configure_sim(SimConfig())
    bare = replace(hardware.machine(name, threads), threads=threads)
    placed = plan(bare, model, CONTEXT, Budget.parse(vram))
    offload = OffloadConfig(device=device, vram=vram, profile="off", prefetch="off")
    llm = Llama(path, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, offload=offload)
    forecasts: dict[str, list[float]] = {"prefill": [], "decode": []}
    measured: dict[str, list[float]] = {"prefill": [], "decode": []}
    try:
        speeds(llm, 0)
        llm.experts.wait()
        for i in range(rounds):
            rates = hardware.measure(name, threads, experts, others, memory=False)
            prefill, decode, hits = speeds(llm, i + 1)
            expected = forecast(hardware.with_rates(bare, rates), model, placed, hits)
            for test, speed, found in (("prefill", expected.prefill, prefill), ("decode", expected.decode, decode)):
                forecasts[test].append(speed or 0.0)
                measured[test].append(found)
    finally:
        llm.close()
    return [
        {
            "model": path.name, "device": device, "vram": vram, "test": test,
            "at most": (said := statistics.median(forecasts[test])),
            "measured": (was := statistics.median(measured[test])),
            "ratio": was / said if said else 0.0,
        }
        for test in forecasts
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--threads", type=int, default=1, help="fewer than cores, where the device is simulated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in parsed.model:
        for device, vram in PLACEMENTS:
            rows += compare(path, device, vram, parsed.threads, parsed.rounds)
            for row in rows[-2:]:
                talk(" ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    if parsed.json:
        print(json.dumps(rows, indent=1))
        return
    header = ["model", "device", "vram", "test", "at most", "measured", "ratio"]
    cells = [[f"{row[h]:.2f}" if isinstance(row[h], float) else str(row[h]) for h in header] for row in rows]
    print(table(header, cells, texts=4))


if __name__ == "__main__":
    main()
