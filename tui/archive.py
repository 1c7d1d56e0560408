"""The database of conversations in a thread of its own: the screen hands it jobs and never waits for a disk.

Ordering: jobs run one after the other in the order they were handed over, so what is read has seen all that was
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
    """Owns one :class:`Store`; every method may be called from any thread."""

    def __init__(self, path: Path, tell: Callable[[str], object]) -> None:
        """Begin to open ``path``; ``tell`` gets sentences for the user, in this object's thread."""
        self._path, self._tell = path, tell
        self._store: Store | None = None
        self._thread = ThreadPoolExecutor(1, "edgemoe-archive")
        self._thread.submit(self._open)

    def do(self, job: Callable[[Store], Result]) -> Future[Result]:
        """Run ``job`` after all that was handed over before; its error is raised by the future.

        Raises:
            RuntimeError: the archive is closed.
        """
        return self._thread.submit(self._run, job)

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
            self._tell(f"Conversations are not kept: {error}.")
            return
        for note in self._store.notes:
            self._tell(note)

    def _run(self, job: Callable[[Store], Result]) -> Result:
        if self._store is None:
            raise sqlite3.OperationalError("the database of conversations is not open")
        return job(self._store)

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
