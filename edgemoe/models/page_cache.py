"""Measure the share of a model that the system holds in RAM.

The weights are pages of files. The system reads a page on first use and drops it when it needs the RAM.

**Source**: mincore(2). It reports the system's file cache, so pages that another process read count, too.
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

# Number of sampled pages, evenly spread. The share is exact to about 0.01 and takes some milliseconds at any file size.
SAMPLES = 2048
WATCH_SECONDS = 0.25

Stretch: TypeAlias = tuple[Path, int, int]  # a part of a file: path, first byte, number of bytes


class Residence:
    """Measure which share of some stretches of files is in RAM."""

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        """Map the files without reading them."""
        self._pages: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]] = []  # a mapped file, its sampled pages
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
        """Sample the routed experts of a model, without an MTP head."""
        tensors = [tensor for name, tensor in file.run_tensors.items() if EXPERTS.match(name)]
        return cls((file.shards[tensor.shard], tensor.offset, tensor.bytes) for tensor in tensors)

    def share_in_ram(self) -> float | None:
        """Measure the share of the bytes in RAM, 0..1; None if the system does not report it."""
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
    """Watch files while they are read. Another thread calls ``tell`` with the share in RAM when it has changed."""
    try:
        residence = Residence((path, 0, path.stat().st_size) for path in paths)
    except (OSError, ValueError):  # no file, or an empty one: its reader raises the error
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
