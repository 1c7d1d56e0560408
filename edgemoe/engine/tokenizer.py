"""Text of tokens: no byte is lost, and the markers of a chat format are spelled while an answer needs them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
from llama_cpp.llama_tokenizer import LlamaTokenizer

_USUAL_BYTES = 64  # a longer piece needs a second call


class Tokenizer(LlamaTokenizer):  # type: ignore[misc]
    """llama_cpp's tokenizer, for pieces of any length.

    Attributes:
        spelled: control tokens with text in an answer, even if the caller asks for no special tokens.
    """

    def __init__(self, llama: llama_cpp.Llama) -> None:
        """Take the vocabulary of ``llama``."""
        super().__init__(llama)
        self.spelled: frozenset[int] = frozenset()
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def detokenize(self, tokens: Sequence[int], prev_tokens: Any = None, special: bool = False) -> bytes:
        """Give the text of ``tokens`` in UTF-8; several tokens may share the bytes of a character."""
        spelled = self.spelled
        text = b"".join([self._piece(token, special or token in spelled) for token in tokens])
        begins = len(tokens) > 0 and tokens[0] == self._model.token_bos()
        return text[1:] if begins and text[:1] == b" " else text

    def _piece(self, token: int, special: bool) -> bytes:
        piece = self._pieces.get((token, special))
        if piece is None:
            piece = self._pieces[int(token), special] = self._read(int(token), special)
        return piece

    def _read(self, token: int, special: bool) -> bytes:
        size = _USUAL_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self._model.vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count  # bytes of the piece
