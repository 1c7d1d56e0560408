"""Send pickled objects through the two pipes between an engine and its parent, with the same code on every system."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
from io import FileIO
from typing import Any

_SIZE = struct.Struct("<Q")
# The first bytes that a child sends. Other output may come before them while its interpreter starts.
_READY = b"\x00edgemoe engine\x00"


class Pipe:
    """Hold one end of the pipes. One thread at a time may send, and one thread at a time may receive."""

    def __init__(self, incoming: FileIO, outgoing: FileIO) -> None:
        """Take both files, which must be unbuffered."""
        self._incoming, self._outgoing = incoming, outgoing

    @classmethod
    def to_child(cls, process: subprocess.Popen[bytes]) -> Pipe:
        """Make the parent's end. The child must have been started with pipes as its standard input and output."""
        assert isinstance(process.stdin, FileIO) and isinstance(process.stdout, FileIO), "bufsize=0 is needed"
        return cls(process.stdout, process.stdin)

    @classmethod
    def to_parent(cls) -> Pipe:
        """Make the child's end from its standard input and output. Later output goes to the error output."""
        sys.stdout.flush()
        incoming, outgoing = (FileIO(os.dup(number), mode) for number, mode in ((0, "rb"), (1, "wb")))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        pipe = cls(incoming, outgoing)
        pipe._write(_READY)
        return pipe

    def await_child(self) -> None:
        """Skip all output before the child's first bytes.

        Raises:
            EOFError: the child ended first.
        """
        seen = b""
        while not seen.endswith(_READY):
            seen = seen[1 - len(_READY) :] + self._read(1)

    def send(self, value: Any) -> None:
        """Send an object.

        Raises:
            OSError: the other side has ended.
        """
        data = pickle.dumps(value)
        self._write(_SIZE.pack(len(data)) + data)

    def recv(self) -> Any:
        """Wait for an object.

        Raises:
            EOFError: the other side has ended.
        """
        (size,) = _SIZE.unpack(self._read(_SIZE.size))
        return pickle.loads(self._read(size))

    def close(self) -> None:
        """Close both directions."""
        for file in (self._incoming, self._outgoing):
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, data: bytes) -> None:
        if self._outgoing.closed:
            raise BrokenPipeError("the pipe is closed")
        rest = memoryview(data)
        while rest:
            rest = rest[self._outgoing.write(rest) :]

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            if not (got := self._incoming.readinto(rest)):
                raise EOFError
            rest = rest[got:]
        return data
