"""Hand an answer from the engine's thread to the screen: pieces go in; thought, answer and calls come out."""

from __future__ import annotations

import threading
from typing import NamedTuple

from .calls import Delta
from .record import Answer, ToolCall


class Growth(NamedTuple):
    """Hold the state of an answer that is still growing.

    Attributes:
        answer: the answer so far.
        thinking: True if the last piece belonged to the thinking.
        tokens: number of pieces so far.
        first_s: seconds from the request to the first piece.
        elapsed_s: seconds from the request to the last piece.
    """

    answer: Answer
    thinking: bool
    tokens: int
    first_s: float
    elapsed_s: float


class Growing:
    """Collect the pieces of one answer.

    Ordering: the engine's thread calls ``add``, and the screen's thread calls ``take``. After each ``take``, only the
    first ``add`` returns True. The writer therefore notifies the reader once per reading and not for each token.
    """

    def __init__(self, number: int) -> None:
        """Begin answer ``number`` without pieces."""
        self.number = number
        self._lock = threading.Lock()
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._answer = Answer()
        self._calls: tuple[ToolCall, ...] = ()
        self._tokens, self._first_s, self._elapsed_s = 0, 0.0, 0.0
        self._thought_s: float | None = None  # seconds of the thinking that has ended
        self._thinking_since: float | None = None  # None while the model does not think
        self._notified = False

    def add(self, delta: Delta, elapsed_s: float) -> bool:
        """Append ``delta``. The result is True if the reader must be notified."""
        with self._lock:
            if delta.thought:
                self._thoughts.append(delta.thought)
                if self._thinking_since is None:
                    self._thinking_since = elapsed_s
            if delta.text or delta.calls:
                self._texts.append(delta.text)
                self._calls += delta.calls
                self._thought_s = self._thought_for(elapsed_s)
                self._thinking_since = None
            self._first_s = self._first_s if self._tokens else elapsed_s
            self._tokens, self._elapsed_s = self._tokens + 1, elapsed_s
            notified, self._notified = self._notified, True
        return not notified

    def _thought_for(self, now_s: float) -> float | None:
        if self._thinking_since is None:
            return self._thought_s
        return (self._thought_s or 0.0) + now_s - self._thinking_since

    def take(self) -> Growth:
        """Take the answer so far."""
        with self._lock:
            self._notified = False
            before = self._answer
            self._answer = Answer(
                before.text + "".join(self._texts),
                before.thought + "".join(self._thoughts),
                self._thought_for(self._elapsed_s),
                self._calls,
            )
            self._texts.clear()
            self._thoughts.clear()
            thinking = self._thinking_since is not None
            return Growth(self._answer, thinking, self._tokens, self._first_s, self._elapsed_s)
