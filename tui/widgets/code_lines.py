"""Lines of code, each drawn when it is seen: the cost of a block does not grow with its length."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions
from textual.widget import Widget

_MOST_STRIPS = 500  # drawn lines that are remembered: more than a screen has


class CodeLines(Widget):
    """Text that is never wrapped, plain or coloured; it can be selected."""

    def __init__(self, code: str) -> None:
        """Show ``code``, plain."""
        super().__init__()
        self._lines: list[Content] = []
        self._strips: dict[int, Strip] = {}
        self._widest = 0
        self.show(code)

    @property
    def spans(self) -> int:
        """Coloured stretches there are: none while the code is plain."""
        return sum(len(line.spans) for line in self._lines)

    def show(self, code: str) -> None:
        """Show plain ``code``; lines that are the same as before cost nothing."""
        fresh = code.rstrip("\n").split("\n")
        same = 0
        for line, text in zip(self._lines, fresh, strict=False):
            if line.spans or line.plain != text:
                break
            same += 1
        if same < max(len(fresh), len(self._lines)):
            self._replace(same, [Content(text.expandtabs(8)) for text in fresh[same:]])

    def colour(self, code: Content) -> None:
        """Show coloured ``code``."""
        self._replace(0, list(code.expand_tabs(8).split("\n", allow_blank=True)))

    def _replace(self, start: int, lines: list[Content]) -> None:
        before = (len(self._lines), self._widest)
        self._lines[start:] = lines
        self._strips = {y: strip for y, strip in self._strips.items() if y < start}
        widest = max((line.cell_length for line in lines), default=0)
        self._widest = max(self._widest, widest) if start else widest
        if not self.is_mounted:
            return
        if before != (len(self._lines), self._widest):
            self.refresh(layout=True)
        else:
            self.refresh(Region(0, start, self.size.width, len(lines)))

    def notify_style_update(self) -> None:
        """Another theme has other colours."""
        self._strips.clear()
        super().notify_style_update()

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """Of the longest line."""
        return self._widest

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One for each line."""
        return len(self._lines)

    def selection_updated(self, selection: Selection | None) -> None:
        """Draw the selection."""
        self._strips.clear()
        super().selection_updated(selection)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected code."""
        return selection.extract("\n".join(line.plain for line in self._lines)), "\n"

    def render_line(self, y: int) -> Strip:
        """Line ``y``, as wide as the widget."""
        if (strip := self._strips.get(y)) is None:
            if len(self._strips) >= _MOST_STRIPS:
                self._strips.clear()
            strip = self._strips[y] = self._drawn(y)
        return strip.extend_cell_length(self.size.width, self.visual_style.rich_style)

    def _drawn(self, y: int) -> Strip:
        if y >= len(self._lines):
            return Strip([])
        line, selection = self._lines[y], self.text_selection
        if selection is not None and (span := selection.get_span(y)) is not None:
            start, end = span
            look = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            line = line.stylize(look, start, len(line) if end == -1 else end)
        if not line:
            return Strip([])
        options = RenderOptions(self._get_style, {}, None, None)
        return line.render_strips(line.cell_length, 1, self.visual_style, options)[0].apply_offsets(0, y)
