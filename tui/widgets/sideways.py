"""A place for lines that are wider than the screen: a thin bar below shows that there is more at the side."""

from __future__ import annotations

from textual.widget import Widget


class Sideways(Widget):
    """Scrolls its content to the side, never up or down."""

    BLANK = True  # its content draws itself
    DEFAULT_CSS = """
    Sideways {
        width: 100%;
        height: auto;
        overflow: auto hidden;
        scrollbar-size-horizontal: 1;
    }
    """

    def __init__(self, content: Widget) -> None:
        """Hold ``content``."""
        super().__init__(content)

    def shift(self, columns: int) -> None:
        """Move by so many characters."""
        self.scroll_relative(x=columns, animate=False)
