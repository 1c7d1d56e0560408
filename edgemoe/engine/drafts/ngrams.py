"""Drafts without a model: the tokens that followed the same words earlier in the conversation. Pure."""

from __future__ import annotations

import numpy as np

from ...types import IdArray
from .pace import MOST

# Fewest tokens that must agree. Two agree by chance too often.
LEAST = 3
# Longest agreement that is looked for, and the number of places that are compared so far back.
LONGEST, PLACES = 24, 64
# Shortest agreement of each kind of guess, after the first: the longer the agreement, the likelier the guess.
KINDS = (5, 9, 17)


class NGrams:
    """Finds the latest of the longest earlier occurrences of the newest tokens."""

    name = "ngram"
    chances = (0.4, 0.6, 0.8, 0.9)

    def __init__(self) -> None:
        """Begin without a text."""
        self._tokens: IdArray = np.empty(0, np.intc)
        self._at = 0  # place of the token that followed

    def find(self, tokens: IdArray) -> tuple[int, int]:
        """Find an earlier occurrence; see `Source.find`."""
        self._tokens = tokens
        places, newest = _places(tokens), len(tokens) - 1
        if not len(places):
            return 0, 0
        length = LEAST
        while length < min(LONGEST, newest):
            longer = places[(places >= length) & (tokens[places - length] == tokens[newest - length])]
            if not len(longer):
                break
            places, length = longer, length + 1
        self._at = int(places[-1]) + 1
        return sum(length >= least for least in KINDS), MOST

    def read(self) -> None:
        """Do nothing: a text need not be computed."""

    def draft(self, count: int) -> list[int]:
        """Give the tokens that followed. At the end of the text they repeat, as in a list of equal lines."""
        period = len(self._tokens) - self._at
        return [int(self._tokens[self._at + step % period]) for step in range(count)]


def _places(tokens: IdArray) -> IdArray:
    """Give the latest earlier places where the newest ``LEAST`` tokens end."""
    newest = len(tokens) - 1
    if newest < LEAST:
        return np.empty(0, np.intc)
    agree = tokens[LEAST - 1 : newest] == tokens[newest]
    for back in range(1, LEAST):
        agree &= tokens[LEAST - 1 - back : newest - back] == tokens[newest - back]
    return np.flatnonzero(agree)[-PLACES:].astype(np.intc) + LEAST - 1
