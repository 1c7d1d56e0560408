"""States of conversations: records in memory, and files in a folder. A later process goes on from such a file.

A file holds one conversation. It is written under a temporary name, synchronised and renamed, so it is whole or not
there; a checksum finds damage by the disk. Its name begins with a key of the model and of every setting that changes a
state. So the files of other models are never opened. Several processes may share a folder. A file never changes once it
has its name. The process that writes a temporary file locks it.

Ordering: `Folder.find`, `read` and `write` belong to the thread that computes; files are written in a thread of their
own. No file raises an error here: a problem is a line in the log, and the prompt is computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from ..locks import RENAMES_OPEN, lock
from ..types import IdArray

State: TypeAlias = "npt.NDArray[np.uint8]"

VERSION = 1
SUFFIX, UNFINISHED = ".state", ".part"
# Bytes of all files of a folder: at most this, and at most this share of the disk's free memory.
MOST_BYTES, SHARE = 4 << 30, 0.1
# States that may wait for the disk. Each is a copy in memory.
WAITING = 2
# A template writes some tokens before an answer; the next prompt may not repeat these last tokens of a prompt.
TAIL = 8

_MAGIC = b"edgemoe state\n"
_START = struct.Struct("<14sHII")  # magic, version, bytes of the description, tokens
_DIGEST = 16
_log = logging.getLogger("edgemoe.kept")


@dataclass(eq=False)
class Mark:
    """The partial state after ``position`` tokens."""

    position: int
    state: State

    @property
    def bytes(self) -> int:
        """Count the bytes of the state."""
        return self.state.nbytes


@dataclass(eq=False)
class Kept:
    """A whole conversation: its tokens, its state, its marks, and the length of its last prompt in tokens."""

    tokens: IdArray
    state: State
    marks: list[Mark] = field(default_factory=list)
    asked: int = 0

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.state.nbytes + sum(mark.bytes for mark in self.marks) + self.tokens.nbytes


@dataclass(eq=False)
class Header:
    """The beginning of a file, which tells how much of a prompt the file's state covers.

    Attributes:
        path: of the file.
        tokens: of the conversation.
        asked: tokens of its last prompt.
        places: positions of its marks.
        sizes: bytes of its marks, then of its whole state.
        offset: where the states begin.
    """

    path: Path
    tokens: IdArray
    asked: int
    places: list[int]
    sizes: list[int]
    offset: int


class Folder:
    """The files of one model with one set of settings.

    Args:
        path: the folder; it is made when the first file is written.
        key: hexadecimal; names the model and its settings.
        most_bytes: of all files of the folder, those of other models too; None: as much as the disk allows.
    """

    def __init__(self, path: Path, key: str, most_bytes: int | None = None) -> None:
        """Remove unfinished files of killed processes; read nothing yet."""
        self.path, self._key, self._most_bytes = path, key, most_bytes
        self._known: dict[str, Header | None] = {}
        self._changed = threading.Condition()
        self._waiting: list[Kept] = []
        self._writing = False
        self._complaint = ""
        self._remove_unfinished()

    # Reading.

    def find(self, reach: Callable[[Header], int]) -> tuple[Header | None, int]:
        """Find the file with the largest result of ``reach``; also return that result."""
        best, furthest = None, 0
        for header in self._headers():
            if (tokens := reach(header)) > furthest:
                best, furthest = header, tokens
        return best, furthest

    def read(self, header: Header) -> Kept | None:
        """Read a whole file; None if the file cannot be read. A damaged file is removed."""
        try:
            with header.path.open("rb") as file:
                file.seek(header.offset)
                digest = hashlib.blake2b(digest_size=_DIGEST)
                states = []
                for size in header.sizes:
                    state = np.empty(size, np.uint8)
                    if file.readinto(state.data) != size:
                        raise ValueError("it ends early")
                    digest.update(state.data)
                    states.append(state)
                if file.read(_DIGEST + 1) != digest.digest():
                    raise ValueError("its checksum is wrong")
            os.utime(header.path)  # used last
        except ValueError as error:
            self.discard(header, str(error))
            return None
        except OSError as error:
            self._complain(f"{header.path.name} cannot be read: {error}")
            return None
        marks = [Mark(position, state) for position, state in zip(header.places, states, strict=False)]
        return Kept(header.tokens, states[-1], marks, header.asked)

    def discard(self, header: Header, reason: str) -> None:
        """Remove a file that cannot be used."""
        self._known[header.path.name] = None
        self._remove(header.path, reason)

    def _headers(self) -> Iterator[Header]:
        files = [entry for entry in self._files() if entry.name.startswith(f"{self._key}-")]
        for gone in self._known.keys() - {entry.name for entry in files}:
            self._known.pop(gone, None)
        for entry in files:
            if entry.name not in self._known:
                self._known[entry.name] = self._header(Path(entry.path))
            if (header := self._known.get(entry.name)) is not None:
                yield header

    def _header(self, path: Path) -> Header | None:
        try:
            with path.open("rb") as file:
                return _read_header(path, file)
        except (ValueError, KeyError, TypeError) as error:
            self._remove(path, str(error))
        except OSError as error:
            self._complain(f"{path.name} cannot be read: {error}")
        return None

    def _files(self) -> list[os.DirEntry[str]]:
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            return [entry for entry in entries if entry.name.endswith(SUFFIX)]
        return []

    # Writing.

    def write(self, kept: Kept) -> None:
        """Write a conversation in the background. Then remove the file of an earlier turn of the conversation."""
        with self._changed:
            self._waiting = [other for other in self._waiting if not _goes_on(kept.tokens, other.tokens, other.asked)]
            self._waiting = [*self._waiting, kept][-WAITING:]
            if not self._writing:
                self._writing = True
                threading.Thread(target=self._write_all, name="edgemoe-kept", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is on the disk; return False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writing, seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._writing = False
                    self._changed.notify_all()
                    return
                kept = self._waiting.pop(0)
            try:
                self._write(kept)
            except OSError as error:
                self._complain(f"a conversation is not kept in {self.path}: {error}")

    def _write(self, kept: Kept) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_unfinished()
        stale = [header.path for header in self._headers() if _goes_on(kept.tokens, header.tokens, header.asked)]
        most = self._room()
        if kept.bytes > most:
            return self._complain(f"a conversation of {kept.bytes >> 20} MiB is not kept: {most >> 20} MiB are allowed")
        self._shrink(most - kept.bytes, stale)
        path = self.path / f"{self._key}-{secrets.token_hex(6)}{SUFFIX}"
        unfinished = path.with_suffix(UNFINISHED)
        try:
            with open(unfinished, "xb", buffering=0, opener=_ours_alone) as file:
                lock(file)
                _write_file(file, kept)
                os.fsync(file.fileno())
                if RENAMES_OPEN:  # while the file is locked, no process takes it for a file of a killed process
                    os.rename(unfinished, path)
            if not RENAMES_OPEN:
                os.rename(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        _synchronise(self.path)
        for old in stale:
            old.unlink(missing_ok=True)
        self._shrink(self._room(), [])  # another process may have written meanwhile
        return None

    def _room(self) -> int:
        if self._most_bytes is not None:
            return self._most_bytes
        ours = sum(size for size, _, _ in self._by_use())
        return min(MOST_BYTES, int(SHARE * (shutil.disk_usage(self.path).free + ours)))

    def _shrink(self, most: int, stale: Sequence[Path]) -> None:
        """Remove the files that were used longest ago until no more than ``most`` bytes are left."""
        files = sorted(self._by_use(), key=lambda file: (file[2] not in stale, file[1]))
        total = sum(size for size, _, _ in files)
        for size, _, path in files:
            if total <= most:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _by_use(self) -> list[tuple[int, float, Path]]:
        """List the sizes, times of last use and names of all files."""
        found = []
        for entry in self._files():
            with contextlib.suppress(OSError):
                status = entry.stat()
                found.append((status.st_size, status.st_mtime, Path(entry.path)))
        return found

    def _remove_unfinished(self) -> None:
        """Remove the temporary files that no living process has locked."""
        for path in self.path.glob(f"*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                with path.open("rb") as file:
                    lock(file, wait=False)
                path.unlink(missing_ok=True)

    def _remove(self, path: Path, reason: str) -> None:
        self._complain(f"{path.name} is damaged and was removed: {reason}")
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            _log.warning(text)


def key_of(model: str, settings: Mapping[str, object]) -> str:
    """Name a model and the settings that its states depend on, as lower-case hexadecimal digits."""
    described = json.dumps({"version": VERSION, "model": model, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:24]


def common(first: IdArray, second: IdArray) -> int:
    """Count the tokens with which both begin."""
    count = min(len(first), len(second))
    differ = np.flatnonzero(first[:count] != second[:count])
    return int(differ[0]) if len(differ) else count


def _goes_on(tokens: IdArray, before: IdArray, asked: int) -> bool:
    """Tell whether ``tokens`` are a later turn of the conversation ``before``; its last answer may differ."""
    return common(tokens, before) >= min(max(asked - TAIL, 1), len(before))


def _ours_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_file(file: BinaryIO, kept: Kept) -> None:
    described = {
        "asked": kept.asked,
        "places": [mark.position for mark in kept.marks],
        "sizes": [*(mark.bytes for mark in kept.marks), kept.state.nbytes],
    }
    text = json.dumps(described).encode()
    start = _START.pack(_MAGIC, VERSION, len(text), len(kept.tokens)) + text + kept.tokens.astype("<i4").tobytes()
    digest = hashlib.blake2b(digest_size=_DIGEST)
    _write_fully(file, memoryview(start + hashlib.blake2b(start, digest_size=_DIGEST).digest()))
    for state in [*(mark.state for mark in kept.marks), kept.state]:
        digest.update(state.data)
        _write_fully(file, state.data)
    _write_fully(file, memoryview(digest.digest()))


def _write_fully(file: BinaryIO, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]


def _read_header(path: Path, file: BinaryIO) -> Header:
    """Read the beginning of a file.

    Raises:
        ValueError: it is damaged.
        KeyError: the same.
        TypeError: the same.
    """
    length = os.fstat(file.fileno()).st_size
    start = file.read(_START.size)
    if len(start) < _START.size:
        raise ValueError("it ends early")
    magic, version, described, count = _START.unpack(start)
    rest = described + 4 * count + _DIGEST
    if magic != _MAGIC or version != VERSION or _START.size + rest > length:
        raise ValueError("it does not begin as a state")
    content = file.read(rest)
    if hashlib.blake2b(start + content[:-_DIGEST], digest_size=_DIGEST).digest() != content[-_DIGEST:]:
        raise ValueError("its checksum is wrong")
    facts = json.loads(content[:described])
    tokens = np.frombuffer(content[described:-_DIGEST], "<i4").astype(np.intc)
    header = Header(path, tokens, facts["asked"], facts["places"], facts["sizes"], _START.size + rest)
    if header.offset + sum(header.sizes) + _DIGEST != length:
        raise ValueError("it ends early")
    return header


def _synchronise(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
