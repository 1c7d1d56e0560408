"""Drafts: several tokens a step. A source guesses the next tokens, and the model checks all of them in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .answer import Drafted
from .head import Head, has_head
from .ngrams import NGrams
from .pace import Pace
from .small_model import SmallModel
from .source import Source

__all__ = ["SNAPSHOTS", "Drafts", "Head", "NGrams", "SmallModel", "Source", "has_head"]

# Most guesses of a step, if llama.cpp keeps a copy of a recurrent state for each of them.
SNAPSHOTS = 4


class Drafts:
    """The drafts of one model.

    Attributes:
        source: guesses tokens.
        pace: chooses the number of guesses; it learns from every answer.
    """

    def __init__(self, llm: Any, source: Source) -> None:
        """Draft for the model ``llm``."""
        self._llm, self.source = llm, source
        self.pace = Pace(source.chances)

    def answer(self, tokens: Sequence[int], options: dict[str, Any]) -> Drafted:
        """Begin an answer, see `Drafted`."""
        return Drafted(self._llm, self.source, self.pace, tokens, options)

    def counts(self) -> tuple[int, int, int]:
        """Count steps, guesses and right guesses since the model was loaded."""
        return self.pace.steps, self.pace.offered, self.pace.accepted
