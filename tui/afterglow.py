"""The use of experts of late, from one look at the maps to the next. Pure."""

from __future__ import annotations

import numpy as np

from edgemoe.types import FloatArray

from .records import ExpertMaps

LEFT, FADE = 0.45, 0.6  # of the glow after a token, and of that from one sample to the next: four are a second
MEMORY = 0.9  # of the pairs for a layer's hit rate: the mean of about ten samples


class Afterglow:
    """Follow the maps of one model: the experts that were used lately, and the hit rate of every layer."""

    def __init__(self) -> None:
        """Nothing has been used yet."""
        self._heat: FloatArray | None = None
        self._glow: FloatArray | None = None
        self._hits: FloatArray | None = None
        self._pairs: FloatArray | None = None

    def see(self, maps: ExpertMaps) -> None:
        """Take the next sample."""
        before = maps.heat if self._heat is None or self._heat.shape != maps.heat.shape else self._heat
        fresh = np.maximum(maps.heat - before, 0)
        if self._glow is None or self._glow.shape != fresh.shape:
            self._glow = np.zeros_like(fresh)
            self._hits, self._pairs = np.zeros(len(fresh), np.float32), np.zeros(len(fresh), np.float32)
        assert self._hits is not None and self._pairs is not None
        if fresh.any():
            self._glow = np.maximum(self._glow * FADE, (fresh > 0).astype(np.float32))
            self._hits = self._hits * MEMORY + (fresh * maps.residency).sum(axis=1)
            self._pairs = self._pairs * MEMORY + fresh.sum(axis=1)
        self._heat = maps.heat

    def settle(self) -> None:
        """Let the glow end: nothing is computed any more."""
        if self._glow is not None:
            self._glow = np.zeros_like(self._glow)

    def glow(self, maps: ExpertMaps) -> FloatArray:
        """Give the brightness of each expert, 0..1, shape ``(layers, experts)``; the last token's experts have 1."""
        glow = np.zeros(maps.residency.shape, np.float32)
        if self._glow is not None and self._glow.shape == glow.shape:
            glow = self._glow * LEFT
        layers, experts = maps.residency.shape
        last = maps.last[:layers]
        for layer, used in enumerate(last):
            glow[layer, used[(used >= 0) & (used < experts)]] = 1.0
        return glow

    def hit_rates(self, layers: int) -> list[float | None]:
        """Give for each layer the share of its late pairs whose expert was on the device, None without any."""
        if self._hits is None or self._pairs is None or len(self._pairs) != layers:
            return [None] * layers
        pairs = zip(self._hits.tolist(), self._pairs.tolist(), strict=True)
        return [hits / total if total > 0 else None for hits, total in pairs]
