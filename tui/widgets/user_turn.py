"""A message of the user, shown exactly as it was written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual.content import Content
from textual.widgets import Static

from edgemoe.text.display import visible

from ..records import Key
from .message import ChatMessage


class UserTurn(Static, ChatMessage, can_focus=True):
    """Plain text: neither Markdown nor markup."""

    BINDINGS = ChatMessage.BINDINGS  # Static inherits none

    def __init__(self, text: str, key: Key | None = None) -> None:
        """Show ``text``, cleaned of control characters."""
        super().__init__(Content(visible(text)))
        self._text, self.key = text, key

    def maker(self) -> Callable[[], UserTurn]:
        """Return a function that makes it again."""
        return partial(UserTurn, self._text, self.key)
