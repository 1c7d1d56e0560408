"""How much of a model the system holds in RAM: its weights are pages of files, read when needed and dropped when not.

**Source**: mincore(2). It tells of the system's file cache, so also of what nobody has read through this process yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .gguf import EXPERTS, GgufFile

# Pages looked at, evenly spread: a share is known to about a hundredth, in some milliseconds whatever the size.
SAMPLES = 2048
WATCH_SECONDS = 0.25

Stretch: TypeAlias = tuple[Path, int, int]  # of a file: where it begins, and its bytes


class Residence:
    """Stretches of files on their way between disk and RAM."""

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        """Map the files; nothing is read."""
        self._pages: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]] = []  # a file, pages of it to look at
        self._mincore = _mincore()
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for path, start, length in stretches:
            by_file.setdefault(path, []).append((start, length))
        total = sum(length for places in by_file.values() for _, length in places)
        step = max(total // SAMPLES, mmap.PAGESIZE)
        for path, places in by_file.items():
            offsets = np.concatenate([np.arange(start, start + length, step) for start, length in places])
            view = np.memmap(path, dtype=np.uint8, mode="r")
            self._pages.append((view, offsets // mmap.PAGESIZE * mmap.PAGESIZE))

    @classmethod
    def of_experts(cls, file: GgufFile) -> Residence:
        """Look at the routed experts of a model, those of an MTP head left out."""
        tensors = [tensor for name, tensor in file.run_tensors.items() if EXPERTS.match(name)]
        return cls((file.shards[tensor.shard], tensor.offset, tensor.bytes) for tensor in tensors)

    def share_in_ram(self) -> float | None:
        """Share of the bytes that a read would not fetch from the disk, 0..1; None where nobody tells."""
        state, found, asked = ctypes.c_ubyte(), 0, 0
        for view, pages in self._pages:
            if self._mincore is None:
                return None
            for page in (view.ctypes.data + pages).tolist():
                if self._mincore(page, 1, ctypes.byref(state)) != 0:
                    return None
                found += state.value & 1
            asked += len(pages)
        return found / asked if asked else None


@contextlib.contextmanager
def watched(paths: Iterable[Path], tell: Callable[[float], None]) -> Iterator[None]:
    """While files are read: ``tell`` the share of them that is in RAM, in another thread, when it has changed."""
    try:
        residence = Residence((path, 0, path.stat().st_size) for path in paths)
    except (OSError, ValueError):  # no file, or an empty one: whoever reads it says so
        yield
        return
    done = threading.Event()

    def watch() -> None:
        before: float | None = None
        while not done.wait(WATCH_SECONDS):
            if (share := residence.share_in_ram()) is not None and share != before:
                tell(share)
                before = share

    thread = threading.Thread(target=watch, name="edgemoe-reading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _mincore() -> Any:
    if sys.platform == "win32":
        return None
    function = getattr(ctypes.CDLL(None), "mincore", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return function
