"""The desk: lets requests in, in their order, and gets their answers from an engine in a child process.

The engine is loaded with the first request, and may be unloaded after some idle time. If the child dies, the requests
under way get an error, the requests that wait do not: a new child answers them.

Ordering: every method runs in the event loop. Loads and unloads run in a thread; ``_changing`` lets one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from ..errors import ComputeFailed
from ..worker import EngineDied, RemoteEngine, Worker
from .failures import Refused

# Guess of the seconds that an answer takes, before there was one.
GUESS_SECONDS = 5.0


class Desk:
    """Gives the requests of one model to its engine.

    Attributes:
        name: of the model, as requests give it.
        running: requests that are being answered.
        waiting: requests that wait for their turn.
        restarts: engines that died.
    """

    def __init__(
        self, name: str, opener: Callable[[], Any], parallel: int, queue: int, idle_seconds: float | None = None
    ) -> None:
        """Serve a model; nothing is loaded yet.

        Args:
            name: of the model.
            opener: opens the engine in the child; it must survive pickling.
            parallel: requests that are answered at once.
            queue: requests that may wait beside them.
            idle_seconds: idle time after which the engine is unloaded; None: it stays.
        """
        self.name, self.parallel, self._queue, self._idle_seconds = name, parallel, queue, idle_seconds
        self._opener = opener
        self.running = self.waiting = self.restarts = 0
        self._turns = asyncio.Semaphore(parallel)
        self._engine: RemoteEngine | None = None
        self._changing = asyncio.Lock()
        self._usual_seconds = GUESS_SECONDS
        self._unloading: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def loaded(self) -> bool:
        """Tell whether the engine is loaded."""
        return self._engine is not None and self._engine.alive

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be answered.

        Raises:
            Refused: too many requests wait, or the server ends.
        """
        if self._closed:
            raise Refused(503, "the server is about to end", code="shutting_down")
        if self._turns.locked() and self.waiting >= self._queue:
            seconds = self._usual_seconds * (1 + self.waiting / self.parallel)
            text = f"{self.running} requests are being answered and {self.waiting} wait"
            raise Refused(429, text, "try again later", "queue_full", seconds)
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._usual_seconds += 0.2 * (time.monotonic() - began - self._usual_seconds)
            self.running -= 1
            self._turns.release()
            self._rest()

    async def results(self, what: str, given: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Yield the results of a call of the engine; see ``edgemoe.engine.service``.

        Raises:
            EngineDied: the engine died before the call was complete.
            Exception: the engine raised this error.
        """
        engine = await self.engine()
        while not engine.alive:  # it has died, and the news is still on its way
            self._lost(engine)
            engine = await self.engine()
        inbox = _Inbox()
        number, complete = engine.call(what, given, inbox), False
        try:
            while True:
                kind, value = await inbox.get()
                complete = kind != "item"
                if isinstance(value, EngineDied | ComputeFailed):  # it computes no more
                    self._lost(engine)
                    await asyncio.to_thread(engine.kill)
                if kind == "error":
                    raise value
                if kind == "done":
                    return
                yield value
        finally:
            engine.end_call(number, cancel=not complete)

    async def result(self, what: str, given: dict[str, Any]) -> Any:
        """Give the only result of a call."""
        found = None
        async with contextlib.aclosing(self.results(what, given)) as results:
            async for result in results:
                found = result
        return found

    async def engine(self) -> RemoteEngine:
        """Give the engine; load it first if there is none.

        Raises:
            Exception: the model cannot be loaded.
        """
        async with self._changing:
            if self._engine is None:
                self._engine = await asyncio.to_thread(Worker(self._opener).open, lambda: None)
            return self._engine

    def _lost(self, engine: RemoteEngine) -> None:
        """Forget an engine that has died; the next request loads another."""
        if engine is self._engine:
            self._engine = None
            self.restarts += 1

    def _rest(self) -> None:
        """Unload the engine after some idle time."""
        if self._unloading is not None:
            self._unloading.cancel()
        if self._idle_seconds is not None and not self.running and not self._closed:
            loop = asyncio.get_running_loop()
            self._unloading = loop.call_later(self._idle_seconds, lambda: asyncio.ensure_future(self.unload()))

    async def unload(self) -> None:
        """Close the engine, unless a request needs it."""
        async with self._changing:
            if self._engine is not None and not self.running:
                engine, self._engine = self._engine, None
                await asyncio.to_thread(engine.close)

    async def close(self, seconds: float) -> None:
        """Take no more requests, wait for those under way, and close the engine.

        Args:
            seconds: requests that take longer are cut off.
        """
        self._closed = True
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if self._unloading is not None:
            self._unloading.cancel()
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.close)


class _Inbox:
    """A queue from the thread that reads the pipe to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def put(self, result: tuple[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, result)

    async def get(self) -> tuple[str, Any]:
        return await self._queue.get()
