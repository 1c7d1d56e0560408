"""Continuous batching: several answers in one context, computed together, a step at a time.

A step is one call of llama.cpp. It computes the next token of every answer and, in the room that is left, pieces of
prompts. Answers join and leave between two steps. A prompt that begins like another one that is just being read waits
for that beginning and shares it.

Ordering: one thread computes (``_run``): it alone touches the context, the sequences and the samplers. Other threads
put an `Answer` into ``_waiting``, take its tokens from its queue, and may set ``Answer.left``, all under ``_wake`` or
through a queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import llama_cpp
import numpy as np

from ..errors import Cancelled, ComputeFailed, EdgeMoEError
from ..types import FloatArray, IdArray
from .decoding import ContextFull
from .kept import Kept, common
from .meter import Meter
from .sequence import LEAST_SHARED, Sequence, place
from .turns import Turn

_log = logging.getLogger("edgemoe.batching")

# A step that other answers wait for may take this long, and one that nobody waits for. A new answer, and a cancel, wait
# for the end of a step.
BESIDE_MS, ALONE_MS = 150.0, 1000.0
# The smallest piece of a prompt beside other answers, and the first one tried.
LEAST_PIECE, FIRST_PIECE = 2, 32
# Idle time after which conversations are written to the disk.
KEEP_SECONDS = 1.5
# While answers run, a prompt is let in if so many tokens of its answer fit beside them.
ROOM = 64


@dataclass(eq=False)
class Answer:
    """One answer under way.

    Attributes:
        tokens: the prompt, then the answer.
        sampler: llama_cpp's sampler of this answer.
        ends: tokens that end the answer, beside the ones of llama.cpp.
        most: tokens after which the answer waits for its reader.
        meter: its account.
        with_logits: the reader wants the logits of each token.
        queue: gets (token, logits), then None or an error.
        left: the reader has left.
        made: tokens of the answer so far.
        sequence: holds the tokens once the answer has joined.
        leader: an answer whose prompt begins alike, and the length of that beginning.
    """

    tokens: list[int]
    sampler: Any
    ends: frozenset[int]
    most: int
    meter: Meter
    with_logits: bool
    queue: SimpleQueue[tuple[int, FloatArray | None] | Exception | None] = field(default_factory=SimpleQueue)
    left: bool = False
    made: int = 0
    sequence: Sequence | None = None
    leader: tuple[Answer, int] | None = None

    @property
    def unread(self) -> int:
        """Count the tokens that are not computed yet."""
        return len(self.tokens) - (self.sequence.n_tokens if self.sequence is not None else 0)

    @property
    def reading(self) -> bool:
        """Tell whether its prompt is being read."""
        return self.made == 0 or self.unread > 1

    @property
    def paused(self) -> bool:
        """Tell whether the answer is as long as it may be, and waits for its reader to leave."""
        return self.made >= self.most


class _Pace:
    """The number of prompt tokens that a step of a wanted length has room for."""

    def __init__(self, wanted_ms: float, first: int, most: int) -> None:
        self._wanted_ms, self._most = wanted_ms, most
        self.count = min(first, most)

    def passed(self, count: int, elapsed_ms: float) -> None:
        """Learn from a step that computed ``count`` prompt tokens."""
        fitting = count * self._wanted_ms / max(elapsed_ms, 1e-3)
        if fitting < self.count:
            self.count = max(LEAST_PIECE, int(fitting))
        elif count >= self.count:  # a shorter piece tells nothing of a longer one
            self.count = min(self._most, int(min(fitting, 1.5 * self.count + 1)))


class Batching:
    """Computes the answers of one model together.

    Attributes:
        llm: the model; nobody else computes with it meanwhile.
        parallel: number of answers that compute at once.
    """

    def __init__(self, llm: Any, parallel: int) -> None:
        """Start the thread; ``llm`` must have been opened with at least ``parallel`` sequences."""
        self.llm, self.parallel = llm, parallel
        kept: list[Kept] = []
        self._sequences = [Sequence(llm, number, 1 / parallel, kept) for number in range(parallel)]
        self._waiting: list[Answer] = []
        self._running: list[Answer] = []
        self._wake = threading.Condition()
        self._closed = self._unkept = False
        self._failure: ComputeFailed | None = None
        self._steps = 0
        self._beside = _Pace(BESIDE_MS, FIRST_PIECE, llm.n_batch)
        self._alone = _Pace(ALONE_MS, llm.n_batch, llm.n_batch)
        self._reading_threads = llama_cpp.llama_n_threads_batch(llm.ctx)
        self._batch = llama_cpp.llama_batch_init(llm.n_batch, 0, 1)
        self._thread = threading.Thread(target=self._run, name="edgemoe-batching", daemon=True)
        self._thread.start()

    # For the threads of the readers.

    def join(self, answer: Answer) -> None:
        """Compute ``answer`` as soon as there is room.

        Raises:
            EdgeMoEError: the model is closed, or failed.
        """
        with self._wake:
            if self._closed:
                raise self._failure or EdgeMoEError("the model is closed")
            self._waiting.append(answer)
            self._wake.notify()

    def more(self, answer: Answer) -> None:
        """Compute one token more than ``most``: an answer may have to end its last character."""
        with self._wake:
            answer.most += 1
            self._wake.notify()

    def leave(self, answer: Answer) -> None:
        """Compute no more of ``answer``. If only its prompt is being read, the step under way stops, too."""
        with self._wake:
            answer.left = True
            alone = self._running == [answer] and answer.reading
            self._wake.notify()
        if alone:
            self.llm.cancel()

    @property
    def figures(self) -> dict[str, int]:
        """Count answers that run and that wait, and tokens in the memory."""
        with self._wake:
            running, waiting = len(self._running), len(self._waiting)
        return {"running": running, "waiting": waiting, "tokens": sum(s.n_tokens for s in self._sequences)}

    def close(self) -> None:
        """End all answers, and keep the conversations."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self.llm.cancel()
        self._thread.join()
        self._keep()
        llama_cpp.llama_batch_free(self._batch)

    # The thread that computes.

    def _run(self) -> None:
        try:
            while self._ready():
                if rows := self._compose():
                    self._step(rows)
        except Exception as error:  # nobody would compute any more: say so to every reader
            self._failure = ComputeFailed(f"the batch failed: {error!r}", "open the model again")
            _log.exception("the batch failed")
        with self._wake:
            self._closed = True
            left = [*self._running, *self._waiting]
        for answer in left:
            answer.queue.put(self._failure)

    def _ready(self) -> bool:
        """Wait for work, take new answers and drop answers without a reader; return False at the end."""
        with self._wake:
            if not self._wake.wait_for(self._has_work, KEEP_SECONDS if self._unkept else None):
                self._keep()
                self._wake.wait_for(self._has_work)
            self._waiting = [answer for answer in self._waiting if not answer.left]
            self._running = [answer for answer in self._running if not answer.left]
            joined = []
            while not self._closed and (answer := self._next()) is not None:
                self._waiting.remove(answer)
                self._running.append(answer)
                joined.append(answer)
        for answer in joined:
            self._begin(answer)
        self._unkept |= bool(self._running)
        return not self._closed

    def _has_work(self) -> bool:
        due = any(answer.left or not answer.paused for answer in self._running)
        return due or self._closed or self._next() is not None or any(answer.left for answer in self._waiting)

    def _keep(self) -> None:
        """Write the conversations to the folder of ``OffloadConfig.cache``, where there is one."""
        self._unkept = False
        for sequence in self._sequences:
            sequence.prefix.keep()

    def _next(self) -> Answer | None:
        """Give the first waiting answer if there is a sequence and room for it."""
        if not self._waiting or len(self._running) == self.parallel:
            return None
        answer = self._waiting[0]
        room = self.llm.n_ctx() - sum(len(other.tokens) + ROOM for other in self._running)
        return answer if not self._running or len(answer.tokens) + ROOM <= room else None

    def _idle(self) -> list[Sequence]:
        busy = {answer.sequence for answer in self._running}
        return [sequence for sequence in self._sequences if sequence not in busy]

    def _begin(self, answer: Answer) -> None:
        """Give an answer its sequence with as much of its prompt as is computed already."""
        prompt: IdArray = np.asarray(answer.tokens, np.intc)
        with self.llm._turns.taking(Turn()):
            answer.sequence, reach = place(prompt, self._idle(), self._sequences)
        if not answer.made:
            answer.meter.reads(len(prompt) - reach, reach)
        answer.leader = None
        if not answer.sequence.prefix.cuttable:
            return
        for other in self._running[: self._running.index(answer)]:  # never a later one: no two wait for each other
            if other.reading:
                shared = min(common(np.asarray(other.tokens, np.intc), prompt), len(prompt) - 1)
                if shared >= reach + LEAST_SHARED:
                    answer.leader, reach = (other, shared), shared

    def _compose(self) -> list[tuple[Answer, list[int]]]:
        """Choose the tokens of a step: one of each answer, and pieces of prompts."""
        due = [answer for answer in self._running if not answer.paused]
        rows = [(answer, answer.tokens[-1:]) for answer in due if not answer.reading]
        readers = [answer for answer in due if answer.reading and not self._follows(answer)]
        room = min((self._beside if rows else self._alone).count, self.llm.n_batch - len(rows))
        # The oldest prompt gets half of the room, then the shortest ones get as much as they need.
        for number, answer in enumerate([*readers[:1], *sorted(readers[1:], key=lambda answer: answer.unread)]):
            share = room if number or len(readers) == 1 else (room + 1) // 2
            if count := min(answer.unread, share):
                rows.append((answer, self._piece(answer, count)))
                room -= len(rows[-1][1])
        return rows

    def _piece(self, answer: Answer, count: int) -> list[int]:
        assert answer.sequence is not None
        begin = answer.sequence.n_tokens
        count = answer.sequence.prefix.stops(count)[0]
        return answer.tokens[begin : begin + count]

    def _follows(self, answer: Answer) -> bool:
        """Tell whether an answer waits for its leader; once the leader is far enough, copy its beginning."""
        if answer.leader is None or answer.sequence is None:
            return False
        leader, shared = answer.leader
        source = leader.sequence
        if leader in self._running and source is not None and source.n_tokens < shared:
            return True
        answer.leader = None
        held = source.shares(np.asarray(answer.tokens, np.intc)) if source is not None else 0
        if source is not None and held > answer.sequence.n_tokens:
            answer.meter.reads(answer.sequence.n_tokens - held, held - answer.sequence.n_tokens)
            answer.sequence.copy(source, held)
        return False

    def _step(self, rows: List[tuple[Answer, list[int]]]) -> None:
        self._steps += 1
        outputs = self._fill(rows)
        self._set_threads(any(answer.reading for answer, _ in rows))
        turn = Turn()
        began = time.perf_counter_ns()
        try:
            with self.llm._turns.taking(turn):
                self.llm._ctx.decode(_Filled(self._batch))
                self._passed(rows, time.perf_counter_ns() - began)
                made = [self._sample(answer, row) for answer, row in outputs]
                for (answer, _), (token, logits) in zip(outputs, made, strict=True):
                    self._deliver(answer, token, logits)
        except ContextFull as error:
            self._make_room(error)
        except ComputeFailed as error:
            self._failed(rows, Cancelled("cancelled") if turn.cancelled else error)
        finally:
            self.llm._turns.finish(turn)

    def _set_threads(self, reads: bool) -> None:
        """Compute with the threads for tokens unless a prompt is read; llama.cpp takes several tokens for a prompt."""
        usual = llama_cpp.llama_n_threads(self.llm.ctx)
        llama_cpp.llama_set_n_threads(self.llm.ctx, usual, self._reading_threads if reads else usual)

    def _fill(self, rows: List[tuple[Answer, list[int]]]) -> list[tuple[Answer, int]]:
        """Write the batch; return the answers that get a token from it, each with its row."""
        batch, at, outputs = self._batch, 0, []
        for answer, tokens in rows:
            sequence = answer.sequence
            assert sequence is not None
            for offset, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, sequence.n_tokens + offset
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence.number, False
                at += 1
            if answer.unread == len(tokens):
                batch.logits[at - 1] = True
                outputs.append((answer, at - 1))
        batch.n_tokens = at
        return outputs

    def _passed(self, rows: List[tuple[Answer, list[int]]], elapsed_ns: int) -> None:
        read = sum(len(tokens) for answer, tokens in rows if answer.reading)
        if read:
            pace = self._alone if all(answer.reading for answer, _ in rows) else self._beside
            pace.passed(read, elapsed_ns / 1e6)
        for answer, tokens in rows:
            assert answer.sequence is not None
            answer.meter.computed(elapsed_ns)
            answer.sequence.computed(tokens)
            answer.sequence.used = self._steps

    def _sample(self, answer: Answer, row: int) -> tuple[int, FloatArray | None]:
        """Choose the next token of an answer; give it with its logits, if the reader wants them."""
        llm = self.llm
        token = int(answer.sampler.sample(llm._ctx, row))
        if not answer.with_logits:
            return token, None
        pointer = llama_cpp.llama_get_logits_ith(llm.ctx, row)
        return token, np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()

    def _deliver(self, answer: Answer, token: int, logits: FloatArray | None) -> None:
        """Give a token to the reader, and end the answer if it is complete."""
        llm = self.llm
        ended = token in answer.ends or bool(llama_cpp.llama_vocab_is_eog(llm._model.vocab, token))
        answer.meter.sampled(counts=not ended)
        answer.tokens.append(token)
        answer.made += 1
        answer.queue.put((token, logits))
        if ended or len(answer.tokens) >= llm.n_ctx():
            self._end(answer, None)

    def _end(self, answer: Answer, error: Exception | None) -> None:
        with self._wake:
            if answer in self._running:
                self._running.remove(answer)
        answer.queue.put(error)

    def _failed(self, rows: List[tuple[Answer, list[int]]], error: EdgeMoEError) -> None:
        """Undo a step that ended half-way. After a cancel the answers that stay are computed again."""
        for answer, _ in rows:
            assert answer.sequence is not None
            answer.sequence.mend()
            if not isinstance(error, Cancelled):
                self._end(answer, error)

    def _make_room(self, error: ContextFull) -> None:
        """Free memory after a step that found none: conversations without an answer first, then the newest answer."""
        idle = [sequence for sequence in self._idle() if sequence.n_tokens]
        if idle:
            min(idle, key=lambda sequence: sequence.used).drop()
            return
        newest = self._running[-1]
        assert newest.sequence is not None
        newest.sequence.drop()
        if len(self._running) == 1:
            self._end(newest, None if newest.made else error)
            return
        with self._wake:  # it is read again as soon as there is room
            self._running.remove(newest)
            self._waiting.insert(0, newest)
            newest.sequence = newest.leader = None


class _Filled:
    """A llama_batch in the form in which llama_cpp's context takes it."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
