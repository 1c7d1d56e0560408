"""Takes widgets away together with their drawings."""

from __future__ import annotations

from textual.widget import Widget


async def discard(widget: Widget) -> None:
    """Remove ``widget``; Textual 8 remembers up to 1,024 drawings of dead widgets, here they are empty ones."""
    for node in widget.walk_children(Widget, with_self=True):
        node.refresh()
    await widget.remove()
