"""Turns to compute: one answer at a time, each with an account and a cancel of its own.

Ordering: a turn is taken for one step of a stream, or for a whole answer. The lock of a turn may be taken again by the
same thread. ``cancel`` may come from any thread, at any moment, without the lock. It ends answers under way, and no
answer that begins later. A model that was opened before a fork cannot compute in the child: the copy there has no
threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

from ..errors import EdgeMoEError
from . import host
from .binding import NativeEngine
from .meter import Meter


class Turn:
    """One answer under way.

    Attributes:
        meter: account of the answer; None for a computation outside an answer.
        cancelled: True if the answer must end.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        """Begin without a cancel."""
        self.meter, self.cancelled = meter, False


class Turns:
    """The turns of one model."""

    def __init__(self, native: NativeEngine, verbose: bool) -> None:
        """Begin without a turn; with ``verbose`` llama.cpp's messages may be seen."""
        self._native, self._verbose = native, verbose
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._unfinished: weakref.WeakSet[Turn] = weakref.WeakSet()
        self._leaver: int | None = None  # the thread that ends the program
        self._closed = False
        self._current: Turn | None = None
        self._holder: int | None = None  # the thread that has the turn

    @property
    def current(self) -> Turn | None:
        """Give the turn that this thread has, None if it has no turn."""
        return self._current if self._holder == threading.get_ident() else None

    @property
    def ours(self) -> bool:
        """Tell whether this process opened the model."""
        return os.getpid() == self._process

    @contextlib.contextmanager
    def taking(self, turn: Turn) -> Iterator[None]:
        """Compute for ``turn``; other threads wait.

        Raises:
            EdgeMoEError: the model is closed, or was opened in another process.
        """
        if not self.ours:
            raise EdgeMoEError("the model was opened in another process", "open it after the fork, or spawn")
        self._lock.acquire()
        try:
            if self._current is None and self._leaver not in (None, threading.get_ident()):
                self._lock.release()
                threading.Event().wait()  # never returns: the end of the program leaves this thread behind
            if self._closed:
                raise EdgeMoEError("the model is closed")
            before, self._current = self._current, turn
            self._holder = threading.get_ident()
            self._unfinished.add(turn)
            self._native.cancel(turn.cancelled)
            try:
                with host.computing(self._verbose):
                    yield
            finally:
                self._current = before
                self._holder = self._holder if before is not None else None
                if not self._closed:
                    self._native.cancel(before is not None and before.cancelled)
        finally:
            self._lock.release()

    def finish(self, turn: Turn) -> None:
        """End ``turn``: nothing more is computed for it."""
        self._unfinished.discard(turn)

    @property
    def cancelled(self) -> bool:
        """Tell whether the turn of this thread must end."""
        return self.current is not None and self.current.cancelled

    def cancel(self) -> None:
        """End all answers that are under way."""
        for turn in self._all():
            turn.cancelled = True
        current = self._current
        if current is not None and current.cancelled and not self._closed:
            self._native.cancel(True)
            if (now := self._current) is not current:  # a turn that began in between
                self._native.cancel(now is not None and now.cancelled)

    def _all(self) -> list[Turn]:
        while True:
            try:
                return list(self._unfinished)
            except RuntimeError:  # another thread begins or ends a turn meanwhile
                continue

    def quiet(self, seconds: float) -> bool:
        """Wait until no other thread computes; return False if that takes longer."""
        if not self.ours or not self._lock.acquire(timeout=seconds):
            return False
        self._lock.release()
        return True

    def leave(self, seconds: float) -> bool:
        """Stop the computations of other threads, because the program ends; return False if one goes on.

        No other thread gets a turn afterwards.
        """
        self._leaver = threading.get_ident()
        self.cancel()
        return self.ours and self._lock.acquire(timeout=seconds)

    @property
    def open(self) -> bool:
        """Tell whether this process opened the model and has not closed it."""
        return self.ours and not self._closed

    def close(self) -> None:
        """Stop the computations of other threads, wait for them, and give no more turns."""
        self.cancel()
        with self._lock:
            self._closed = True
