"""The attachments of the next question as chips above the prompt: seen, counted, removed by a click or a key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.containers import ItemGrid
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from edgemoe.text.display import one_line

from ..attachments import Attachment


class Chip(Static):
    """One attachment; a click removes it."""

    @dataclass
    class Removed(Message):
        """The user wants ``attachment`` away."""

        attachment: Attachment

    def __init__(self, attachment: Attachment, too_long: bool) -> None:
        """Name ``attachment``, in the colour of an error where it is ``too_long`` for the model."""
        words = f"{one_line(attachment.name, 24)} · too long" if too_long else attachment.summary
        super().__init__(Content.assemble(("× ", "bold"), words), classes="-wrong" if too_long else "")
        self._attachment = attachment

    def on_click(self) -> None:
        """Ask for its removal."""
        self.post_message(self.Removed(self._attachment))


class AttachmentBar(ItemGrid):
    """Chips side by side where there is room."""

    def __init__(self) -> None:
        """Hide until there is an attachment."""
        super().__init__(id="attachments", min_column_width=36, stretch_height=False)

    def on_mount(self) -> None:
        """Hide."""
        self.display = False

    async def show(self, attachments: Sequence[tuple[Attachment, bool]]) -> None:
        """Show each of ``attachments``, with whether it is too long for the model."""
        self.display = bool(attachments)
        await self.remove_children()
        await self.mount_all(Chip(attachment, too_long) for attachment, too_long in attachments)
