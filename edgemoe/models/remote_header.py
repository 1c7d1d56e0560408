"""Headers of model files on the hub, read piece by piece without the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BadGguf, ModelNotFound
from . import gguf
from .gguf import GgufFile
from .hub import Download

ReadRange = Callable[[int, int], bytes]
FIRST_BYTES = 1 << 20
# Vocabularies with their merges take some MiB; no header is larger than this.
MOST_BYTES = 31 << 20


@dataclass(frozen=True)
class Part:
    """Describe a file that is read by ranges.

    Attributes:
        name: name of the file, without folders.
        size: bytes of the whole file.
        read_range: reads bytes, given ``offset`` and ``length``. It may return fewer at the end of the file.
    """

    name: str
    size: int
    read_range: ReadRange


def header_from(parts: Sequence[Part]) -> GgufFile:
    """Read the header of a model, all shards in order, `MOST_BYTES` of each at most.

    ``path`` and ``shards`` of the result are only names: no such files exist on this disk.

    Raises:
        BadGguf: a file is not GGUF, or its header is damaged or longer than `MOST_BYTES`.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / part.name for part in parts]
        for part, path in zip(parts, paths, strict=True):
            _download_header(part, path)
        file = gguf.check(paths[0])
    names = tuple(Path(part.name) for part in parts)
    return replace(file, path=names[0], shards=names)


def header_of(plan: Download) -> GgufFile:
    """Read the header of a model of the hub: from the disk if all files are there, else by range requests.

    Raises:
        ModelNotFound: the hub lacks a file; or the disk lacks a file, and HF_HUB_OFFLINE is set.
        EdgeMoEError: the hub refuses, does not answer, or sends whole files instead of parts.
        BadGguf: the header is damaged.
    """
    from huggingface_hub import constants

    from .hub import cache
    from .hub.ranges import opened

    here = [cache.path_of(plan, file) for file in plan.files]
    if all(path.is_file() for path in here):
        return gguf.check(here[0])
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(f"offline, and {plan.repo} is not on this disk", "unset HF_HUB_OFFLINE to look at the hub")
    return header_from([Part(Path(file.name).name, *opened(plan, file)) for file in plan.files])


def _download_header(part: Part, path: Path) -> None:
    """Download the header of a file to ``path``. The weights become a hole in the file, which takes no disk space."""
    done, wanted = 0, FIRST_BYTES
    with path.open("wb") as stream:
        while True:
            piece = part.read_range(done, min(wanted, part.size) - done)
            stream.write(piece)
            done += len(piece)
            stream.truncate(part.size)
            stream.flush()
            try:
                gguf.read_one(path)
                return
            except BadGguf:
                if not piece or done >= min(part.size, MOST_BYTES) or not _looks_right(path):
                    raise
            wanted = min(2 * wanted, MOST_BYTES)


def _looks_right(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"
