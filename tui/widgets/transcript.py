"""The conversation on the screen: it follows the newest line until the user scrolls away."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.widget import Widget

from .welcome import Welcome


class Transcript(VerticalScroll, can_focus=False):
    """Holds turns and notes in their order."""

    BLANK = True  # as in :class:`~tui.widgets.markdown.Section`

    def on_mount(self) -> None:
        """Stay at the end while it grows."""
        self.anchor()

    async def add(self, *turns: Widget) -> None:
        """Append ``turns`` and go to the end; the welcome leaves with the first of them."""
        await self.query(Welcome).remove()
        await self.mount_all(turns)
        self.anchor()

    async def clear(self) -> None:
        """Take everything away."""
        await self.remove_children()
