"""Compare two profiles: ratios of medians, and tests against chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, erfc, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..text.console import table
from .figures import SCHEMA
from .report import test_name

REAL = 0.05  # p below which a difference is called real
EXACT = 200_000  # up to this many arrangements, the test counts each one
DRAWS = 2000  # number of resamplings of the bootstrap


@dataclass(frozen=True)
class Pair:
    """Hold one row that both profiles have.

    Attributes:
        name: placement and test.
        before: tokens per second of each repetition of A.
        after: tokens per second of each repetition of B.
    """

    name: str
    before: list[float]
    after: list[float]

    @property
    def ratio(self) -> float:
        """Divide the median of B by the median of A."""
        return median(self.after) / median(self.before)


def read(path: Path) -> dict[str, Any]:
    """Read a profile that ``edgemoe profile -o json`` wrote.

    Raises:
        ConfigError: the file cannot be read or is no profile.
    """
    hint = "compare files that edgemoe profile -o json wrote"
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not JSON", hint) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(f"{path.name} is not a profile of ours: its schema is not {SCHEMA}", hint)
    try:
        _by_row(found)
        _shown(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path.name} is a profile, but its rows are damaged", hint) from error
    return found


def report(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Write a table of the rows that both profiles have, with warnings and a sentence about each row."""
    ours, theirs = _by_row(before), _by_row(after)
    pairs = [Pair(" ".join(key), ours[key], theirs[key]) for key in ours if key in theirs]
    parts = _warnings(before, after)
    if not pairs:
        return "\n\n".join([*parts, "The profiles have no placement and test in common."])
    lines, words = [], []
    for pair in pairs:
        p, low, high, effect = p_value(pair), *interval(pair), superiority(pair)
        medians = [f"{median(pair.before):.2f}", f"{median(pair.after):.2f}"]
        lines.append(
            [pair.name, *medians, f"{pair.ratio:.3f}", f"{low:.3f} .. {high:.3f}", f"{p:.4f}", f"{effect:.2f}"]
        )
        words.append(f"{pair.name}: {_in_words(pair, p, effect)}")
    header = ["test", "A t/s", "B t/s", "B / A", "95 %", "p", "B faster"]
    if left_out := sorted(" ".join(key) for key in ours.keys() ^ theirs.keys()):
        words.append(f"Only in one profile: {', '.join(left_out)}.")
    return "\n\n".join([*parts, table(header, lines), "\n".join(words)])


def p_value(pair: Pair) -> float:
    """Apply Mann-Whitney's test, two-sided: the probability of a difference this large by chance alone."""
    a, b = pair.before, pair.after
    ranks = _ranks([*a, *b])
    n, m = len(a), len(b)
    expected, found = n * (n + m + 1) / 2, sum(ranks[:n])
    off = abs(found - expected) - 1e-9
    if comb(n + m, n) <= EXACT:
        sums = [sum(chosen) for chosen in combinations(ranks, n)]
        return sum(abs(s - expected) >= off for s in sums) / len(sums)
    _, ties = np.unique(ranks, return_counts=True)
    total = n + m
    spread = sqrt(n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1))))
    return erfc(max(off - 0.5, 0.0) / spread / sqrt(2)) if spread else 1.0


def interval(pair: Pair) -> tuple[float, float]:
    """Estimate the interval that holds the ratio of medians in 95 of 100 resamplings. The seed is fixed."""
    random = np.random.default_rng(0)
    a, b = (np.median(random.choice(values, (DRAWS, len(values))), axis=1) for values in (pair.before, pair.after))
    low, high = np.quantile(b / a, [0.025, 0.975])
    return float(low), float(high)


def superiority(pair: Pair) -> float:
    """Compute how often a repetition of B beats one of A. Ties count half; 0.5 means no difference."""
    won = sum((y > x) + (y == x) / 2 for x in pair.before for y in pair.after)
    return won / (len(pair.before) * len(pair.after))


def _in_words(pair: Pair, p: float, effect: float) -> str:
    n, m = len(pair.before), len(pair.after)
    if 2 / comb(n + m, n) >= REAL:
        return f"too few repetitions ({n} and {m}) to tell a difference from chance; 4 of each are the least."
    if p >= REAL:
        return f"no difference that chance would not give (p = {p:.2f})."
    change = abs(pair.ratio - 1)
    how = "faster" if pair.ratio > 1 else "slower"
    size = "large" if abs(effect - 0.5) > 0.21 else "moderate" if abs(effect - 0.5) > 0.14 else "small"
    return f"B is {change:.1%} {how}, and that is real (p = {p:.4f}, a {size} effect)."


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank values from 1. Equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [(ordered.index(v) + 1 + len(ordered) - ordered[::-1].index(v)) / 2 for v in values]


def _by_row(profile: dict[str, Any]) -> dict[tuple[str, str], list[float]]:
    """Collect the tokens per second of each repetition by placement and test. A profile has one model."""
    found = {}
    for row in profile["rows"]:
        speeds = [float(speed) for speed in row["samples_ts"]]
        if not speeds or not all(0 < speed < float("inf") for speed in speeds):
            raise ValueError("a row without speeds")
        found[str(row["placement"]), test_name(row)] = speeds
    return found


def _shown(profile: dict[str, Any]) -> tuple[Any, Any, Any]:
    machine, rows = profile["machine"], profile["rows"]
    model = [(row["model_filename"], row["model_size"]) for row in rows[:1]]
    return (
        model,
        (machine["cpu"], machine["cores"]),
        [(f"device {row['gpu_info'] or 'none'}", f"{row['n_threads']} threads") for row in rows[:1]],
    )


def _warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = []
    for what, a, b in zip(("models", "machines", "devices or threads"), _shown(before), _shown(after), strict=True):
        if a != b:
            shown = [", ".join(map(str, np.ravel(side))) for side in (a, b)]
            found.append(f"Apples and oranges: two {what}, {shown[0]} (A) and {shown[1]} (B).")
    for name, profile in (("A", before), ("B", after)):
        if profile.get("stopped"):
            found.append(f"{name} ended early ({profile['stopped']}): it has fewer repetitions.")
    return found
