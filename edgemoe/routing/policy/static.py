"""``static``: the experts that were hottest in the past stay, and nothing moves."""

from __future__ import annotations

import numpy as np

from ...types import BoolArray, FloatArray, IdArray, Load, ModelShape
from .base import IntArray, Ledger
from .exchange import Exchange, fill

# A model without a past is placed once, after so many decode tokens: most of a first answer.
LEARN_TOKENS = 64


class Static:
    """Places once: from saved heat at the start, or without it after ``LEARN_TOKENS`` decode tokens."""

    name = "static"

    def __init__(self, shape: ModelShape, slots: IntArray) -> None:
        """Start with nothing placed."""
        self._ledger = Ledger(shape, slots)
        self._exchange = Exchange()
        self._heat: FloatArray | None = None
        self._placed = False
        self._target: BoolArray = np.zeros_like(self._ledger.latest)
        self._wanted: BoolArray = np.zeros_like(self._ledger.latest)

    def start(self, heat: FloatArray | None) -> list[Load]:
        """See `Policy.start`."""
        self._heat = heat
        self._placed = heat is not None
        return self._fill(np.zeros_like(self._target))

    def observe(self, ids: IdArray, resident: BoolArray, decode: bool) -> None:
        """See `Policy.observe`."""
        if decode:
            self._ledger.decode(ids)
        else:
            self._ledger.prefill(ids)

    def choose(self, resident: BoolArray, pending: BoolArray, max_per_layer: int | IntArray) -> list[Load]:
        """See `Policy.choose`."""
        latest = self._ledger.latest
        if not latest.any():
            return []
        if not self._placed and self._ledger.decode_tokens >= LEARN_TOKENS:
            self._placed = True
            for load in self._fill(np.zeros_like(resident)):
                self._target[load.layer, load.expert] = True
            self._wanted = self._target & ~resident & ~pending
        layers = np.flatnonzero(self._wanted.any(axis=1))
        if not len(layers):
            return []
        uses = self._ledger.uses[layers]
        worth = np.where(self._wanted[layers] & ~pending[layers], uses, -np.inf)
        keep = np.where(self._target[layers] | latest[layers], np.inf, uses)
        loads = self._exchange.swap(layers, worth, keep, self._ledger.slots, resident, pending, max_per_layer)
        for load in loads:
            self._wanted[load.layer, load.expert] = False
        return loads

    def resize(self, slots: IntArray, resident: BoolArray) -> list[Load]:
        """See `Policy.resize`."""
        self._ledger.slots = np.array(slots, dtype=np.int32)
        self._wanted.fill(False)
        return self._fill(resident)

    def pin(self, pinned: BoolArray, resident: BoolArray, pending: BoolArray) -> list[Load]:
        """See `Policy.pin`."""
        return self._exchange.pin(pinned, self._ledger.uses, self._ledger.slots, resident, pending)

    def heat(self) -> FloatArray:
        """See `Policy.heat`."""
        return self._ledger.heat()

    def _fill(self, resident: BoolArray) -> list[Load]:
        scores = self._ledger.uses if self._heat is None else self._heat.astype(np.float64)
        return fill(scores, self._ledger.slots, resident, self._exchange.pinned)
