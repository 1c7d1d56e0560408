"""The experts of a model that is larger than the RAM: some in RAM of ours, the others read from the disk on demand."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np

from .. import limits
from ..errors import EdgeMoEError
from ..models.gguf import EXPERTS, GgufFile, GgufTensor
from ..planning.third_tier import at_once, fitted, spare_bytes
from ..types import FloatArray
from .binding import ExpertPlace, NativeEngine
from .opening import Attempt, Opening

# Seconds from one look at the free RAM to the next. A look takes about a millisecond.
WATCH_SECONDS = 1.0
# The core's numbers for projections.
_PROJECTIONS = ("gate", "up", "down", "gate_up")


def applies(opening: Opening, attempt: Attempt) -> bool:
    """Tell whether the experts are too large for the RAM, and the weights are pages of a file."""
    return attempt.ram_bytes is not None and opening.maps_weights and not opening.keywords.get("use_mlock")


class RamWatch:
    """Follows the free RAM while the model runs: experts make room for other programs, and come back later.

    A step of the model calls `look`. One thread at a time.
    """

    def __init__(self, native: NativeEngine, budget: int, notes: list[str]) -> None:
        """Begin with ``budget`` bytes of RAM for experts; ``notes`` gets a sentence when they become fewer."""
        self._native, self._most, self._budget, self._notes = native, budget, budget, notes
        self._looked_at = time.monotonic()
        self._told = False

    def look(self) -> None:
        """Change the budget if the free RAM asks for it; at most once in `WATCH_SECONDS`."""
        now = time.monotonic()
        if now - self._looked_at < WATCH_SECONDS:
            return
        self._looked_at, memory = now, limits.memory()
        used, spare = self._native.stats().ram_bytes, spare_bytes(memory.total)
        budget = fitted(self._budget, self._most, used, memory.available, spare)
        if budget == self._budget:
            return
        self._budget = budget
        self._native.resize_ram(budget)
        if budget < self._most and not self._told:
            self._told = True
            self._notes.append(f"Other programs need the RAM: {budget / 2**30:.1f} GiB are left for experts.")


def open_ram(native: NativeEngine, opening: Opening, attempt: Attempt, notes: list[str]) -> RamWatch | None:
    """Let the core read experts from the disk; return None if it cannot, and the system's file cache has to do.

    Args:
        native: the core's engine, with the model loaded and without slots.
        opening: the model.
        attempt: the placement that the model was loaded by.
        notes: gets a sentence for the user.
    """
    needs, budget = opening.needs, attempt.ram_bytes or 0
    try:
        native.open_ram(opening.file.shards, places(opening.file), budget, at_once(needs))
    except EdgeMoEError as error:
        notes.append(f"The RAM is too small for the experts, and they cannot be read past the file cache: {error}.")
        return None
    kept, all_bytes = min(budget, needs.expert_bytes) / 2**30, needs.expert_bytes / 2**30
    notes.append(f"The RAM holds {kept:.1f} of {all_bytes:.1f} GiB of experts; the disk has the others.")
    return RamWatch(native, budget, notes)


def fill(native: NativeEngine, heat: FloatArray | None) -> None:
    """Read the hottest experts that are not on the device, in the background."""
    native.fill_ram(None if heat is None else np.ascontiguousarray(heat, dtype=np.float32))


def places(file: GgufFile) -> list[ExpertPlace]:
    """List the tensors of routed experts with their places in the files."""
    found = []
    for name, tensor in file.run_tensors.items():
        if (match := EXPERTS.match(name)) and match[2] == "weight":
            part = name.split(".")[2].removeprefix("ffn_").removesuffix("_exps")
            found.append(ExpertPlace(int(match[1]), _PROJECTIONS.index(part), tensor.shard, tensor.offset))
    return found


def read_dense(file: GgufFile) -> None:
    """Let the system read all weights but the experts; the load then finds them in the file cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    by_shard: dict[int, list[GgufTensor]] = {}
    for name, tensor in file.run_tensors.items():
        if not EXPERTS.match(name):
            by_shard.setdefault(tensor.shard, []).append(tensor)
    for shard, tensors in by_shard.items():
        with _opened(str(file.shards[shard])) as handle:
            for tensor in sorted(tensors, key=lambda t: t.offset):
                os.posix_fadvise(handle, tensor.offset, tensor.bytes, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
