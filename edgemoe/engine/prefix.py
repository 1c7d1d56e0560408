"""What of a prompt is computed already: the longest beginning that agrees, in whatever the model keeps of it.

The memory of a plain model can be cut behind any token. That of a hybrid, recurrent or sliding-window model cannot: it
holds one state, or a window, which each token overwrites. There states are kept at places where conversations
are likely to part (*marks*), and put back. A conversation that another one displaces is kept whole.

Ordering: everything happens in the thread that computes, between computations.

**Source**: llama.cpp's ``llama_state_seq_*``; a *partial* state is what cannot be cut, without the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from ..types import IdArray

SEQUENCE = 0
PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
# Tokens at the end of a prompt that the next one may not repeat: what a template writes before an answer.
TAIL = 8
# Between two marks of an answer under way.
SPACING = 256
# A displaced conversation that is shorter is read again sooner than it is kept.
LEAST_KEPT = 64


@dataclass(eq=False)
class Mark:
    """The partial state behind ``position`` tokens."""

    position: int
    state: ctypes.Array[ctypes.c_uint8]

    @property
    def bytes(self) -> int:
        """Its size."""
        return len(self.state)


@dataclass(eq=False)
class Kept:
    """A whole conversation: its tokens, its state and its marks."""

    tokens: IdArray
    state: ctypes.Array[ctypes.c_uint8]
    marks: list[Mark] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Its size."""
        return len(self.state) + sum(mark.bytes for mark in self.marks) + self.tokens.nbytes


class Prefix:
    """The computed beginning of one sequence of one context.

    Args:
        llm: the model; its ``input_ids`` and ``n_tokens`` say what the context holds.
        budget: bytes for marks and kept conversations.
        whole_window: layers with a sliding window keep all of the context.

    Attributes:
        cuttable: the memory can be cut behind any token.
    """

    def __init__(self, llm: Any, budget: int, whole_window: bool) -> None:
        """Nothing is computed yet."""
        self._llm, self._budget = llm, budget
        model = llm.model
        recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        self.cuttable = not recurrent and (whole_window or llama_cpp.llama_model_n_swa(model) == 0)
        self._memory = llama_cpp.llama_get_memory(llm.ctx)
        self._marks: list[Mark] = []
        self._kept: list[Kept] = []  # the one used last is the last
        self._asked = 0  # tokens of the last prompt

    @property
    def bytes(self) -> int:
        """What marks and kept conversations hold."""
        return sum(mark.bytes for mark in self._marks) + sum(kept.bytes for kept in self._kept)

    def begin(self, tokens: Sequence[int]) -> int:
        """Make the context hold the beginning of ``tokens``, and return its length; the rest has to be computed."""
        llm = self._llm
        prompt = np.asarray(tokens, dtype=np.intc)
        held = llm.input_ids[: llm.n_tokens]
        reach = self._reach(_common(held, prompt), len(held), self._marks, len(prompt))
        other, further = self._best_kept(prompt)
        if other is not None and further > reach + LEAST_KEPT:
            self._displace(0)
            self._restore(other)
            reach = further
        else:
            self._displace(reach)
        self._cut(reach)
        self._asked = len(prompt)
        return reach

    def forget(self) -> None:
        """The context holds something else, or nothing: its marks are void."""
        self._marks.clear()

    def cut_back(self) -> None:
        """Computing goes on behind ``n_tokens``: marks further on are void."""
        if self._marks and self._marks[-1].position > self._llm.n_tokens:
            self._marks = [mark for mark in self._marks if mark.position <= self._llm.n_tokens]

    def stops(self, count: int) -> list[int]:
        """Of the next ``count`` tokens to be computed: how many at a time, so that marks can be set between."""
        begin, batch = self._llm.n_tokens, self._llm.n_batch
        end = begin + count
        places = [end]
        if not self.cuttable and self._budget and count > 1:
            # llama_cpp computes a batch at a time, so a stop at its end costs nothing; the last one is cut smaller.
            last = begin + (count - 1) // batch * batch
            wanted = {*range(begin + batch, end, batch), *range(last, end, SPACING), self._asked - TAIL, self._asked}
            places = [*sorted(place for place in wanted if begin < place < end), end]
        return [place - before for before, place in zip([begin, *places], places, strict=False) if place > before]

    def passed(self) -> None:
        """Tokens were computed up to here: set a mark where one is due."""
        here = self._llm.n_tokens
        if self.cuttable or not self._budget or (self._marks and self._marks[-1].position >= here):
            return
        last = self._marks[-1].position if self._marks else 0
        if here in (self._asked - TAIL, self._asked) or here - last >= SPACING:
            self._marks.append(Mark(here, self._state(PARTIAL)))
            self._shrink()

    # How far a memory can be used.

    def _reach(self, agreed: int, length: int, marks: Sequence[Mark], asked: int) -> int:
        """Tokens that stay: of a memory of ``length`` tokens, ``agreed`` of which begin a prompt of ``asked``."""
        most = min(agreed, asked - 1)  # one must be computed, for its logits
        if self.cuttable or length <= most:
            return min(most, length)
        return max((mark.position for mark in marks if mark.position <= most), default=0)

    def _best_kept(self, prompt: IdArray) -> tuple[Kept | None, int]:
        best, furthest = None, 0
        for kept in self._kept:
            reach = self._reach(_common(kept.tokens, prompt), len(kept.tokens), kept.marks, len(prompt))
            if reach > furthest:
                best, furthest = kept, reach
        return best, furthest

    # Changing what the context holds.

    def _displace(self, reach: int) -> None:
        """Keep the conversation that is there where more of it goes than its last answer."""
        llm = self._llm
        if not self._budget or reach >= self._asked - TAIL or llm.n_tokens - reach < LEAST_KEPT:
            return
        size = llama_cpp.llama_state_seq_get_size(llm.ctx, SEQUENCE)
        if 0 < size <= self._budget:
            tokens = np.array(llm.input_ids[: llm.n_tokens], dtype=np.intc)
            self._kept = [kept for kept in self._kept if _common(kept.tokens, tokens) < len(kept.tokens)]
            self._kept.append(Kept(tokens, self._state(0), list(self._marks)))
            self._shrink()

    def _restore(self, kept: Kept) -> None:
        llm = self._llm
        llama_cpp.llama_memory_clear(self._memory, True)
        taken = llama_cpp.llama_state_seq_set_data(llm.ctx, kept.state, len(kept.state), SEQUENCE)
        if kept in self._kept:
            self._kept.remove(kept)
        self._marks = list(kept.marks)
        llm.n_tokens = len(kept.tokens) if taken else 0
        llm.input_ids[: len(kept.tokens)] = kept.tokens

    def _cut(self, reach: int) -> None:
        llm = self._llm
        if reach < llm.n_tokens and not self.cuttable and reach > 0:
            mark = next(mark for mark in self._marks if mark.position == reach)
            if not llama_cpp.llama_state_seq_set_data_ext(llm.ctx, mark.state, mark.bytes, SEQUENCE, PARTIAL):
                reach = 0
        if reach == 0 or not llama_cpp.llama_memory_seq_rm(self._memory, SEQUENCE, reach, -1):
            llama_cpp.llama_memory_clear(self._memory, True)
            reach = 0
        self._marks = [mark for mark in self._marks if mark.position <= reach]
        if reach < llm.n_tokens or reach == 0:
            llm._requires_eval = True
        llm.n_tokens = reach

    def _state(self, flags: int) -> ctypes.Array[ctypes.c_uint8]:
        context = self._llm.ctx
        size = llama_cpp.llama_state_seq_get_size_ext(context, SEQUENCE, flags)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data_ext(context, state, size, SEQUENCE, flags)
        return state

    def _shrink(self) -> None:
        """Give up what is needed least until the budget holds: old conversations, then marks that stand close."""
        while self.bytes > self._budget and self._kept:
            self._kept.pop(0)
        while self.bytes > self._budget and self._marks:
            places = [0, *(mark.position for mark in self._marks)]
            inner = range(len(self._marks) - 2)
            closest = min(inner, key=lambda at: places[at + 2] - places[at], default=0)
            del self._marks[closest]


def _common(first: IdArray, second: IdArray) -> int:
    """How many tokens both begin with."""
    count = min(len(first), len(second))
    differ = np.flatnonzero(first[:count] != second[:count])
    return int(differ[0]) if len(differ) else count
