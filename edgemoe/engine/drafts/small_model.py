"""Drafts of a small model with the same vocabulary: its likeliest tokens."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np

from ...errors import ConfigError
from ...types import IdArray
from .pace import MOST

# A draft ends before a token that the small model thinks less likely than this.
LEAST_CHANCE = 0.5
# Number of tokens with texts to compare, evenly over both vocabularies.
COMPARED = 4096


class SmallModel:
    """Lets a small model write on. It keeps the text in a context of its own."""

    name = "model"
    chances = (0.7,)

    def __init__(self, model: Any) -> None:
        """Draft with ``model``, an open ``Llama``; `close` closes it."""
        self._model = model
        self._tokens: IdArray = np.empty(0, np.intc)

    def require_vocabulary_of(self, llm: Any) -> None:
        """Check that both models mean the same by a token.

        Raises:
            ConfigError: they do not.
        """
        count = min(llm.n_vocab(), self._model.n_vocab())
        for token in range(0, count, max(1, count // COMPARED)):
            texts = [llama_cpp.llama_vocab_get_text(model._model.vocab, token) for model in (llm, self._model)]
            if texts[0] != texts[1]:
                theirs, ours = (text.decode("utf-8", "replace") for text in texts)
                raise ConfigError(
                    f"the draft model has another vocabulary: token {token} is {ours!r}, not {theirs!r}",
                    "a draft model must be of the same family",
                )

    def find(self, tokens: IdArray) -> tuple[int, int]:
        """Take the text; see `Source.find`."""
        self._tokens = tokens
        return 0, min(MOST, self._model.n_ctx() - len(tokens))

    def read(self) -> None:
        """Compute the text."""
        reach = self._model._prefix.begin(self._tokens)
        self._model.eval(self._tokens[reach:].tolist())

    def draft(self, count: int) -> list[int]:
        """Write on; fewer than ``count`` tokens if the small model becomes unsure."""
        model = self._model
        self.read()
        guesses: list[int] = []
        while True:
            token, chance = self._likeliest()
            if chance < LEAST_CHANCE:
                return guesses
            guesses.append(token)
            if len(guesses) == count:
                return guesses
            model.eval([token])

    def _likeliest(self) -> tuple[int, float]:
        logits = np.ctypeslib.as_array(self._model._ctx.get_logits_ith(-1), shape=(self._model.n_vocab(),))
        token = int(logits.argmax())
        return token, float(1 / np.exp(logits - logits[token]).sum())

    def close(self) -> None:
        """Close the small model."""
        self._model.close()
