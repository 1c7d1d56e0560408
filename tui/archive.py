"""The database of conversations in a thread of its own: the screen hands it jobs and never waits for a disk.

Ordering: jobs run one after the other in the order they were handed over, so a job reads all that was
written before. Ids of rows are known in this thread only: a :class:`~edgemoe.tui.records.Key` carries them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from .store import Store

Result = TypeVar("Result")


class Archive:
    """Owns one :class:`Store`; every method may be called from any thread.

    Attributes:
        is_failing: something is not saved, as on a full disk. The next change tries it again.
    """

    def __init__(self, path: Path, tell: Callable[[str], object]) -> None:
        """Begin to open ``path``; ``tell`` gets sentences for the user, in this object's thread."""
        self._path, self._tell = path, tell
        self._store: Store | None = None
        self._unsaved: list[
            Callable[[Store], None]
        ] = []  # the archive's thread: changes that the disk has not taken yet
        self.is_failing = False
        self._thread = ThreadPoolExecutor(1, "edgemoe-archive")
        self._thread.submit(self._open)

    def do(self, job: Callable[[Store], Result]) -> Future[Result]:
        """Run ``job`` after all that was handed over before; its error is raised by the future.

        Raises:
            RuntimeError: the archive is closed.
        """
        return self._hand(lambda: job(self._opened()))

    def save(self, change: Callable[[Store], None], passing: bool = False) -> Future[None]:
        """Run ``change`` after every change that an earlier failure has left; failures are told once.

        Args:
            change: writes to the database.
            passing: a later change holds all of this one, so it need not be tried again.
        """
        return self._hand(lambda: self._save(change, passing))

    def _hand(self, work: Callable[[], Result]) -> Future[Result]:
        return self._thread.submit(work)

    def _save(self, change: Callable[[Store], None], passing: bool) -> None:
        self._unsaved.append(change)
        try:
            store = self._opened()
            while self._unsaved:
                self._unsaved[0](store)
                self._unsaved.pop(0)
        except sqlite3.Error as error:
            if passing:
                self._unsaved.pop()
            self._fail(error)
        else:
            if self.is_failing:
                self.is_failing = False
                self.tell("Everything is saved again.")

    def _fail(self, error: Exception) -> None:
        if not self.is_failing:
            self.is_failing = True
            self.tell(
                f"The conversation is not being saved: {in_short(error)}. Every message tries again; /export too."
            )

    def tell(self, text: str) -> None:
        """Say something to the user."""
        self._tell(text)

    def close(self) -> None:
        """Finish every job, then close the database."""
        self._thread.submit(self._close)
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            self._store = Store(self._path)
        except (OSError, sqlite3.Error) as error:
            self.is_failing = True
            self._tell(f"Conversations are not kept: {in_short(error)}.")
            return
        for note in self._store.notes:
            self._tell(note)

    def _opened(self) -> Store:
        """Give the database; one that could not be opened is tried again."""
        if self._store is None:
            try:
                self._store = Store(self._path)
            except OSError as error:
                raise sqlite3.OperationalError(in_short(error)) from error
        return self._store

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()


def in_short(error: Exception) -> str:
    """Say ``error`` without numbers and paths."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
