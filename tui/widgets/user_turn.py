"""A message of the user, shown exactly as it was written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual.content import Content
from textual.widgets import Static

from ..text import visible


class UserTurn(Static):
    """Plain text: neither Markdown nor markup."""

    def __init__(self, text: str) -> None:
        """Show ``text``, cleaned of control characters."""
        super().__init__(Content(visible(text)))
        self._text = text

    def maker(self) -> Callable[[], UserTurn]:
        """What makes it again."""
        return partial(UserTurn, self._text)
