"""An answer on its way from the engine's thread to the screen: pieces go in, the text comes out."""

from __future__ import annotations

import threading
from typing import NamedTuple


class Growth(NamedTuple):
    """The answer by now: its whole ``text``, of ``tokens`` pieces, the last after ``elapsed_s``."""

    text: str
    tokens: int
    elapsed_s: float


class Growing:
    """One answer under way.

    Ordering: the engine's thread adds, the screen's takes. ``add`` is True once for everything that was added since
    the last ``take``, so the writer says "there is something" as often as the reader reads, and not for each token.
    """

    def __init__(self, number: int) -> None:
        """Nothing has come for answer ``number`` yet."""
        self.number = number
        self._lock = threading.Lock()
        self._pieces: list[str] = []
        self._text = ""
        self._tokens, self._elapsed_s = 0, 0.0
        self._told = False

    def add(self, piece: str, elapsed_s: float) -> bool:
        """Append ``piece``; True when the reader has to be told."""
        with self._lock:
            self._pieces.append(piece)
            self._tokens, self._elapsed_s = self._tokens + 1, elapsed_s
            told, self._told = self._told, True
        return not told

    def take(self) -> Growth:
        """All there is."""
        with self._lock:
            self._told = False
            self._text += "".join(self._pieces)
            self._pieces.clear()
            return Growth(self._text, self._tokens, self._elapsed_s)
