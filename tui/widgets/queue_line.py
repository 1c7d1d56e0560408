"""The messages that wait for the answer under way, above the prompt."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from edgemoe.text.display import one_line


class QueueLine(Static):
    """Shows what is sent next; hidden while nothing waits."""

    def __init__(self) -> None:
        """Hide."""
        super().__init__(Content(""), id="queue")
        self._waiting: list[str] = []

    def on_mount(self) -> None:
        """Hide."""
        self.display = False

    def __len__(self) -> int:
        """Count the messages that wait."""
        return len(self._waiting)

    def put(self, text: str) -> None:
        """Let ``text`` wait behind the others."""
        self._waiting.append(text)
        self._show()

    def take(self) -> str:
        """Give the first that waits, empty for none."""
        text = self._waiting.pop(0) if self._waiting else ""
        self._show()
        return text

    def take_last(self) -> str:
        """Give the last that waits, empty for none."""
        text = self._waiting.pop() if self._waiting else ""
        self._show()
        return text

    def _show(self) -> None:
        self.display = bool(self._waiting)
        width = max(self.app.size.width - 40, 20)
        lines = [Content.assemble(("next  ", "bold $primary"), one_line(text, width)) for text in self._waiting]
        if lines:
            lines[-1] = Content.assemble(lines[-1], ("  Backspace takes it back", "$muted"))
        self.update(Content("\n").join(lines))
