"""Suggest the next thing to try, in one sentence, from the measurements of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .measure import Result

GAIN = 0.05  # smallest gain in hit rate that is worth a sentence about more memory
NEAR = 0.02  # largest loss in hit rate that does not matter


def suggestion(result: Result, curve: dict[str, Any], devices: Sequence[str]) -> str:
    """Suggest a setting that makes this model faster or smaller here; empty if the profile shows none.

    Args:
        result: measurements of the profile.
        curve: hit rate by cache size, as `curve.hit_rates` gives it. It may be empty.
        devices: GPUs of this machine.
    """
    if result.device == "none":
        return f"Try --device {devices[0]}: this machine has a GPU." if devices else ""
    points = curve.get("points", [])
    if not points or not result.slots:
        return ""
    layers, size = len(result.observed.hit_rate) if result.observed else 1, result.slot_bytes / result.slots
    now = min(points, key=lambda point: abs(point["slots"] - result.slots / layers))
    if now is points[-1]:
        least = next(point for point in points if point["adaptive"] >= now["adaptive"] - NEAR)
        if least is now:
            return ""
        return f"{_budget(least, layers, size)} would still hit {least['adaptive']:.0%}."
    knee = next(point for point in points if point["slots"] == curve["knee"]["slots"])
    if knee["slots"] > now["slots"] and knee["adaptive"] > now["adaptive"] + GAIN:
        return (
            f"{_budget(knee, layers, size)}, the knee of the curve, would hit {knee['adaptive']:.0%} "
            f"instead of {now['adaptive']:.0%}."
        )
    return ""


def _budget(point: dict[str, Any], layers: int, expert_bytes: float) -> str:
    return f"--vram {point['slots'] * layers * expert_bytes / 2**20:.0f}MiB ({point['share']:.0%} of the experts)"
