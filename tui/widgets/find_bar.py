"""The field that finds words in the open chat: it shows which message of how many is seen."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

_KEYS = "Enter, Up older · Down newer · Esc back"


class FindBar(Horizontal):
    """Hidden until it is opened; begins with the newest message."""

    BINDINGS = [
        Binding("up", "step(-1)", show=False),
        Binding("down", "step(1)", show=False),
        Binding("escape", "close", show=False),
        Binding("ctrl+c", "close", show=False, priority=True),
        Binding("tab,shift+tab", "close", show=False),
    ]

    @dataclass
    class Wanted(Message):
        """The message ``number`` with the words of ``text`` is to be shown; -1 is the newest."""

        text: str
        number: int

    class Closed(Message):
        """The user is done."""

    def __init__(self) -> None:
        """Hide."""
        super().__init__(id="find")
        self._at = -1

    def compose(self) -> ComposeResult:
        """The words, then which message is seen."""
        yield Input(placeholder="Find in this chat")
        yield Static(_KEYS, markup=False)

    def on_mount(self) -> None:
        """Hide."""
        self.display = False

    def open(self, text: str, take_keys: bool) -> None:
        """Show the field with ``text`` in it, and go to the newest message that has its words."""
        self.display = True
        field = self.query_one(Input)
        if take_keys:
            self.screen.set_focus(field)  # at once
        with self.prevent(Input.Changed):
            field.value = text
        self._seek(-1)

    def tell(self, at: int, many: int) -> None:
        """Say that message ``at`` of ``many`` (from 0) is seen."""
        self._at = at
        found = f"{at + 1} of {many}" if many else "nothing found" if self.query_one(Input).value.strip() else ""
        self.query_one(Static).update(" · ".join(filter(None, (found, _KEYS))))

    def _seek(self, number: int) -> None:
        self.post_message(self.Wanted(self.query_one(Input).value, number))

    @on(Input.Changed)
    def _typed(self) -> None:
        self._seek(-1)

    @on(Input.Submitted)
    def _entered(self) -> None:
        self._seek(self._at - 1)

    def action_step(self, step: int) -> None:
        """Go to the next older or newer message."""
        self._seek(self._at + step)

    def action_close(self) -> None:
        """Give the keys back; the chat stays where it is."""
        self.display = False
        self.post_message(self.Closed())
