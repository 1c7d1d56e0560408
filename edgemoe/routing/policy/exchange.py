"""Turns scores into loads: each load brings one expert, and may name a victim.

Every policy moves experts through here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...types import BoolArray, Load
from .base import Indices, IntArray, Scores

Accept = Callable[[Scores, Scores], BoolArray]
_NONE = -np.inf
_NEVER = np.inf


def fill(scores: Scores, slots: IntArray, resident: BoolArray, pinned: BoolArray | None = None) -> list[Load]:
    """Fill the free slots with absent experts: the pinned first, then by score; of equal scores, the lower id first.

    Args:
        scores: ``(layers, experts)``, higher is better.
        slots: ``(layers,)``, capacity.
        resident: ``(layers, experts)``, experts that occupy slots already.
        pinned: ``(layers, experts)``, experts that come first; None for none.

    Returns:
        loads without victims, breadth first: the best of every layer, then the second of every layer.
    """
    free = slots - resident.sum(axis=1)
    if pinned is not None:
        scores = np.where(pinned, _NEVER, scores)
    order = np.argsort(np.where(resident, _NEVER, -scores), axis=1, kind="stable")
    deepest = int(free.max(initial=0))
    return [
        Load(layer, int(order[layer, depth]), -1)
        for depth in range(deepest)
        for layer in np.flatnonzero(free > depth).tolist()
    ]


class Exchange:
    """Swaps wanted experts for the lowest-scored residents, and remembers which victims are promised.

    A victim keeps its slot until its load is under way. Until then the victim is resident *and* promised. A promise
    ends when its load is no longer pending (done or failed), or when the victim has left.
    """

    def __init__(self) -> None:
        """Start without promises and without pins."""
        self.pinned: BoolArray | None = None  # (layers, experts), experts that never go
        self._victims: Indices = np.zeros(0, dtype=np.intp)
        self._newcomers: Indices = np.zeros(0, dtype=np.intp)

    def swap(
        self,
        layers: Indices,
        worth: Scores,
        keep: Scores,
        slots: IntArray,
        resident: BoolArray,
        pending: BoolArray,
        limit: int | IntArray,
        accept: Accept | None = None,
    ) -> list[Load]:
        """Pair the best wanted experts with the worst replaceable residents of some layers.

        Args:
            layers: the layers that want something, ascending.
            worth: ``(len(layers), experts)``, score of wanted experts, -inf for all others; overwritten.
            keep: ``(len(layers), experts)``, score of replaceable experts, +inf for all others; overwritten. This
                method excludes experts that are not resident, pending or promised.
            slots: ``(all layers,)``, capacity.
            resident: ``(all layers, experts)``.
            pending: ``(all layers, experts)``.
            limit: most loads of a layer under way, pending ones included; one number, or ``(all layers,)``.
            accept: says for ``(newcomer score, victim score)`` which swaps pay; None for all. Not asked for a
                free slot.
        """
        staying = self._staying(resident, pending)[layers]
        coming = pending[layers].sum(axis=1)
        free = slots[layers] - staying.sum(axis=1) - coming
        keep[~staying | pending[layers]] = _NEVER
        if self.pinned is not None:
            keep[self.pinned[layers]] = _NEVER
        room = np.minimum(np.broadcast_to(limit, slots.shape)[layers] - coming, worth.shape[1])
        rows = np.arange(len(layers))
        rounds: list[tuple[Indices, Indices, Indices]] = []
        for taken in range(max(0, int(room.max(initial=0)))):
            newcomer, victim = worth.argmax(axis=1), keep.argmin(axis=1)
            gain, loss = worth[rows, newcomer], keep[rows, victim]
            is_free = free > taken
            pays = loss != _NEVER
            if accept is not None:
                pays &= accept(gain, loss)
            chosen = (taken < room) & (gain != _NONE) & (is_free | pays)
            if not chosen.any():
                break
            worth[rows, newcomer] = _NONE
            keep[rows[~is_free], victim[~is_free]] = _NEVER
            victim[is_free] = -1
            rounds.append((layers[chosen], newcomer[chosen], victim[chosen]))
        if not rounds:
            return []
        where, newcomers, victims = map(np.concatenate, zip(*rounds, strict=True))
        self._promise(where * resident.shape[1], newcomers, victims)
        return list(map(Load, where.tolist(), newcomers.tolist(), victims.tolist()))

    def pin(
        self, pinned: BoolArray, scores: Scores, slots: IntArray, resident: BoolArray, pending: BoolArray
    ) -> list[Load]:
        """Let these experts never go from now on, and give the loads that bring the absent ones in.

        Args:
            pinned: ``(layers, experts)``; a layer with more of them than slots keeps some of them out.
            scores: ``(layers, experts)``; the lowest resident that is not pinned makes room.
            slots: ``(layers,)``, capacity.
            resident: ``(layers, experts)``.
            pending: ``(layers, experts)``.
        """
        self.pinned = pinned.copy()
        absent = pinned & ~resident & ~pending
        layers = np.flatnonzero(absent.any(axis=1) & (slots > 0))
        worth = np.where(absent[layers], 0.0, _NONE)
        return self.swap(layers, worth, scores[layers].copy(), slots, resident, pending, resident.shape[1])

    def _staying(self, resident: BoolArray, pending: BoolArray) -> BoolArray:
        """Forget settled promises; give the residents that are not promised away, ``(layers, experts)``."""
        if not len(self._victims):
            return resident
        open_ = pending.reshape(-1)[self._newcomers] & resident.reshape(-1)[self._victims]
        self._victims, self._newcomers = self._victims[open_], self._newcomers[open_]
        staying: BoolArray = resident.copy()
        staying.reshape(-1)[self._victims] = False
        return staying

    def _promise(self, row_start: Indices, newcomers: Indices, victims: Indices) -> None:
        swaps = victims >= 0
        self._victims = np.concatenate([self._victims, (row_start + victims)[swaps]])
        self._newcomers = np.concatenate([self._newcomers, (row_start + newcomers)[swaps]])
