"""The tokens of one answer, several a step.

The newest token and the guesses behind it are computed in one batch. Then the model's own sampler chooses the next
token from the first row of logits. If it chooses the first guess, the second row is valid, too, and so on. Each token
is therefore drawn as without drafts, from the same distribution and with the same random numbers. For a guess that is
one token and no distribution, this is the rule of speculative sampling.

Ordering: `send` runs within a turn. Between two calls ``n_tokens`` of the model counts the tokens of the answer only.
The memory may hold right guesses behind them, and wrong ones if it can be cut: the next computation cuts them off.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ...errors import Cancelled
from .pace import Pace
from .source import Source


class Drafted:
    """Stands in for the generator of llama_cpp's ``generate``."""

    def __init__(self, llm: Any, source: Source, pace: Pace, tokens: Sequence[int], options: dict[str, Any]) -> None:
        """Prepare an answer; nothing is computed yet.

        Args:
            llm: the model.
            source: guesses tokens.
            pace: chooses the number of guesses.
            tokens: tokens to compute before the first token of the answer.
            options: the other keywords of ``generate``.
        """
        self._llm, self._source, self._pace = llm, source, pace
        self._pending = list(tokens)
        self._criteria = options["stopping_criteria"]
        left_out = ("reset", "stopping_criteria")
        self._sampler = llm._init_sampler(**{name: value for name, value in options.items() if name not in left_out})
        self._guesses: list[int] = []  # computed; the first is the latest token of the answer
        self._token: int | None = None
        self._kind = self._offered = self._accepted = 0
        self._elapsed_ns = self._drafting_ns = 0
        self._begun = False  # the source has read the prompt
        self._measured = False  # the step under way tells the pace something

    def send(self, more: Sequence[int] | None) -> int:
        """Give the next token of the answer.

        Args:
            more: guesses of the caller, in the place of the source's.

        Raises:
            StopIteration: a stopping criterion ends the answer.
            Cancelled: ``cancel`` was called meanwhile.
        """
        started, drafting = time.perf_counter_ns(), self._drafting_ns
        llm = self._llm
        if self._token is None:
            llm.eval(self._pending)
            llm._row = -1
        elif self._guesses and not more:
            self._accept()
        else:
            self._end_step()
            self._compute(self._token, more)
            drafting = 0
        token = int(self._sampler.sample(llm._ctx, llm._row))
        if self._guesses and self._guesses[0] != token:
            self._guesses = []
            llm._prefix.cut_back()
        if self._criteria is not None and self._criteria(llm._input_ids, llm._scores[-1, :]):
            raise StopIteration
        if self._token is not None:
            self._elapsed_ns += time.perf_counter_ns() - started - (self._drafting_ns - drafting)
        self._token = token
        return token

    def lost(self) -> None:
        """Note that another answer has used the context: the guesses are no longer there."""
        if self._guesses:
            self._guesses, self._measured = [], False

    def close(self) -> None:
        """End the answer."""
        self._sampler.close()

    def _accept(self) -> None:
        """Go on with the row of the guess that was right."""
        llm = self._llm
        if llm._turns.cancelled:
            raise Cancelled("cancelled")
        self._guesses.pop(0)
        self._accepted += 1
        llm.n_tokens += 1
        llm._row += 1
        llm._requires_eval = bool(self._guesses)  # llama_cpp may take the last row only

    def _compute(self, token: int, given: Sequence[int] | None) -> None:
        """Compute ``token`` and guesses behind it in one batch."""
        llm = self._llm
        room = min(llm.n_ctx() - llm.n_tokens, llm.n_batch) - 1
        if not llm._prefix.cuttable:
            room = min(room, llm._prefix.snapshots)
        self._measured = not given
        self._guesses = list(given)[: max(room, 0)] if given else self._guess(token, room)
        if not self._guesses:
            llm.eval([token])
            llm._row = -1
            return
        llm._eval_rows([token, *self._guesses])
        llm.n_tokens -= len(self._guesses)
        llm._row, llm._requires_eval = 0, True

    def _guess(self, token: int, room: int) -> list[int]:
        if room < 1:
            return []
        started = time.perf_counter_ns()
        tokens = self._llm.input_ids[: self._llm.n_tokens + 1]
        tokens[-1] = token
        self._kind, most = self._source.find(tokens)
        count = self._pace.count(self._kind, min(most, room))
        if not count:
            return []
        if not self._begun:  # reading the prompt is no part of a guess
            self._source.read()
            self._begun, started = True, time.perf_counter_ns()
        guesses = self._source.draft(count)
        self._offered, self._drafting_ns = len(guesses), time.perf_counter_ns() - started
        return guesses

    def _end_step(self) -> None:
        """Report the step that is over."""
        if self._measured:
            self._pace.step(self._kind, self._offered, self._accepted, self._elapsed_ns, self._drafting_ns)
        self._offered = self._accepted = self._elapsed_ns = self._drafting_ns = 0
