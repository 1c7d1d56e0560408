"""Drafts of the model's own MTP head: one more layer that guesses the token after the next.

The head reads a token and the model's last hidden state before that token. It has a context of its own, with a memory
for its layer only. The memory follows the model's batches: before a draft, the head computes all tokens that the model
has computed since. A gap, as after an image or a restored conversation, makes guesses worse and answers no different.

**Source**: llama.cpp's driver ``draft-mtp`` (common/speculative.cpp), one head.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from ...errors import EdgeMoEError
from ...models.gguf import GgufFile
from ...types import FloatArray, IdArray
from .. import host
from .pace import MOST

SEQUENCE = 0
# A draft ends before a token that the head thinks less likely than this.
LEAST_CHANCE = 0.5
# Most tokens that the head may fall behind. A prompt is followed batch by batch, because its hidden states are large.
MOST_BEHIND = 64
# C++ functions of llama.cpp without a name in C, as compilers of the Itanium ABI write them.
_SET_ROWS = "_Z26llama_set_embeddings_nextnP13llama_contextbb"
_ROWS = "_Z26llama_get_embeddings_nextnP13llama_context"
_ROW = "_Z30llama_get_embeddings_nextn_ithP13llama_contexti"

_Decoded = tuple[int, list[int], FloatArray]


def has_head(file: GgufFile) -> bool:
    """Tell whether a file has an MTP head, and this llama.cpp lets a program read the hidden states for it."""
    known = all(hasattr(llama_cpp.llama_cpp._lib, name) for name in (_SET_ROWS, _ROWS, _ROW))
    return known and bool(file.mtp_blocks) and f"blk.{file.run_blocks}.nextn.eh_proj.weight" in file.tensors


class Head:
    """Lets the MTP head write on."""

    name = "mtp"
    chances = (0.7,)

    def __init__(self, llm: Any, context: int) -> None:
        """Guess for ``llm``.

        Args:
            llm: the model, loaded with its head.
            context: address of a context of the type MTP; the caller frees it.
        """
        self._context, self._width = context, int(llm.n_embd())
        self._memory = llama_cpp.llama_get_memory(context)
        self._vocabulary = int(llm.n_vocab())
        self._behind: list[_Decoded] = []
        self._last: _Decoded | None = None  # the model's latest batch
        self._main = llm.ctx
        self._tokens: IdArray = np.empty(0, np.intc)
        library = llama_cpp.llama_cpp._lib
        set_rows, self._rows, self._row = (getattr(library, name) for name in (_SET_ROWS, _ROWS, _ROW))
        set_rows.restype, set_rows.argtypes = None, [ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool]
        self._rows.restype, self._rows.argtypes = ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p]
        self._row.restype = ctypes.POINTER(ctypes.c_float)
        self._row.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        set_rows(self._main, True, False)
        set_rows(context, True, True)

    # ---- following the model ----

    def follow(self, tokens: Sequence[int], first: int) -> None:
        """Take note of a batch that the model has computed.

        Args:
            tokens: the tokens; -1 for one without an id.
            first: position of the first token.
        """
        if any(token < 0 for token in tokens):
            self._behind, self._last = [], None
            return
        rows = np.ctypeslib.as_array(self._rows(self._main), shape=(len(tokens), self._width)).copy()
        before = self._before(first)
        self._behind.append((first, list(tokens), np.concatenate([before[None], rows[:-1]])))
        self._last = (first, list(tokens), rows)
        if sum(len(tokens) for _, tokens, _ in self._behind) > MOST_BEHIND:
            self._catch_up()

    def _before(self, position: int) -> FloatArray:
        """Give the hidden state before a position; zeros if it is unknown."""
        if self._last is not None and 0 <= position - 1 - self._last[0] < len(self._last[1]):
            state: FloatArray = self._last[2][position - 1 - self._last[0]]
            return state
        return np.zeros(self._width, np.float32)

    def _catch_up(self) -> bool:
        """Compute the tokens that the head has missed; return False if that fails."""
        behind, self._behind = self._behind, []
        return all(self._compute(first, tokens, rows, False) for first, tokens, rows in behind)

    def _compute(self, first: int, tokens: Sequence[int], rows: FloatArray, wanted: bool) -> bool:
        """Compute ``tokens`` in the head's context; ``wanted``: the logits of the last token are needed."""
        end = llama_cpp.llama_memory_seq_pos_max(self._memory, SEQUENCE) + 1
        if end > first:
            llama_cpp.llama_memory_seq_rm(self._memory, SEQUENCE, first, -1)
        elif 0 < end < first:
            llama_cpp.llama_memory_clear(self._memory, True)
        count = len(tokens)
        columns = (
            np.array(tokens, np.int32),
            np.ascontiguousarray(rows, np.float32),
            np.arange(first, first + count, dtype=np.int32),
            np.zeros(count, np.int8),
        )
        columns[3][-1] = wanted
        token, embd, pos, logits = (column.ctypes.data for column in columns)
        batch = llama_cpp.llama_batch.from_buffer_copy(bytes(ctypes.sizeof(llama_cpp.llama_batch)))
        batch.n_tokens = count
        batch.token, batch.pos = (ctypes.cast(at, ctypes.POINTER(ctypes.c_int32)) for at in (token, pos))
        batch.embd = ctypes.cast(embd, ctypes.POINTER(ctypes.c_float))
        batch.logits = ctypes.cast(logits, ctypes.POINTER(ctypes.c_int8))
        try:
            return host.core().decode(host.address_of("llama_decode"), self._context, batch) == 0
        except EdgeMoEError:
            return False

    # ---- drafts ----

    def find(self, tokens: IdArray) -> tuple[int, int]:
        """Take the text; see `Source.find`."""
        self._tokens = tokens
        return 0, MOST

    def read(self) -> None:
        """Compute the text."""
        self._catch_up()

    def draft(self, count: int) -> list[int]:
        """Write on; fewer than ``count`` tokens if the head becomes unsure."""
        guesses: list[int] = []
        token, position = int(self._tokens[-1]), len(self._tokens) - 1
        state = self._before(position)
        if not self._catch_up():
            return guesses
        while len(guesses) < count and self._compute(position + len(guesses), [token], state[None], True):
            token, chance = self._likeliest()
            if chance < LEAST_CHANCE:
                break
            guesses.append(token)
            state = np.ctypeslib.as_array(self._row(self._context, 0), shape=(self._width,)).copy()
        return guesses

    def _likeliest(self) -> tuple[int, float]:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, 0), shape=(self._vocabulary,))
        token = int(logits.argmax())
        return token, float(1 / np.exp(logits - logits[token]).sum())
