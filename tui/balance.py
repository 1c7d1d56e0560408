"""Balance of a layer's experts, and the experts that a conversation uses more than usual. Pure.

Counts are how often each expert was routed to, shape ``(layers, experts)`` or one row of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgemoe.types import FloatArray

LEAST_PAIRS = 200  # in a whole map: fewer say nothing about a habit


class Balance(NamedTuple):
    """Of one layer: ``entropy`` in bits, ``most`` of the experts there are, ``quarter`` 0..1: share of the hottest."""

    entropy: float
    most: float
    quarter: float


def balance(counts: FloatArray) -> Balance:
    """Of one layer's counts, shape ``(experts,)``; entropy and share are 0 where nothing was counted."""
    most = float(np.log2(len(counts))) if len(counts) else 0.0
    total = float(counts.sum())
    if total <= 0:
        return Balance(0.0, most, 0.0)
    share = counts[counts > 0] / total
    hottest = np.sort(counts)[::-1][: max(1, len(counts) // 4)]
    return Balance(max(float(-(share * np.log2(share)).sum()), 0.0), most, float(hottest.sum()) / total)


def rank(counts: FloatArray, expert: int) -> int:
    """Place of ``expert`` among those of its layer, 1 for the hottest."""
    return int((counts > counts[expert]).sum()) + 1


def unusual(heat: FloatArray, before: FloatArray) -> FloatArray | None:
    """Give the rise of each expert's share of its layer since ``before``, 0 for a fall.

    None when either side has counted too little to compare.
    """
    fresh = np.maximum(heat - before, 0)
    if min(fresh.sum(), before.sum()) < LEAST_PAIRS:
        return None
    return np.asarray(np.maximum(_shares(fresh) - _shares(before), 0), dtype=np.float32)


def _shares(counts: FloatArray) -> FloatArray:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), dtype=np.float32)
