"""The contract of a placement policy, and the memory that every policy needs.

A policy sees which experts every token used and which are resident, and answers with loads. It has no clock:
its time is the number of decode tokens observed, so the same calls give the same answers, in the engine and
in a replay.

One round of the engine, between two decode steps::

    policy.observe(ids, resident, decode=True)
    for load in policy.choose(resident, pending, max_per_layer): submit(load)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...types import BoolArray, FloatArray, IdArray, Load, ModelShape

IntArray = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
Scores = npt.NDArray[np.float64]


class Policy(Protocol):
    """Decides which experts deserve a slot. One object per loaded model, used by one thread at a time.

    Arrays handed in stay the caller's and are not kept. ``resident`` and ``pending`` have the shape ``(layers,
    experts)``. The device can compute a resident expert now. A pending expert is submitted, but not on the device yet.
    The victim of a pending load may still be resident.
    """

    @property
    def name(self) -> str:
        """Return the name that users choose this policy by."""
        ...

    def start(self, heat: FloatArray | None) -> list[Load]:
        """Give the loads that fill an empty device, in the order to submit them; call once, first.

        Args:
            heat: ``(layers, experts)``, how often each expert was used in the past. None when nothing is
                known: then the first experts of each layer.

        Returns:
            one load per slot, all layers filling evenly, the hottest experts first.
        """
        ...

    def observe(self, ids: IdArray, resident: BoolArray, decode: bool) -> None:
        """Learn from one computed batch.

        Args:
            ids: ``(tokens, layers, used)``, experts in running order of the tokens, -1 where missing.
            resident: experts on the device when the batch ran.
            decode: False for a prefill, which counts as heat but moves nothing.
        """
        ...

    def choose(self, resident: BoolArray, pending: BoolArray, max_per_layer: int | IntArray) -> list[Load]:
        """Give the loads to submit now, after the latest ``observe``.

        No load is of a resident or pending expert. The latest decode batch did not use a victim; a victim is not
        pending, and no pending load has its slot. ``victim`` is -1 if the layer has a slot that is neither occupied nor
        promised. Nothing moves if the latest batch was a prefill.

        Args:
            resident: experts on the device now.
            pending: experts on their way.
            max_per_layer: most loads of a layer under way at once, those in ``pending`` included; one number for
                all, or ``(layers,)``.
        """
        ...

    def resize(self, slots: IntArray, resident: BoolArray) -> list[Load]:
        """Adopt a new capacity and give the loads that fill the free slots, hottest experts first.

        The caller empties a layer that it shrinks; the hottest experts come back through the loads given here.

        Args:
            slots: the new capacity of each layer, ``(layers,)``, already allocated.
            resident: experts that stayed on the device. A layer with more of them than slots gets no loads.
        """
        ...

    def pin(self, pinned: BoolArray, resident: BoolArray, pending: BoolArray) -> list[Load]:
        """Keep these experts from now on, and give the loads that bring the absent ones in.

        Args:
            pinned: ``(layers, experts)``; replaces the pins before.
            resident: experts on the device now.
            pending: experts on their way.
        """
        ...

    def heat(self) -> FloatArray:
        """Count the uses of each expert so far, ``(layers, experts)``, prefill included; a copy."""
        ...


class Ledger:
    """The uses of every expert so far, and the experts of the latest decode batch.

    A flat index is ``layer * experts + expert``.

    Attributes:
        shape: geometry of the model.
        slots: capacity of each layer, ``(layers,)``.
        uses: use counts, ``(layers, experts)``, prefill included.
        latest: used by the latest decode batch, ``(layers, experts)``; all False after a prefill.
        decode_tokens: decode tokens observed.
    """

    def __init__(self, shape: ModelShape, slots: IntArray) -> None:
        """Start with nothing seen.

        Args:
            shape: geometry of the model.
            slots: capacity of each layer, ``(layers,)``; copied.
        """
        self.shape = shape
        self.slots = np.array(slots, dtype=np.int32)
        assert self.slots.shape == (shape.layers,)
        self.uses: Scores = np.zeros((shape.layers, shape.experts))
        self.latest: BoolArray = np.zeros((shape.layers, shape.experts), dtype=np.bool_)
        self.decode_tokens = 0
        self._row_start = (np.arange(shape.layers, dtype=np.intp) * shape.experts)[:, None]

    def decode(self, ids: IdArray) -> list[Indices]:
        """Record one decode batch; gives the experts of each token as flat indices."""
        self.latest.fill(False)
        self.decode_tokens += len(ids)
        tokens = []
        for token in ids:
            used = self._flat(token)
            self.uses.reshape(-1)[used] += 1.0
            self.latest.reshape(-1)[used] = True
            tokens.append(used)
        return tokens

    def prefill(self, ids: IdArray) -> None:
        """Record one prefill batch: it counts as use, but leaves no expert in `latest`."""
        self.latest.fill(False)
        self.uses += np.bincount(self._flat(ids), minlength=self.uses.size).reshape(self.uses.shape)

    def heat(self) -> FloatArray:
        """Copy the use counts."""
        return self.uses.astype(np.float32)

    def _flat(self, ids: IdArray) -> Indices:
        flat: Indices = (ids + self._row_start).reshape(-1)
        if ids.size and ids.min() < 0:
            flat = flat[ids.reshape(-1) >= 0]
        return flat
