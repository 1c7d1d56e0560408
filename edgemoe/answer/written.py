"""Write an answer of ``edgemoe run``: the text on stdout, thinking and figures on stderr. No terminal code."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from ..text.display import duration, visible
from .calls import Delta, in_words
from .growth import Growing
from .receipt import Receipt, breaking_off, what_cut

_HELP = {"length": "a larger --max-tokens allows more", "full": "a larger --ctx makes room"}


class Written:
    """Write one answer while it grows. Control characters are removed for a terminal and kept for a file."""

    def __init__(self, limit: int | None) -> None:
        """Begin an answer of at most ``limit`` tokens; None means the rest of the context."""
        self._limit = limit
        self._growing, self._began = Growing(0), time.perf_counter()
        self._last: Mapping[str, Any] = {}
        self._thinking = False
        self._shows_thinking = sys.stderr.isatty()
        self._shown = visible if sys.stdout.isatty() else str

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Write one chunk."""
        self._last = chunk
        delta = Delta.of(chunk)
        if delta:
            self._growing.add(delta, time.perf_counter() - self._began)
        if delta.thought and self._shows_thinking:
            self._talk("" if self._thinking else "thinking ...\n", visible(delta.thought))
            self._thinking = True
        if delta.text or delta.calls:
            self._end_thinking()
            print(self._shown(delta.text), end="", flush=True)

    def end(self, interrupted: bool) -> None:
        """Finish a complete or ``interrupted`` answer: write the calls, the reason of a cut, and the figures."""
        self._end_thinking()
        answer, receipt = self._growing.take().answer, Receipt.of(self._last)
        if answer.text:
            print(flush=True)
        for call in answer.calls:
            self._talk(in_words(call), "\n")
        reason = self._last["choices"][0].get("finish_reason") if self._last else None
        cut = what_cut(str(reason), receipt, self._limit)
        if not interrupted and (how := breaking_off(cut, answer)):
            self._talk(f"note: the answer was {how}; {_HELP[cut]}\n")
        self._talk(receipt.statistics(), "\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            spent = duration(self._growing.take().answer.thought_s or 0.0)
            self._talk(f"\n(thought for {spent})\n\n")

    def _talk(self, *parts: str) -> None:
        print(*parts, sep="", end="", file=sys.stderr, flush=True)
