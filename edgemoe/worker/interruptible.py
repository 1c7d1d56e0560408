"""An answer outside the chat that Ctrl+C stops: what was generated is kept. No terminal code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any

from .protocol import Engine

# A signal that comes just before the main thread falls asleep does not wake it: it has to look for itself.
LOOK_SECONDS = 0.05


class Interruptible:
    """Iterates over what ``produce`` yields in a thread; the first Ctrl+C cancels the engine and goes on.

    The engine computes in native code, where a Python signal handler has to wait; so the main thread, which
    runs the handlers, must be elsewhere. A second Ctrl+C raises KeyboardInterrupt. Use it as a context: when
    it ends, nobody computes with the engine any more, whatever happened.

    Attributes:
        interrupted: Ctrl+C was pressed.
    """

    def __init__(self, engine: Engine, produce: Callable[[], Iterator[Any]]) -> None:
        """Nothing runs before the context is entered, which only the main thread may do."""
        self.interrupted = False
        self._engine = engine
        self._produce = produce
        self._items: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edgemoe-answer", daemon=True)
        self._before: Any = None

    def __enter__(self) -> Interruptible:
        """Catch Ctrl+C and begin."""
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engine if it still runs, and wait for it."""
        if self._thread.is_alive():
            self._engine.cancel()
            self._thread.join()
        signal.signal(signal.SIGINT, self._before)

    def __iter__(self) -> Iterator[Any]:
        """Everything produced, in order; an error of the thread is raised here."""
        while True:
            try:
                kind, value = self._items.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self._engine.cancel()

    def _work(self) -> None:
        try:
            for item in self._produce():
                self._items.put(("item", item))
                if self.interrupted:
                    # Said again: a cancel just before the engine began would have been forgotten.
                    self._engine.cancel()
            self._items.put(("end", None))
        except BaseException as error:
            self._items.put(("error", error))
