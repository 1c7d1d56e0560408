"""``lru``: evicts the expert that was unused for longest. Every miss is loaded."""

from __future__ import annotations

import numpy as np

from ...types import BoolArray, FloatArray, ModelShape
from .base import Indices, Scores


class Recency:
    """Scores an expert by the decode token that used it last; `demand.Scorer`."""

    def __init__(self, shape: ModelShape) -> None:
        """Start with nothing used."""
        self._token = 0
        self._last_use: Scores = np.zeros((shape.layers, shape.experts))

    def seed(self, heat: FloatArray) -> None:
        """Rank past uses between -1 and 0, below every use from now on."""
        self._last_use[:] = heat / (1.0 + heat.max(axis=1, keepdims=True)) - 1.0

    def use(self, used: Indices) -> None:
        """Stamp the experts of one token."""
        self._token += 1
        self._last_use.reshape(-1)[used] = self._token

    def scores(self, layers: Indices) -> Scores:
        """Give the last use."""
        return self._last_use[layers]

    def accept(self, newcomer: Scores, victim: Scores) -> BoolArray:
        """Accept every exchange."""
        return np.ones(newcomer.shape, dtype=np.bool_)
