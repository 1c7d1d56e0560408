"""Reproduce the reference table of the traces' protocol with the policies of this project.

    python bench/reference.py FOLDER [--tokens N]

FOLDER holds the traces. In each trace every second sequence is held out, beginning with the first. The first N tokens
of the held-out sequences are run. The first M tokens of the other sequences give the static set. Sequences with loops
are left out. The output has our figures beside the reference. Its N and M are not published; these values reproduce it
on gpt-oss-20b. For DeepSeek-V2-Lite the reference had a fourth task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgemoe.replay import replay
from edgemoe.routing import trace
from edgemoe.types import IdArray

TABLES = {
    "gpt-oss-20b": (
        ("gpt-oss-20b-fingerprinting/mmlu.npz",),
        {0.125: (0.281, 0.434, 0.434, 0.434), 0.25: (0.488, 0.635, 0.675, 0.765), 0.5: (0.800, 0.889, 0.906, 0.946)},
    ),
    "DeepSeek-V2-Lite": (
        tuple(f"deepseek-v2-lite-esft/{task}.npz" for task in ("intent", "summary", "translation")),
        {0.125: (0.241, 0.317, 0.355, 0.436), 0.25: (0.417, 0.517, 0.547, 0.696), 0.5: (0.687, 0.755, 0.776, 0.886)},
    ),
}
ROWS = ("static", "lru", "lfu", "belady")


def halves(path: Path) -> tuple[list[IdArray], list[IdArray]]:
    """Divide sequences into sequences for training and held-out sequences."""
    sequences = [ids for ids, _ in replay._sequences(trace.read(path))]
    return sequences[1::2], sequences[0::2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4750, help="of all held-out sequences together")
    parser.add_argument("--train-tokens", type=int, default=40_000)
    given = parser.parse_args()
    print("| model | resident | policy | ours | reference | difference |\n|---|---:|---|---:|---:|---:|")
    for model, (files, table) in TABLES.items():
        parts = [halves(given.folder / file) for file in files]
        train = np.concatenate([ids for part, _ in parts for ids in part])[: given.train_tokens]
        share = given.tokens // len(parts)
        test = np.concatenate([np.concatenate(part)[:share] for _, part in parts])
        unknown = np.full(len(train), -1), np.full(len(test), -1)
        data = replay.Split(train, test, int(train.max()) + 1, *unknown)
        for fraction, wanted in table.items():
            slots = round(data.experts * fraction)
            for name, reference in zip(ROWS, wanted, strict=True):
                rate = replay.Job(name, slots, data, None, None).run()["hit_rate"]
                print(f"| {model} | {fraction:.1%} | {name} | {rate:.3f} | {reference:.3f} | {rate - reference:+.3f} |")


if __name__ == "__main__":
    main()
