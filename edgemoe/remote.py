"""Headers of model files that are somewhere else: read piece by piece, without the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import gguf
from .errors import BadGguf
from .gguf import GgufFile

ReadRange = Callable[[int, int], bytes]
FIRST_BYTES = 1 << 20
# Vocabularies with their merges take some MiB; no header is larger than this.
MOST_BYTES = 31 << 20


def header_from(read_range: ReadRange, size: int, name: str) -> GgufFile:
    """Read the header of one GGUF file through a function that reads parts of it, `MOST_BYTES` at most.

    Args:
        read_range: gives ``length`` bytes from ``offset``; may give less at the end of the file.
        size: bytes of the whole file.
        name: of the file, for messages; ``path`` of the result is just this.

    Raises:
        BadGguf: it is no GGUF file, or its header is damaged or longer than `MOST_BYTES`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        done, wanted = 0, FIRST_BYTES
        with path.open("wb") as stream:
            while True:
                part = read_range(done, min(wanted, size) - done)
                stream.write(part)
                done += len(part)
                stream.truncate(size)  # the weights are a hole: they take no space and are never read
                stream.flush()
                try:
                    file = gguf.check(path)
                    break
                except BadGguf as error:
                    start_is_wrong = stream.tell() >= 4 and not _looks_right(path)
                    if start_is_wrong or not part or done >= min(size, MOST_BYTES):
                        raise BadGguf(str(error).replace(path.name, name), gguf.HINT) from error
                wanted = min(2 * wanted, MOST_BYTES)
    return replace(file, path=Path(name), shards=(Path(name),))


def _looks_right(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"
