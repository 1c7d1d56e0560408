"""Compare the forecasts of `edgemoe fit` with the measurements of `edgemoe profile`, placement by placement.

    python bench/fit.py --model FILE [--model FILE ...] [--device NAME] [--threads N] [--copy BYTES]
                        [--json]

Each placement has three steps. A first profile leaves a routing history, as earlier use of a model does. Then come the
forecast and the profile that counts. The commands print both figures. A small ``--copy`` makes the forecast of a small
model use few layers, as for a large model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from edgemoe import OffloadConfig
from edgemoe.cli.fit import assess
from edgemoe.machine import trial_run
from edgemoe.models import gguf
from edgemoe.planning.forecast import BAND
from edgemoe.planning.placement import BATCH
from edgemoe.profiling.measure import OURS, Test, middle, profile
from edgemoe.text.console import table, talk

SHARES = ("25%", "50%", "75%", "100%")
TESTS = (Test(prompt=BATCH), Test(generate=48))


def compare(path: Path, device: str, vram: str, threads: int, repetitions: int) -> list[dict[str, Any]]:
    """Hold the forecast and the measurement of prefill and decode in one placement."""
    offload = OffloadConfig(device=device, vram=vram)
    profile(path, TESTS[1:], 1, offload, threads)
    name = "" if device == "none" else device
    expected = assess(gguf.check(path), name, offload, 1024, threads)["forecast"]
    found = profile(path, TESTS, repetitions, offload, threads)
    rows = []
    for test, kind in zip(TESTS, ("prefill", "decode"), strict=True):
        said = expected[kind]
        was = middle(next(s for s in found.samples if s.placement == OURS and s.test == test).per_second)
        rows.append(
            {
                "model": path.name, "device": device, "vram": vram, "test": kind, "hit rate": expected["hit_rate"],
                "forecast": said, "measured": was, "ratio": was / said, "inside": abs(was / said - 1) <= BAND,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--device", default="sim", help="ggml's name of the device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with a simulated device fewer than cores")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--copy", type=float, default=trial_run.MOST_BYTES, help="most bytes of a copy")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    trial_run.MOST_BYTES = int(parsed.copy)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEMOE_HOME"] = folder
        for path in parsed.model:
            for device, vram in (("none", "0%"), *((parsed.device, share) for share in SHARES)):
                rows += compare(path, device, vram, parsed.threads, parsed.repetitions)
                for row in rows[-2:]:
                    talk(" ".join(_cells(row)))
    if parsed.json:
        print(json.dumps(rows, indent=1))
        return
    print(table(list(rows[0]), [_cells(row) for row in rows], texts=4))
    print(f"{sum(row['inside'] for row in rows)} of {len(rows)} within {BAND:.0%}")


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]


if __name__ == "__main__":
    main()
