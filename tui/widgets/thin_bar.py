"""Scroll bars of half a character: they show where the view is and take no attention."""

from __future__ import annotations

from math import ceil

from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style
from textual.scrollbar import ScrollBarRender

_DEFAULT = Color.parse("default")
_GRAB, _BACK, _ON = ({"@mouse.down": what} for what in ("grab", "scroll_up", "scroll_down"))


class ThinBar(ScrollBarRender):
    """Draws the part that is seen as a thin line, and nothing beside it."""

    @classmethod
    def render_bar(
        cls,
        size: int = 25,
        virtual_size: float = 50,
        window_size: float = 20,
        position: float = 0,
        thickness: int = 1,
        vertical: bool = True,
        back_color: Color = _DEFAULT,
        bar_color: Color = _DEFAULT,
    ) -> Segments:
        """Draw ``size`` characters: the view of ``window_size`` begins at ``position`` of ``virtual_size``."""
        ground = Style(bgcolor=back_color)
        begin, end = 0, 0
        if window_size and size and virtual_size > window_size:
            long = max(1, round(size * window_size / virtual_size))
            begin = min(ceil((size - long) * position / (virtual_size - window_size)), size - long)
            end = begin + long
        line = Segment("▐" if vertical else "▂", Style(color=bar_color, bgcolor=back_color, meta=_GRAB))
        before, after = (Segment(" ", ground + Style(meta=meta)) for meta in (_BACK, _ON))
        segments = [before] * begin + [line] * (end - begin) + [after] * (size - end)
        return Segments(segments if vertical else [*segments, Segment.line()], new_lines=vertical)
