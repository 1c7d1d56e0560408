"""The figures under an answer: they break between two, never inside one."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widgets import Static

from edgemoe.text.display import flow


class ReceiptLine(Static):
    """A receipt in words, of as many lines as it needs."""

    def render(self) -> Content:
        """The lines for the width there is."""
        return Content(flow(str(self.content), self.content_size.width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Count the lines in ``width`` characters; a longer figure takes as many as it needs."""
        lines = flow(str(self.content), width).split("\n")
        return sum(max(1, -(-len(line) // max(width, 1))) for line in lines)
