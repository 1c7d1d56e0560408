"""``adaptive`` with a trained predictor: keeps the experts that are likely to be used soon."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...types import BoolArray, FloatArray, IdArray, ModelShape
from .base import Indices, Scores

# A newcomer must have so many expected uses (discounted, 0..1) more than its victim. Hit rate (loads per layer and
# token) on held-out sequences, a quarter resident, of gpt-oss-20b, then of DeepSeek-V2-Lite. Margin 0: .727 (0.47),
# .636 (1.27). Margin 0.02: .725 (0.38), .634 (0.96).
MARGIN = 0.02


class Predictor(Protocol):
    """The methods of a predictor that this policy calls; see ``engine.predictor.NativePredictor``."""

    def seed(self, use: FloatArray) -> None:
        """Start from uses per token, ``(layers, experts)``."""
        ...

    def token(self, ids: IdArray) -> None:
        """Learn from a computed token: its experts ``(layers, used)``, -1 if unknown."""
        ...

    def keep(self) -> FloatArray:
        """Give the expected use soon of each expert, ``(layers, experts)``."""
        ...


class Learned:
    """Scores an expert by its predicted use soon, `demand.Scorer`."""

    def __init__(self, shape: ModelShape, predictor: Predictor) -> None:
        """Start with nothing used."""
        self._shape = shape
        self._predictor = predictor
        self._row_start = np.arange(shape.layers, dtype=np.int32)[:, None] * shape.experts

    def seed(self, heat: FloatArray) -> None:
        """Start from the use per token that these counts mean."""
        tokens = np.maximum(heat.sum(axis=1, keepdims=True) / self._shape.used, 1.0)
        self._predictor.seed((heat / tokens).astype(np.float32))

    def use(self, used: Indices) -> None:
        """Count the experts of one token."""
        ids = np.full((self._shape.layers, self._shape.used), -1, dtype=np.int32)
        if used.size == ids.size:
            ids[:] = used.reshape(ids.shape) - self._row_start
        else:
            layer, expert = np.divmod(used, self._shape.experts)
            column = np.arange(used.size) - np.searchsorted(layer, layer)
            ids[layer, column] = expert
        self._predictor.token(ids)

    def scores(self, layers: Indices) -> Scores:
        """Give the expected uses."""
        return self._predictor.keep()[layers].astype(np.float64)

    def accept(self, newcomer: Scores, victim: Scores) -> BoolArray:
        """Swap when the newcomer is clearly the better one."""
        pays: BoolArray = newcomer - MARGIN > victim
        return pays
