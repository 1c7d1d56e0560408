"""Where the user writes: grows with the text, Enter sends it."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.widgets import TextArea

from ..attachments import PASTE_CHARACTERS
from ..commands import completed, matches
from ..keys import Keys

_EDITS = {
    key: binding.action
    for binding in TextArea.BINDINGS
    if isinstance(binding, Binding)
    for key in binding.key.split(",")
}


class Prompt(TextArea):
    """A text area of one line and more. What was sent stays at hand with Up."""

    BINDINGS = [
        Binding("enter", "send", "Send", show=False, id="prompt.send"),
        Binding("shift+enter,ctrl+j", "newline", "New line", show=False, id="prompt.newline"),
        Binding("pageup", "screen.scroll_transcript(-1)", show=False, id="prompt.page_up"),
        Binding("pagedown", "screen.scroll_transcript(1)", show=False, id="prompt.page_down"),
    ]

    @dataclass
    class Submitted(Message):
        """The user sent ``text``. Who cannot use it now gives it back."""

        text: str

    @dataclass
    class Pasted(Message):
        """A paste too long to be shown."""

        text: str

    def __init__(self, keys: Keys, id: str | None = None) -> None:
        """Empty; ``keys`` are named below it."""
        super().__init__(id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False)
        self._sent: list[str] = []
        self._place = 0  # in what was sent; at its end while something new is written
        self._send, self._newline = keys.of("send"), keys.of("newline")
        self._scrolling = {*keys.of("page_up"), *keys.of("page_down")}  # the conversation, not this text
        self._usual = f"{keys.shown('send')} send · {keys.shown('newline')} newline"
        self._keys = self._usual
        self.placeholder = "Ask something, or / for commands"

    def on_mount(self) -> None:
        """Show the keys."""
        self.show_keys()

    def show_keys(self, keys: str = "") -> None:
        """Name the keys that matter now, below the text; those of writing when none is given."""
        self._keys = keys or self._usual
        self.border_subtitle = self._hint()

    def give_back(self, text: str) -> None:
        """What was sent cannot be used now: it stands here again, before what was typed since."""
        self.text = text + self.text
        self.move_cursor(self.document.end)

    def action_send(self) -> None:
        """Send, unless there is nothing but space, and make room at once for what is typed next."""
        if self.text.strip():
            text = self.text
            if not self._sent or self._sent[-1] != text:
                self._sent.append(text)
            self._place = len(self._sent)
            self.clear()
            self.post_message(self.Submitted(text))

    def action_newline(self) -> None:
        """Insert a line break."""
        self.replace("\n", *self.selection)

    def on_text_area_changed(self) -> None:
        """Name the commands that a slash could become."""
        self.border_subtitle = self._hint()

    async def _on_key(self, event: events.Key) -> None:
        # Here and not as bindings, which run when a key has bubbled up: of what comes in a burst, as over a slow line,
        # letters would overtake them, or they letters that still wait in this queue.
        if event.key in self._send:
            event.prevent_default().stop()
            self.action_send()
        elif event.key in self._newline:
            event.prevent_default().stop()
            self.action_newline()
        elif event.key in ("up", "down") and self._recall(-1 if event.key == "up" else 1):
            event.prevent_default().stop()
        elif event.key == "tab" and (whole := completed(self.text)) != self.text:
            event.prevent_default().stop()
            self.text = whole
            self.move_cursor(self.document.end)
        elif event.key not in self._scrolling and (action := _EDITS.get(event.key)) is not None:
            event.prevent_default().stop()
            await self.run_action(action)
        else:
            await super()._on_key(event)

    def _recall(self, step: int) -> bool:
        """Show what was sent before or after; False where the key has to move the cursor instead."""
        shown = self._sent[self._place] if self._place < len(self._sent) else ""
        place = self._place + step
        if self.text != shown or not 0 <= place <= len(self._sent):
            return False
        self._place = place
        self.text = self._sent[place] if place < len(self._sent) else ""
        self.move_cursor(self.document.end)
        return True

    async def _on_paste(self, event: events.Paste) -> None:
        if len(event.text) > PASTE_CHARACTERS:
            event.prevent_default().stop()
            self.post_message(self.Pasted(event.text))
        else:
            await super()._on_paste(event)

    def _hint(self) -> Content:
        found = matches(self.text)
        if not found:
            return Content(self._keys)
        if len(found) == 1:
            return Content(f"{found[0].usage} · {found[0].help}")
        return Content("  ".join(f"/{command.name}" for command in found))
