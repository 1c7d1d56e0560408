"""The child's side: open the engine, compute in the main thread, and read requests in another thread.

Ordering: the main thread runs answers and budget changes as jobs, one after the other. The reading thread serves
readings of the experts and cancellations at once, which the engine allows. A server's calls run in threads of their
own, because a server's engine computes several answers together. The end of the pipe means that the parent has ended.
The child then ends within ``LAST_WISHES_SECONDS``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import EdgeMoEError
from ..types import Thinking
from .pipe import Pipe

# A cancel is repeated at this interval, because the engine forgets a cancel that arrives before it begins to compute.
CANCEL_SECONDS = 0.02
# Idle time after an answer before the child copies the conversation. The copy delays a question that arrives meanwhile.
IDLE_SECONDS = 1.5
# Time to write the routing profile after the parent has died.
LAST_WISHES_SECONDS = 2.0
FACTS = ("device", "shape", "notes", "free_before")
CHANGES = ("resize", "pin")
READINGS = ("stats", "residency", "heat", "last", "in_ram")
# When memory runs out, the kernel should end the engine and not the program with the conversation (-1000 to 1000).
OOM_SCORE = 500


class _Child:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._jobs: SimpleQueue[tuple[int, str, Any] | None] = SimpleQueue()
        self._engine: Any = None
        self._cancelled = -1  # the highest request that was cancelled
        self._running = -1
        self._calls: dict[int, Any] = {}  # a server's calls under way, by number
        self._unkept = False  # True: the conversation has an answer that was not kept yet

    def serve(self, factory: Any) -> None:
        reader = threading.Thread(target=self._read, name="edgemoe-reader", daemon=True)
        reader.start()
        try:
            self._engine = engine = factory()
            experts = engine.experts
            facts = {name: getattr(experts, name) for name in FACTS}
            thinking = getattr(engine, "thinking", Thinking())
            self._send("done", 0, (engine.n_ctx(), thinking, facts | {"can_pin": hasattr(experts, "pin")}))
        except Exception as error:
            self._send("error", 0, _portable(error))
            return
        while (job := self._next_job()) is not None:
            self._run(*job)
        engine.close()

    def _next_job(self) -> tuple[int, str, Any] | None:
        """Wait for a request. After a pause without requests, keep the conversation for a later start."""
        try:
            return self._jobs.get(timeout=IDLE_SECONDS if self._unkept else None)
        except Empty:
            self._unkept = False
            with contextlib.suppress(Exception):  # keeping is optional; a broken engine fails at the next answer
                self._engine.keep()
            return self._jobs.get()

    def _run(self, number: int, what: str, argument: Any) -> None:
        self._running = number
        try:
            if what == "answer":
                self._answer(number, *argument)
            elif what in CHANGES:
                getattr(self._engine.experts, what)(*argument)
                self._send("done", number, None)
        except Exception as error:
            self._send("error", number, _portable(error))
        finally:
            self._running = -1
            self._unkept |= what == "answer" and hasattr(self._engine, "keep")

    def _answer(self, number: int, messages: Any, keywords: dict[str, Any]) -> None:
        if number > self._cancelled:
            for chunk in self._engine.create_chat_completion(messages, stream=True, **keywords):
                self._send("item", number, chunk)
        self._send("done", number, None)

    def _call(self, number: int, call: Any) -> None:
        try:
            for result in call:
                self._send("item", number, result)
            self._send("done", number, None)
        except Exception as error:
            self._send("error", number, _portable(error))
        finally:
            self._calls.pop(number, None)

    def _read(self) -> None:
        try:
            while True:
                what, number, argument = self._pipe.recv()
                if what == "cancel" and number in self._calls:
                    self._calls[number].cancel()
                elif what == "call":
                    self._calls[number] = call = self._engine.call(*argument)
                    threading.Thread(target=self._call, args=(number, call), daemon=True).start()
                elif what == "cancel":
                    self._cancelled = max(self._cancelled, number)
                    threading.Thread(target=self._cancel, args=(number,), daemon=True).start()
                elif what == "read":
                    self._reply(number, argument)
                elif what == "close":
                    self._jobs.put(None)
                else:
                    self._jobs.put((number, what, argument))
        except (EOFError, OSError):
            self._orphaned()

    def _cancel(self, number: int) -> None:
        pause = threading.Event()
        while self._running == number:
            self._engine.cancel()
            pause.wait(CANCEL_SECONDS)

    def _reply(self, number: int, names: tuple[str, ...]) -> None:
        try:
            experts = self._engine.experts
            self._send("done", number, [getattr(experts, name)() for name in names if name in READINGS])
        except Exception as error:
            self._send("error", number, _portable(error))

    def _orphaned(self) -> None:
        threading.Timer(LAST_WISHES_SECONDS, os._exit, (1,)).start()
        if self._engine is None:  # the model is loading: nothing to save, and no way to interrupt it
            os._exit(1)
        with contextlib.suppress(Exception):
            self._engine.cancel()
        self._jobs.put(None)

    def _send(self, kind: str, number: int, value: Any) -> None:
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send((kind, number, value))


def _portable(error: Exception) -> Exception:
    """Give ``error`` if it survives the pipe, else another error with the same text."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    if isinstance(error, EdgeMoEError):
        return EdgeMoEError(str(error), error.hint)
    return RuntimeError(f"{type(error).__name__}: {error}")


def main() -> None:
    """Serve the parent through the standard input and output. The parent first sends search path and opener."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl+C
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE))
    pipe = Pipe.to_parent()
    try:
        sys.path[:] = pipe.recv()
        factory = pipe.recv()
    except EOFError:
        return
    _Child(pipe).serve(factory)


if __name__ == "__main__":
    main()
