"""What to try next: one sentence, from what a profile measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .measure import Result

GAIN = 0.05  # of the hit rate, below which more memory is not worth a sentence
NEAR = 0.02  # of the hit rate, that nobody misses


def suggestion(result: Result, curve: dict[str, Any], devices: Sequence[str]) -> str:
    """What would make this model faster or smaller here; empty where nothing was seen that would.

    Args:
        result: the profile.
        curve: hit rate by cache size, as `curve.hit_rates` gives it; may be empty.
        devices: GPUs that this machine has.
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
        return f"{_budget(least, layers, size)} would hit {least['adaptive']:.0%} all the same."
    knee = next(point for point in points if point["slots"] == curve["knee"]["slots"])
    if knee["slots"] > now["slots"] and knee["adaptive"] > now["adaptive"] + GAIN:
        return (
            f"{_budget(knee, layers, size)}, the knee of the curve, would hit {knee['adaptive']:.0%} "
            f"instead of {now['adaptive']:.0%}."
        )
    return ""


def _budget(point: dict[str, Any], layers: int, expert_bytes: float) -> str:
    return f"--vram {point['slots'] * layers * expert_bytes / 2**20:.0f}MiB ({point['share']:.0%} of the experts)"
