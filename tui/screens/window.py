"""The one style of windows over the chat: centred, with a title and its keys; Esc and Ctrl+C close it."""

from __future__ import annotations

from typing import TypeVar

from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import OptionList

Result = TypeVar("Result")


class Window(ModalScreen[Result]):
    """A window that closes with a result."""

    BINDINGS = [
        Binding("escape", "dismiss(None)", "Back", show=False),
        Binding("ctrl+c", "dismiss(None)", show=False, priority=True),
    ]


class Picks(OptionList, can_focus=False):
    """A list that is moved through from the field above it, which keeps the keys."""

    def move(self, step: int) -> None:
        """Highlight the next or the one before."""
        if step > 0:
            self.action_cursor_down()
        else:
            self.action_cursor_up()

    def turn(self, pages: int) -> None:
        """Highlight an option some pages further or back."""
        for _ in range(max(self.size.height // 2, 1)):
            self.move(pages)
