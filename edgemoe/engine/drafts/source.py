"""The interface of a source of drafts."""

from __future__ import annotations

from typing import Protocol

from ...types import IdArray


class Source(Protocol):
    """Guesses the next tokens of a text.

    Attributes:
        name: name of the source, as in ``OffloadConfig.speculative``.
        chances: for each kind of guess, the share of its tokens that is right, before anything is measured.
    """

    @property
    def name(self) -> str:
        """Give the name."""
        ...

    @property
    def chances(self) -> tuple[float, ...]:
        """Give the shares."""
        ...

    def find(self, tokens: IdArray) -> tuple[int, int]:
        """Look at a text; return the kind of the guess and its greatest length, 0 without a guess.

        Args:
            tokens: the text so far. The array is valid until `draft` returns.
        """
        ...

    def read(self) -> None:
        """Compute the text of the latest `find`, so that `draft` need not."""
        ...

    def draft(self, count: int) -> list[int]:
        """Guess at most ``count`` tokens behind the text of the latest `find`."""
        ...
