"""The engine behind the chat: one thread owns it, another reads its counters, the screen only gets messages.

Ordering: the engine is opened, used, resized and closed by the owner thread, in the order of the calls here.
``cancel`` is the one call from outside (the engine allows it from any thread). The watcher reads
``engine.experts`` only, and is joined before the engine is closed. Nothing here touches a widget.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np

from edgemoe.answer import sampling as settings
from edgemoe.answer.calls import Delta
from edgemoe.answer.growth import Growing
from edgemoe.answer.receipt import Receipt, what_cut
from edgemoe.text.failures import in_words
from edgemoe.types import ExpertStats
from edgemoe.worker import EngineDied
from edgemoe.worker.protocol import Engine, EngineSource, Experts, can_pin, thinking_of

from . import messages as told
from .records import ExpertMaps, ModelCard

SAMPLE_SECONDS = 0.25  # four looks a second: each costs a drawing of the whole map
RAM_SECONDS = 2.0  # between two looks at the system's file cache: some milliseconds each
# A model that is still loading cannot be interrupted; its thread then dies with the process.
CLOSE_SECONDS = 3.0

Watch = Literal["off", "counters", "maps"]


Post = Callable[[Any], object]


class InThisProcess:
    """Opens an engine that lives in this process, as tests and pictures want it: it dies with us."""

    def __init__(self, opener: Callable[[], Engine]) -> None:
        """Open the engine with ``opener``."""
        self._opener = opener

    def open(self, died: Callable[[], None], read: Callable[[float], None]) -> Engine:
        """Load the model."""
        return self._opener()

    def abort(self) -> None:
        """A load in a thread cannot be interrupted; the thread dies with the process."""


class ChatSession:
    """Runs one model for one chat. Every method returns at once and may be called from any thread."""

    def __init__(self, source: EngineSource | None, post: Post) -> None:
        """Open engines from ``source``, None while no model is chosen; ``post`` delivers messages."""
        self._source = source
        self._post = post
        self._engine: Engine | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._watching: Watch = "off"
        self._in_ram: float | None = None
        self._in_ram_s = 0.0  # when that was looked up
        self._owner = threading.Thread(target=self._own, name="edgemoe-engine", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="edgemoe-watcher", daemon=True)

    def open(self) -> None:
        """Start, and load the model if there is one: ends in ``ModelLoaded`` or ``ModelFailed``."""
        self._owner.start()
        self._watcher.start()
        if self._source is not None:
            self._jobs.put(self._load)

    def ask(
        self,
        number: int,
        conversation: list[dict[str, str]],
        sampling: Mapping[str, float | int],
        think: str = "",
    ) -> None:
        """Answer a conversation: ``AnswerGrew`` many times, then ``AnswerEnded`` or ``AnswerFailed``.

        Args:
            number: of the answer.
            conversation: OpenAI messages.
            sampling: settings in force.
            think: how much the model shall think, empty for the template's default.
        """
        self._stopping.clear()
        self._jobs.put(lambda: self._answer(number, conversation, sampling, think))

    def stop(self) -> None:
        """Stop the answer under way; its text stays."""
        self._stopping.set()
        if (engine := self._engine) is not None:
            engine.cancel()

    def switch(self, source: EngineSource) -> None:
        """Close the model and open that of ``source``; ends like :meth:`open`."""
        self._jobs.put(lambda: self._switch(source))

    def resize(self, size: str) -> None:
        """Change the expert budget once the answer under way is complete."""
        self._jobs.put(lambda: self._resize(size))

    def sample(self) -> None:
        """One sample with maps, before the next answer begins."""
        self._jobs.put(self._sample_now)

    def pin(self, layer: int, expert: int, pinned: bool) -> None:
        """Keep an expert on the device, or let it go, once the answer under way is complete."""
        self._jobs.put(lambda: self._pin(layer, expert, pinned))

    def watch(self, what: Watch) -> None:
        """Choose the samples from now on; ``off`` costs nothing."""
        self._watching = what
        if what == "off":
            self._wake.clear()
        else:
            self._wake.set()

    def close(self) -> None:
        """Stop everything and free the model, waiting at most ``CLOSE_SECONDS`` for each thread."""
        self._closed.set()
        self._wake.set()
        self.stop()
        if self._engine is None and self._source is not None:
            self._source.abort()
        self._jobs.put(None)
        for thread in (self._watcher, self._owner):
            if thread.is_alive():
                thread.join(CLOSE_SECONDS)
        if self._source is not None:
            self._source.abort()

    # The owner thread.

    def _own(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        if self._watcher.is_alive():
            self._watcher.join(CLOSE_SECONDS)
        if self._engine is not None:
            self._engine.close()

    def _load(self) -> None:
        assert self._source is not None
        try:
            engine = self._source.open(lambda: self._jobs.put(self._revive), self._read)
            experts = engine.experts
            stats = experts.stats() if experts.shape is not None else None
            card = ModelCard(
                experts.device,
                experts.shape,
                engine.n_ctx(),
                tuple(experts.notes),
                stats,
                can_pin(experts),
                experts.free_before,
                thinking_of(engine),
            )
        except Exception as error:
            self._post(told.ModelFailed(in_words(error)))
            return
        self._engine = engine
        self._post(told.ModelLoaded(card))

    def _read(self, share: float) -> None:
        self._post(told.ModelReading(share))

    def _switch(self, source: EngineSource) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        self._source = source
        if not self._closed.is_set():
            self._load()

    def _revive(self) -> None:
        """The engine has died: say how, and load it again."""
        dead, self._engine = self._engine, None
        if dead is None or self._closed.is_set():
            return
        try:
            dead.experts.stats()
            self._engine = dead  # another one died: this one is well
            return
        except EngineDied as error:
            self._post(told.EngineLost(in_words(error)))
        dead.close()
        self._load()

    def _answer(
        self, number: int, conversation: list[dict[str, str]], sampling: Mapping[str, float | int], think: str
    ) -> None:
        growing, started = Growing(number), time.perf_counter()
        first: float | None = None
        last: Mapping[str, Any] = {}
        limit: int | None = None
        try:
            assert self._engine is not None, "ask() before ModelLoaded"
            keywords = settings.keywords(sampling, thinking_of(self._engine), think)
            limit = keywords["max_tokens"]
            for last in self._chunks(self._engine, conversation, keywords):
                if not (delta := Delta.of(last)):
                    continue
                elapsed = time.perf_counter() - started
                first = elapsed if first is None else first
                if growing.add(delta, elapsed):
                    self._post(told.AnswerGrew(growing))
            reason = last["choices"][0].get("finish_reason") if last else None
        except Exception as error:
            # An error after the user's stop does not matter, unless the engine is gone.
            died = isinstance(error, EngineDied)
            if died or not self._stopping.is_set():
                self._post(told.AnswerFailed(number, growing.take().answer, None if died else in_words(error)))
                return
            reason = "stop"
        receipt = Receipt.of(last, first)
        cut = what_cut(str(reason or "stop"), receipt, limit)
        reason = "stopped" if self._stopping.is_set() else cut
        self._post(told.AnswerEnded(number, growing.take().answer, reason, receipt))

    def _chunks(
        self, engine: Engine, conversation: list[dict[str, str]], keywords: Mapping[str, Any]
    ) -> Iterator[Mapping[str, Any]]:
        if self._stopping.is_set():
            return
        for chunk in engine.create_chat_completion(conversation, stream=True, **keywords):
            if self._stopping.is_set():
                # Said again here: a cancel that came just before the engine began would have been forgotten.
                engine.cancel()
            yield chunk

    def _resize(self, size: str) -> None:
        if self._engine is None:
            return
        try:
            self._engine.experts.resize(size)
            self._post(told.BudgetResized(size, self._engine.experts.stats()))
        except Exception as error:
            self._post(told.ResizeFailed(size, in_words(error)))

    def _sample_now(self) -> None:
        if self._engine is None or self._engine.experts.shape is None:
            return
        with contextlib.suppress(EngineDied):  # told by the owner already
            self._sample(self._engine.experts, "maps", None)

    def _pin(self, layer: int, expert: int, pinned: bool) -> None:
        if self._engine is None:
            return
        try:
            self._engine.experts.pin(layer, expert, pinned)
            self._post(told.ExpertPinned(layer, expert, pinned))
        except Exception as error:
            self._post(told.PinFailed(in_words(error)))

    # The watcher thread.

    def _watch(self) -> None:
        seen: tuple[Watch, ExpertStats] | None = None
        while not self._closed.is_set():
            self._wake.wait()
            engine, what = self._engine, self._watching
            if engine is not None and engine.experts.shape is not None and what != "off":
                try:
                    seen = self._sample(engine.experts, what, seen)
                except EngineDied:
                    seen = None  # the owner opens another
                except Exception as error:
                    self._post(told.SamplingFailed(in_words(error)))
                    return
            self._closed.wait(SAMPLE_SECONDS)

    def _sample(
        self, experts: Experts, what: Watch, seen: tuple[Watch, ExpertStats] | None
    ) -> tuple[Watch, ExpertStats]:
        stats = experts.stats()
        if (what, stats) != seen:
            maps = None
            if what == "maps":
                maps = _maps(experts)
                if (now := time.monotonic()) - self._in_ram_s >= RAM_SECONDS:
                    self._in_ram, self._in_ram_s = experts.in_ram(), now
            self._post(told.ExpertsSampled(stats, maps, self._in_ram))
        return what, stats


def _maps(experts: Experts) -> ExpertMaps:
    return ExpertMaps(
        np.array(experts.residency(), dtype=np.bool_),
        np.array(experts.heat(), dtype=np.float32),
        np.array(experts.last(), dtype=np.int32),
    )
