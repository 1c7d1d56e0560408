"""Sequences: several conversations in the memory of one context.

Each sequence has a `Prefix` of its own, so an answer finds the computed beginning of its prompt as in a context
with one sequence. Beyond that, a sequence copies a beginning from another one. llama.cpp copies no data then: both
sequences share the cells. Only a memory that can be cut allows such a copy.

Ordering: everything happens in the thread that computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence as List
from typing import Any

import llama_cpp
import numpy as np

from ..types import IdArray
from .kept import Kept, common
from .prefix import Prefix

# A copy, or a wait for another prompt, that saves fewer tokens is not worth the trouble.
LEAST_SHARED = 16
# A sequence that would lose more tokens than this is left as it is while another one can be had.
LEAST_LOST = 64


class Sequence:
    """One sequence of a context, in the terms in which `Prefix` knows a model.

    Attributes:
        number: llama.cpp's number of the sequence.
        n_tokens: tokens in the memory.
        input_ids: their ids, and room for the rest of the context.
        prefix: finds and keeps computed beginnings.
        used: number of the step that used the sequence last.
    """

    _logits_all = False  # logits are taken at once, never kept

    def __init__(self, llm: Any, number: int, share: float, kept: list[Kept]) -> None:
        """Begin empty.

        Args:
            llm: the model.
            number: of the sequence.
            share: of the model's budget for states.
            kept: conversations that all sequences keep together.
        """
        self.model, self.ctx, self.n_batch, self.number = llm.model, llm.ctx, llm.n_batch, number
        self.input_ids: IdArray = np.zeros(llm.n_ctx(), np.intc)
        self.n_tokens, self.used, self._requires_eval = 0, 0, True
        self.prefix: Prefix = llm._prefix.of_sequence(weakref.proxy(self), number, share, kept)
        self._memory = llama_cpp.llama_get_memory(llm.ctx)

    @property
    def tokens(self) -> IdArray:
        """Give the ids of the tokens in the memory."""
        return self.input_ids[: self.n_tokens]

    def computed(self, tokens: List[int]) -> None:
        """Note that ``tokens`` are now in the memory."""
        self.input_ids[self.n_tokens : self.n_tokens + len(tokens)] = tokens
        self.n_tokens += len(tokens)
        self.prefix.passed()

    def drop(self) -> None:
        """Free the memory of the sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, self.number, -1, -1)
        self.n_tokens = 0
        self.prefix.forget()

    def mend(self) -> None:
        """Make the memory hold ``tokens``, or a beginning of them, after a computation that ended half-way."""
        self.prefix.failed()
        self.prefix.begin([*self.tokens.tolist(), -1])

    def copy(self, other: Sequence, count: int) -> None:
        """Hold the first ``count`` tokens of ``other``; both sequences then share their cells."""
        llama_cpp.llama_memory_seq_rm(self._memory, self.number, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, other.number, self.number, 0, count)
        self.input_ids[:count] = other.input_ids[:count]
        self.n_tokens = count
        self.prefix.forget()

    def shares(self, prompt: IdArray) -> int:
        """Count the tokens at the beginning of ``prompt`` that another sequence can copy from this one."""
        return min(common(self.tokens, prompt), len(prompt) - 1) if self.prefix.cuttable else 0


def place(prompt: IdArray, idle: List[Sequence], every: List[Sequence]) -> tuple[Sequence, int]:
    """Choose an idle sequence for a prompt, and make it hold a beginning of the prompt; give the beginning's length.

    Args:
        prompt: the tokens.
        idle: sequences without an answer, at least one.
        every: all sequences, whose memory may be copied.
    """
    chosen = _choose(prompt, idle)
    reach = chosen.prefix.begin(prompt.tolist())
    source = max(every, key=lambda sequence: sequence.shares(prompt))
    if source is not chosen and (shared := source.shares(prompt)) >= reach + LEAST_SHARED:
        chosen.copy(source, shared)
        reach = shared
    return chosen, reach


def _choose(prompt: IdArray, idle: List[Sequence]) -> Sequence:
    best = max(idle, key=lambda sequence: sequence.prefix.reach(prompt))
    reach = best.prefix.reach(prompt)
    if reach and (not best.prefix.cuttable or best.n_tokens - reach < LEAST_LOST):
        return best
    return min(idle, key=lambda sequence: (sequence.n_tokens > 0, sequence.used))
