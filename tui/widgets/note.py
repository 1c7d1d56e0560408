"""A word from the program, between the messages and never part of the conversation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual.content import Content
from textual.widgets import Static

from edgemoe.text.display import visible


class Note(Static):
    """A text with an optional hint; ``wrong`` when something failed."""

    def __init__(self, text: str, hint: str = "", wrong: bool = False) -> None:
        """Show ``text`` and below it ``hint``, both cleaned of control characters."""
        body = Content(visible(text))
        if hint:
            body = Content.assemble(body, "\n", ("hint: ", "$muted"), (visible(hint), "$muted"))
        super().__init__(body, classes="-wrong" if wrong else "")
        self._said = (text, hint, wrong)

    def maker(self) -> Callable[[], Note]:
        """Return a function that makes it again."""
        return partial(Note, *self._said)
