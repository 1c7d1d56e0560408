"""Where the memory of a loaded model is: what llama.cpp says of its buffers, what the operating system says of us."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_LINE = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([0-9.]+) MiB")


class _Buffers(logging.Handler):
    """Collects what llama.cpp says about its buffers, in bytes by (kind, where)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: dict[tuple[str, str], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Read one message."""
        if match := _LINE.search(record.getMessage()):
            key = (match[2], match[1])
            self.found[key] = self.found.get(key, 0) + int(float(match[3]) * 2**20)


@contextmanager
def buffers() -> Iterator[dict[tuple[str, str], int]]:
    """Bytes by (kind, where) of the buffers that a model of ours allocates inside the ``with`` block.

    Kinds are llama.cpp's: model, KV, RS (recurrent state), compute, output.
    """
    logger = logging.getLogger("edgemoe.llama")
    handler, level = _Buffers(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def process() -> dict[str, int]:
    """Bytes of this process in RAM: ``resident``, and of it ``mapped`` (pages of files, given back under pressure)."""
    resident = psutil.Process().memory_info().rss
    mapped = 0
    rollup = Path("/proc/self/smaps_rollup")
    if rollup.exists():
        anonymous = re.search(r"^Anonymous:\s+(\d+) kB", rollup.read_text(), re.MULTILINE)
        mapped = max(0, resident - int(anonymous[1]) * 1024) if anonymous else 0
    return {"resident": resident, "mapped": mapped, "free": psutil.virtual_memory().available}
