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


class PickWindow(Window[Result]):
    """A window with `Picks` below a field that keeps the keys."""

    BINDINGS = [
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("pagedown", "turn(1)", show=False),
        Binding("pageup", "turn(-1)", show=False),
    ]

    def action_move(self, step: int) -> None:
        """Highlight the next or the one before."""
        self.query_one(Picks).move(step)

    def action_turn(self, pages: int) -> None:
        """Highlight an option some pages further or back."""
        self.query_one(Picks).turn(pages)
