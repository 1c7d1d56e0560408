"""Count the memory of a loaded model: llama.cpp's buffers, and the pages that are in RAM.

On Linux every page of the process is counted once, by its address. It belongs to the mapped model file, to an address
range that appeared while a buffer was allocated, or to the rest. The file's pages are split by the offsets of its
tensors. The sum is compared with the operating system's own count of the same pages.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

from .. import limits
from ..models.gguf import EXPERTS as EXPERT_NAME
from ..models.gguf import GgufFile

BEFORE = "Python and libraries, before loading"
SINCE = "vocabulary, small objects, code, since loading"
EXPERTS = "routed experts, mapped from the file"
DENSE = "other weights, mapped from the file"  # for a model in shards: all weights
LATER = "after"  # kind of the memory that is allocated after llama.cpp has made its buffers

# The states of DeepSeek-V4's compressors count as recurrent states.
_LINE = re.compile(r"(\S+)\s+(model|KV|RS|compute|output|DSV4 \w+ state) buffer size\s*=\s*([0-9.]+) MiB")
_MAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ *(.*)$")
_PAGE = 4096
Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Account:
    """Hold the memory of the process at one moment, in bytes.

    Attributes:
        parts: bytes in RAM by purpose; empty if the system does not report pages.
        resident: RSS, as the operating system reports it.
        shared: part of ``resident`` that other processes map, too; None if unknown.
        proportional: PSS: shared pages divided by the number of their users; None if unknown.
        free: bytes that programs could still allocate.
    """

    parts: dict[str, int]
    resident: int
    shared: int | None
    proportional: int | None
    free: int

    @classmethod
    def nothing(cls) -> Account:
        """Make an account without any measurement."""
        return cls({}, 0, None, None, 0)


@dataclass
class Ledger:
    """Record which address ranges appear while a model loads. Make the ledger before the load.

    Attributes:
        buffers: bytes of llama.cpp's buffers by (kind, device).
    """

    buffers: dict[tuple[str, str], int] = field(default_factory=dict)
    _before: int = 0
    _known: Ranges = field(default_factory=list)
    _claims: dict[str, Ranges] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Record the memory that the process already has."""
        self._before = resident()
        self._known = _anonymous()

    def claim(self, kind: str) -> None:
        """Assign the address ranges that are new since the last claim to ``kind``."""
        now = _anonymous()
        self._claims.setdefault(kind, []).extend(_without(now, self._known))
        self._known = now

    def take(self, file: GgufFile) -> Account:
        """Count the pages that are in RAM now."""
        parts = _count(file, self._claims) if sys.platform == "linux" else {}
        if parts:
            others = parts.pop(SINCE)
            before = min(self._before, others)  # the process may have freed some of it meanwhile
            parts = {BEFORE: before, SINCE: others - before, **parts}
        full = psutil.Process().memory_full_info()
        pss, uss = getattr(full, "pss", None), getattr(full, "uss", None)
        shared = None if uss is None else full.rss - uss
        return Account(parts, full.rss, shared, pss, limits.memory().available)


class _Buffers(logging.Handler):
    """Copy llama.cpp's messages about its buffers to a ledger. A message comes right after the allocation."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.DEBUG)
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        """Read one message."""
        if match := _LINE.search(record.getMessage()):
            kind = "RS" if match[2].startswith("DSV4") else match[2]
            key = (kind, match[1])
            self._ledger.buffers[key] = self._ledger.buffers.get(key, 0) + int(float(match[3]) * 2**20)
            self._ledger.claim(kind)


@contextmanager
def watch() -> Iterator[Ledger]:
    """Keep a ledger of the EdgeMoE model that is loaded inside the ``with`` block.

    The kinds of buffers are llama.cpp's (model, KV, RS for recurrent state, compute, output) and `LATER`.
    """
    logger, ledger = logging.getLogger("edgemoe.llama"), Ledger()
    handler, level = _Buffers(ledger), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield ledger
        ledger.claim(LATER)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def resident() -> int:
    """Count the bytes of this process in RAM, mapped files included."""
    return int(psutil.Process().memory_info().rss)


def _count(file: GgufFile, claims: dict[str, Ranges]) -> dict[str, int]:
    """Count the bytes in RAM of this process's mappings, by purpose; empty if the kernel does not report pages."""
    experts = _expert_ranges(file)
    parts = dict.fromkeys((SINCE, EXPERTS, DENSE), 0)
    try:
        with Path("/proc/self/pagemap").open("rb") as pagemap:
            for start, end, offset, name, rss in _smaps():
                wanted, rest = (claims if not name else {}), SINCE
                if name in experts:
                    wanted, rest = (
                        {EXPERTS: [(start + a - offset, start + b - offset) for a, b in experts[name]]},
                        DENSE,
                    )
                left = rss
                for what, ranges in wanted.items() if rss else ():
                    held = _present(pagemap, _common(ranges, start, end))
                    parts[what] = parts.get(what, 0) + held
                    left -= held
                parts[rest] += left
    except OSError:
        return {}
    return {what: size for what, size in parts.items() if size}


def _expert_ranges(file: GgufFile) -> dict[str, Ranges]:
    """Give the byte ranges of the routed experts in the model's file, by path; empty for a model in shards."""
    found: dict[str, Ranges] = {str(path.resolve()): [] for path in file.shards}
    if len(found) == 1:
        for name, tensor in file.run_tensors.items():
            if EXPERT_NAME.match(name):
                found[str(file.path.resolve())].append((tensor.offset, tensor.offset + tensor.bytes))
    return found


def _present(pagemap: BinaryIO, ranges: Ranges) -> int:
    """Count the bytes of ``ranges`` in RAM. Bit 63 of a page's entry marks a page in RAM."""
    total = 0
    for start, end in ranges:
        first, last = start // _PAGE, -(-end // _PAGE)
        pagemap.seek(first * 8)
        entries = np.frombuffer(pagemap.read((last - first) * 8), dtype=np.uint64)
        total += int((entries >> np.uint64(63)).sum()) * _PAGE
    return total


def _smaps() -> Iterator[tuple[int, int, int, str, int]]:
    """Yield every mapping: start, end, offset in the file, path (empty for anonymous memory) and bytes in RAM."""
    place: tuple[int, int, int, str] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := _MAP.match(line):
            place = (int(match[1], 16), int(match[2], 16), int(match[3], 16), match[4])
        elif place is not None and line.startswith("Rss:"):
            yield (*place, int(line.split()[1]) * 1024)


def _anonymous() -> Ranges:
    """List the address ranges without a file in rising order, without the heap and the stacks."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = (_MAP.match(line) for line in lines)
    return [(int(m[1], 16), int(m[2], 16)) for m in found if m and not m[4]]


def _without(ranges: Ranges, known: Ranges) -> Ranges:
    """Subtract ``known`` from ``ranges``. Both are in rising order."""
    found = []
    for start, end in ranges:
        at = start
        for a, b in known:
            if b <= at or a >= end:
                continue
            if a > at:
                found.append((at, a))
            at = max(at, b)
        if at < end:
            found.append((at, end))
    return found


def _common(ranges: Ranges, start: int, end: int) -> Ranges:
    return [(max(a, start), min(b, end)) for a, b in ranges if a < end and b > start]
