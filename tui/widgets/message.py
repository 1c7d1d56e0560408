"""A message of the conversation that can be chosen, and the actions on it."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.widget import Widget

from ..records import Key
from .sideways import Sideways


class ChatMessage(Widget, can_focus=True):
    """The common part of question and answer: chosen by key, never by a click, which selects text.

    Attributes:
        key: of the turn it shows, None while it has none.
    """

    FOCUS_ON_CLICK = False
    BINDINGS = [
        Binding("up", "choose(-1)", show=False),
        Binding("down", "choose(1)", show=False),
        Binding("left", "shift(-8)", show=False),
        Binding("right", "shift(8)", show=False),
        Binding("escape", "leave", show=False),
        Binding("c", "do('copy')", "Copy", show=False, id="message.copy"),
        Binding("e", "do('edit')", "Edit", show=False, id="message.edit"),
        Binding("r", "do('regenerate')", "Regenerate", show=False, id="message.regenerate"),
        Binding("n", "do('continue')", "Continue", show=False, id="message.continue"),
    ]
    key: Key | None = None

    class Chosen(Message):
        """A message was chosen, or is no longer."""

    @dataclass
    class Moved(Message):
        """The message ``step`` after the one that is chosen by then is wanted: keys may come faster than the choice."""

        step: int

    @dataclass
    class Wanted(Message):
        """Something shall be done with ``message``: copy, edit, regenerate, continue; or leave it."""

        message: ChatMessage
        what: str

    def on_focus(self, event: events.Focus) -> None:
        """Tell it."""
        self.post_message(self.Chosen())

    def on_blur(self, event: events.Blur) -> None:
        """Tell it."""
        self.post_message(self.Chosen())

    def action_choose(self, step: int) -> None:
        """Go to the message before or after."""
        self.post_message(self.Moved(step))

    def action_shift(self, columns: int) -> None:
        """Scroll wide code and tables to the side."""
        for wide in self.query(Sideways):
            wide.shift(columns)

    def action_do(self, what: str) -> None:
        """Ask for ``what``."""
        self.post_message(self.Wanted(self, what))

    def action_leave(self) -> None:
        """Back to the prompt."""
        self.post_message(self.Wanted(self, "leave"))
