"""Stop an answer outside the chat with Ctrl+C, and keep the text so far. This module has no terminal code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any

from .protocol import Engine

# A signal just before the main thread falls asleep does not wake it. The thread therefore wakes at this interval.
LOOK_SECONDS = 0.05


class Interruptible:
    """Run ``produce`` in a thread and iterate over its items. The first Ctrl+C cancels the engine and goes on.

    The engine computes in native code, and Python's signal handlers have to wait until it returns. The main thread
    runs the handlers, so another thread must compute. A second Ctrl+C raises KeyboardInterrupt. Use an instance as a
    context: after the context no thread uses the engine any more, even after an error.

    Attributes:
        interrupted: True after Ctrl+C.
    """

    def __init__(self, engine: Engine, produce: Callable[[], Iterator[Any]]) -> None:
        """Store the arguments. Only the main thread may enter the context, which starts the work."""
        self.interrupted = False
        self._engine = engine
        self._produce = produce
        self._items: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edgemoe-answer", daemon=True)
        self._before: Any = None

    def __enter__(self) -> Interruptible:
        """Catch Ctrl+C and start the thread."""
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
        """Yield all items in order, and raise an error of the thread here."""
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
                    # Repeated, because the engine forgets a cancel that arrives just before it begins.
                    self._engine.cancel()
            self._items.put(("end", None))
        except BaseException as error:
            self._items.put(("error", error))
