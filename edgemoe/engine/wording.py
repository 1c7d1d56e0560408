"""Turns tokens into text; a token costs the same in a short and in a long answer. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Wording:
    """The text of one answer while it grows.

    Attributes:
        stopped: True after a stop string, of which nothing is text of the answer.
    """

    def __init__(self, stops: Sequence[bytes] = ()) -> None:
        """Begin with an empty text; ``stops`` end the answer."""
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=1)
        self._text = bytearray()
        self._given = 0  # bytes that went into the decoder
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self.stopped = False

    def add(self, piece: bytes) -> None:
        """Take the bytes of the next token."""
        begin = max(0, len(self._text) - self._longest + 1)
        self._text += piece
        places = [place for stop in self._stops if (place := self._text.find(stop, begin)) >= 0]
        if places:
            del self._text[min(places) :]
            self.stopped = True

    @property
    def unfinished(self) -> bool:
        """Tell whether the text ends within a character."""
        tail = self._text[-3:]
        return any(_length(byte) > len(tail) - at for at, byte in enumerate(tail))

    def take(self, final: bool = False) -> str:
        """Give new text that is certain by now: no part of a character, no beginning of a stop string."""
        end = len(self._text) if final or self.stopped else len(self._text) - self._held()
        fresh = self._decoder.decode(bytes(self._text[self._given : end]), final=final)
        self._given = max(self._given, end)
        return fresh

    def _held(self) -> int:
        """Count the bytes at the end that may become a stop string."""
        most = min(self._longest - 1, len(self._text))
        for length in range(most, 0, -1):
            tail = bytes(self._text[-length:])
            if any(stop.startswith(tail) and len(stop) > length for stop in self._stops):
                return length
        return 0


def _length(byte: int) -> int:
    """Count the bytes of the character that begins with ``byte``; 1 if no character begins there."""
    return 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
