"""The parent's side: start the child, talk to it over a pipe, and describe its end in words.

Every call may come from any thread. One thread per child reads the answers and puts each into the queue of its request.
The end of the pipe fails every waiting request, so no caller waits for a dead engine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Protocol

from ..config import child_environment
from ..control_groups import memory_kills
from ..errors import EdgeMoEError
from ..models.page_cache import watched
from ..types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape, Thinking
from .pipe import Pipe

# A child gets this long to write the routing profile and end. Then it is killed.
CLOSE_SECONDS = 2.5
# Exit statuses: of signals that only POSIX has, and the lowest one of a crash on Windows. A mapped page that cannot be
# read ends the process by SIGBUS.
KILLED, ABORTED, UNREADABLE, WINDOWS_CRASH = -9, -6, -getattr(signal, "SIGBUS", 7), 0xC000_0000
_REASON_BYTES = 4096  # end of the child's output that is searched for a reason


class Inbox(Protocol):
    """Take the results of one request; ``put`` is called from the thread that reads the pipe."""

    def put(self, result: tuple[str, Any]) -> object:
        """Take ("item", value), ("done", value) or ("error", error)."""


class EngineDied(EdgeMoEError):
    """The child process of the engine ended on its own: a crash, an abort, out of memory, or a kill."""


def open_llama(*arguments: Any, **keywords: Any) -> Any:
    """Open :class:`edgemoe.Llama`. The child imports it, the parent does not."""
    from ..engine import Llama

    return Llama(*arguments, **keywords)


def open_service(*arguments: Any, **keywords: Any) -> Any:
    """Open the engine of a server. The child imports it, the parent does not."""
    from ..engine.service import open_service

    return open_service(*arguments, **keywords)


class Worker:
    """Open engines in child processes, one at a time.

    Args:
        opener: function that opens the engine in the child; it must survive pickling.
        files: files that the child reads while it loads, for the progress.
    """

    def __init__(self, opener: Callable[[], Any], files: Iterable[Path] = ()) -> None:
        """Store the arguments. ``open`` starts the child."""
        self._opener, self._files = opener, tuple(files)
        self._engine: RemoteEngine | None = None
        self._aborted = False

    def open(self, died: Callable[[], None], read: Callable[[float], None] = lambda share: None) -> RemoteEngine:
        """Start a child and wait until its model is loaded.

        Args:
            died: called once if the child ends without a request to do so.
            read: called in another thread during the load, with the share of the files in RAM.

        Raises:
            EngineDied: the child ended during the load.
            Exception: the opener raised this error.
        """
        self._engine = engine = RemoteEngine(self._opener, died)
        if self._aborted:
            engine.kill()
        with watched(self._files, read):
            engine.wait_loaded()
        return engine

    def abort(self) -> None:
        """End the child at once, even during a load. Afterwards no engine can be opened."""
        self._aborted = True
        if self._engine is not None:
            self._engine.kill()


class RemoteEngine:
    """Represent an engine in a child process. Creating the object starts the child; see :meth:`wait_loaded`.

    Attributes:
        experts: the expert side of the model.
        thinking: how the model thinks before it answers; valid after the load.
    """

    def __init__(self, opener: Callable[[], Any], died: Callable[[], None]) -> None:
        """Start the child."""
        self._died = died
        self._numbers = itertools.count(1)
        self._loaded: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._waiting: dict[int, Inbox] = {0: self._loaded}
        self._lock = threading.Lock()  # guards the pipe's writing end, ``_waiting`` and ``_failure``
        self._failure: EngineDied | None = None
        self._closing = False
        self._answering = 0
        self._kills = memory_kills()
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgemoe.worker.child"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=child_environment(),
        )
        self._pipe = Pipe.to_child(self._process)
        self._context, self.experts, self.thinking = 0, RemoteExperts(self), Thinking()
        self._reader = threading.Thread(target=self._read, name="edgemoe-worker", daemon=True)
        self._reader.start()
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send(sys.path)
            self._pipe.send(opener)

    @property
    def pid(self) -> int:
        """Give the process id of the child."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Tell whether the child has not ended yet."""
        return self._failure is None

    def wait_loaded(self) -> None:
        """Wait until the model is loaded.

        Raises:
            EngineDied: the child ended first.
            Exception: the opener raised this error.
        """
        try:
            self._context, self.thinking, facts = self._result(0, self._loaded)
        except Exception:
            self.close()
            raise
        for name, value in facts.items():
            setattr(self.experts, name, value)

    def n_ctx(self) -> int:
        """Give the context size in tokens."""
        return self._context

    def create_chat_completion(self, messages: list[Any], stream: bool = True, **keywords: Any) -> Iterator[Any]:
        """Yield the OpenAI chunks of the child's engine.

        Raises:
            EngineDied: the child ended before the answer was complete.
        """
        assert stream, "only streams cross the pipe"
        queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        number = self._request("answer", (messages, keywords), queue)
        self._answering = number
        try:
            while True:
                kind, value = queue.get()
                if kind == "error":
                    raise value
                if kind == "done":
                    return
                yield value
        finally:
            self._answering = 0
            self._waiting.pop(number, None)

    def call(self, what: str, given: dict[str, Any], queue: Inbox) -> int:
        """Begin a call of a server's engine and give its number.

        ``queue`` gets ("item", result) for each result, then ("done", None) or ("error", error).
        """
        return self._request("call", (what, given), queue)

    def end_call(self, number: int, cancel: bool) -> None:
        """Forget a call; with ``cancel`` the child stops it."""
        self._waiting.pop(number, None)
        if cancel:
            self._send("cancel", number, None)

    def cancel(self) -> None:
        """Stop the current answer."""
        if number := self._answering:
            self._send("cancel", number, None)

    def ask(self, what: str, argument: Any) -> Any:
        """Send one request and wait for its reply.

        Raises:
            EngineDied: the child has ended.
        """
        queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        return self._result(self._request(what, argument, queue), queue)

    def close(self) -> None:
        """Ask the child to save its routing profile and end. After ``CLOSE_SECONDS`` the child is killed."""
        self._closing = True
        self.cancel()
        self._send("close", 0, None)
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(CLOSE_SECONDS)

    def kill(self) -> None:
        """End the child at once."""
        self._closing = True
        self._process.kill()
        self._process.wait()

    def _request(self, what: str, argument: Any, queue: Inbox) -> int:
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = queue
            if self._failure is not None:
                queue.put(("error", self._failure))
        self._send(what, number, argument)
        return number

    def _result(self, number: int, queue: SimpleQueue[tuple[str, Any]]) -> Any:
        kind, value = queue.get()
        self._waiting.pop(number, None)
        if kind == "error":
            raise value
        return value

    def _send(self, what: str, number: int, argument: Any) -> None:
        # The reader reports a broken pipe, because it knows the reason.
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send((what, number, argument))

    def _read(self) -> None:
        try:
            self._pipe.await_child()
            while True:
                kind, number, value = self._pipe.recv()
                if (queue := self._waiting.get(number)) is not None:
                    queue.put((kind, value))
        except (EOFError, OSError):
            pass
        status = self._process.wait()
        with self._lock:
            self._failure = EngineDied(*_cause(status, self._end_of_output(), memory_kills() > self._kills))
            for queue in list(self._waiting.values()):
                queue.put(("error", self._failure))
            self._pipe.close()
        if not self._closing:
            self._died()

    def _end_of_output(self) -> str:
        with self._words as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _REASON_BYTES))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        asserted = [line for line in lines if "ASSERT" in line or "error" in line.lower()]
        return (asserted or lines or [""])[-1][:200]


class RemoteExperts:
    """Represent the experts of the child's model. Each call crosses the pipe and gives copies."""

    def __init__(self, engine: RemoteEngine) -> None:
        """Set empty values, which ``RemoteEngine.wait_loaded`` replaces after the load."""
        self._engine = engine
        self.device = "none"
        self.shape: ModelShape | None = None
        self.notes: list[str] = []
        self.can_pin = False
        self.free_before: tuple[int, int] | None = None

    def stats(self) -> ExpertStats:
        """Read the counters since the model was loaded."""
        stats: ExpertStats = self._engine.ask("read", ("stats",))[0]
        return stats

    def residency(self) -> BoolArray:
        """Tell which experts are resident, ``(layers, experts)``."""
        array: BoolArray = self._engine.ask("read", ("residency",))[0]
        return array

    def heat(self) -> FloatArray:
        """Read how often each expert was routed to, ``(layers, experts)``."""
        array: FloatArray = self._engine.ask("read", ("heat",))[0]
        return array

    def last(self) -> IdArray:
        """Read the expert ids of the last token, ``(layers, k)``."""
        array: IdArray = self._engine.ask("read", ("last",))[0]
        return array

    def in_ram(self) -> float | None:
        """Measure the share of the expert bytes in RAM; None if the system does not report it."""
        share: float | None = self._engine.ask("read", ("in_ram",))[0]
        return share

    def resize(self, vram: str) -> None:
        """Change the budget after the current answer."""
        self._engine.ask("resize", (vram,))

    def pin(self, layer: int, expert: int, pinned: bool = True) -> None:
        """Keep an expert on the device, or release it, after the current answer. Needs ``can_pin``."""
        self._engine.ask("pin", (layer, expert, pinned))


def _cause(status: int, words: str, out_of_memory: bool) -> tuple[str, str]:
    """Describe the end of a child with this exit status, with a hint that may help."""
    reason = f": {words}" if words else ""
    if status == KILLED and out_of_memory:
        from .. import limits  # imports psutil, which an ordinary end does not need

        limit = limits.memory().reason
        cause = f"memory ran out ({limit})" if limit else "the system ran out of memory"
        return f"{cause}: the kernel ended the engine", "a smaller --ctx or --vram, or a smaller model"
    if status == KILLED:
        return "the engine was killed", "if nobody did that, memory ran out: a smaller --ctx or --vram"
    if status == ABORTED:
        return f"the engine aborted{reason}", "a failed check inside llama.cpp; the same question may do it again"
    if status == UNREADABLE:
        cause = "a page of the model's file could not be read: the file was cut or replaced, or its disk failed"
        return cause, "check the file and its disk, then open the model again"
    if status < 0:
        return f"the engine crashed ({signal.Signals(-status).name}){reason}", ""
    if status >= WINDOWS_CRASH:
        return f"the engine crashed (0x{status:08X}){reason}", ""
    return f"the engine ended by itself (exit code {status}){reason}", ""
