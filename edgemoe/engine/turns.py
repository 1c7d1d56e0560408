"""Whose turn it is to compute: one answer at a time, each with an account and a cancel of its own.

Ordering: a turn is taken for one step of a stream, or for a whole answer, under a lock that the same thread may take
again. ``cancel`` may come from any thread, at any moment, without the lock: it ends what is under way, and nothing that
begins later. A model that was opened before a fork cannot compute in the child, whose copy of it has no threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

from ..errors import EdgeMoEError
from .binding import NativeEngine
from .meter import Meter


class Turn:
    """One answer under way.

    Attributes:
        meter: its account; None for a computation outside an answer.
        cancelled: it shall end.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        """Not cancelled."""
        self.meter, self.cancelled = meter, False


class Turns:
    """The turns of one model.

    Attributes:
        current: the turn under way, None between turns.
    """

    def __init__(self, native: NativeEngine) -> None:
        """Nobody computes."""
        self._native = native
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._unfinished: weakref.WeakSet[Turn] = weakref.WeakSet()
        self.current: Turn | None = None

    @contextlib.contextmanager
    def taking(self, turn: Turn) -> Iterator[None]:
        """Compute for ``turn``; other threads wait.

        Raises:
            EdgeMoEError: the model was opened in another process.
        """
        if os.getpid() != self._process:
            raise EdgeMoEError("the model was opened in another process", "open it after the fork, or spawn")
        with self._lock:
            before, self.current = self.current, turn
            self._unfinished.add(turn)
            self._native.cancel(turn.cancelled)
            try:
                yield
            finally:
                self.current = before
                self._native.cancel(before is not None and before.cancelled)

    def finish(self, turn: Turn) -> None:
        """No more will be computed for ``turn``."""
        self._unfinished.discard(turn)

    @property
    def cancelled(self) -> bool:
        """The turn under way shall end."""
        return self.current is not None and self.current.cancelled

    def cancel(self) -> None:
        """End all answers that are under way."""
        for turn in list(self._unfinished):
            turn.cancelled = True
        if self.cancelled:
            self._native.cancel(True)

    def quiet(self, seconds: float) -> bool:
        """Wait until nobody else computes; False when it takes longer."""
        if os.getpid() != self._process or not self._lock.acquire(timeout=seconds):
            return False
        self._lock.release()
        return True
