"""The slots of each layer that a budget of device memory holds."""

from __future__ import annotations

import numpy as np

from ...types import ModelShape
from .base import IntArray


def least_slots(shape: ModelShape) -> int:
    """Give the fewest slots that are worth having in a layer.

    Twice the experts of a token: with fewer, each token evicts the experts of the one before.
    """
    return min(2 * shape.used, shape.experts)


def slots_for(shape: ModelShape, budget_bytes: int) -> IntArray:
    """Spread a budget over the layers, every layer the same bytes as nearly as whole experts allow.

    A layer gets `least_slots` or more, or none. If the budget is too small for all layers, the last layers get theirs:
    the first layers of a model route most evenly, so slots hit least there.

    Args:
        shape: geometry of the model; ``expert_bytes`` above 0.
        budget_bytes: bytes for resident experts, 0 or more.

    Returns:
        slots of each layer, ``(layers,)``, at most ``experts``. Together they never exceed the budget, and no
        layer with slots could have one more.
    """
    assert len(shape.expert_bytes) == shape.layers and all(size > 0 for size in shape.expert_bytes)
    least = least_slots(shape)
    first = shape.layers
    needed = 0
    while first > 0 and needed + least * shape.expert_bytes[first - 1] <= budget_bytes:
        first -= 1
        needed += least * shape.expert_bytes[first]
    sizes = shape.expert_bytes[first:]
    low, high = 0, shape.experts * max(sizes, default=0)  # bytes per layer: low fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = _total(sizes, _level(sizes, middle, least, shape.experts)) <= budget_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    slots = _level(sizes, low, least, shape.experts)
    _spend(sizes, slots, budget_bytes - _total(sizes, slots), shape.experts)
    return np.array([0] * first + slots, dtype=np.int32)


def _level(sizes: tuple[int, ...], layer_bytes: int, least: int, most: int) -> list[int]:
    return [min(most, max(least, layer_bytes // size)) for size in sizes]


def _total(sizes: tuple[int, ...], slots: list[int]) -> int:
    return sum(size * count for size, count in zip(sizes, slots, strict=True))


def _spend(sizes: tuple[int, ...], slots: list[int], left_bytes: int, most: int) -> None:
    """Give the rest one slot at a time to the layer with the fewest bytes; of equal layers, to the last."""
    while True:
        open_layers = [i for i, size in enumerate(sizes) if slots[i] < most and size <= left_bytes]
        if not open_layers:
            return
        layer = min(open_layers, key=lambda i: (slots[i] * sizes[i], -i))
        slots[layer] += 1
        left_bytes -= sizes[layer]
