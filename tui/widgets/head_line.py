"""The line above the conversation: its title, and settings that change the answers."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from edgemoe.text.display import one_line


class HeadLine(Widget):
    """Title on the left, settings on the right; hidden while there is neither."""

    chat_title = reactive("")
    settings = reactive("")

    def watch_chat_title(self) -> None:
        """Hide without a word."""
        self.display = bool(self.chat_title or self.settings)

    def watch_settings(self) -> None:
        """Hide without a word."""
        self.display = bool(self.chat_title or self.settings)

    def render(self) -> Content:
        """Give the line for the width there is; the title makes room for the settings."""
        width = self.size.width - 2
        settings = one_line(self.settings, width)
        title = one_line(self.chat_title, max(width - len(settings) - 2, 0))
        gap = " " * max(width - len(title) - len(settings), 0)
        return Content.assemble(" ", (title, "bold"), gap, (settings, "$muted"), " ")
