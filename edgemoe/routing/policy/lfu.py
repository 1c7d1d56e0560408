"""``lfu``: evicts the least frequently used expert; use counts decay per token. Every miss is loaded."""

from __future__ import annotations

import numpy as np

from ...types import BoolArray, FloatArray, ModelShape
from .base import Indices, Scores

DECAY = 0.98  # per decode token: the reference value of the routing-trace protocol
_SCALE_LIMIT = 1e100  # far from overflow, and reached only every few thousand tokens


class Frequency:
    """A use count that decays by a factor per token, `demand.Scorer`.

    The stored counts are the true counts times ``scale``. Not every count shrinks at each token: the weight of a new
    use grows instead. Ratios within a layer are the same, and a token touches only the experts that it used.
    """

    def __init__(self, shape: ModelShape, decay: float = DECAY) -> None:
        """Start with nothing used. ``decay`` in 0..1 is the weight that a use has one token later."""
        self._growth = 1.0 / decay
        self._memory = 1.0 / (1.0 - decay)  # tokens
        self._used = shape.used
        self.scale = 1.0
        self.scaled: Scores = np.zeros((shape.layers, shape.experts))

    def seed(self, heat: FloatArray) -> None:
        """Start from these counts, shrunk to the tokens that a long run would remember."""
        tokens = heat.sum(axis=1, keepdims=True, dtype=np.float64) / self._used
        self.scaled[:] = heat * (self._memory / np.maximum(tokens, self._memory))

    def use(self, used: Indices) -> None:
        """Count the experts of one token."""
        self.scale *= self._growth
        if self.scale > _SCALE_LIMIT:
            self.scaled /= self.scale
            self.scale = 1.0
        self.scaled.reshape(-1)[used] += self.scale

    def scores(self, layers: Indices) -> Scores:
        """Give the scaled counts."""
        return self.scaled[layers]

    def accept(self, newcomer: Scores, victim: Scores) -> BoolArray:
        """Accept every exchange."""
        return np.ones(newcomer.shape, dtype=np.bool_)
