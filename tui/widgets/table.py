"""A table of an answer as one widget of lines, however many cells it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from textual.app import ComposeResult
from textual.content import Content, Span
from textual.geometry import Size
from textual.widgets.markdown import MarkdownBlock

from ..tables import BETWEEN, Align, Table, row_lines, widths
from .code_lines import CodeLines
from .sideways import Sideways

_LOOKS = {".strong": "bold", ".em": "italic", ".s": "strike", ".code_inline": "$accent"}
_ALIGNS: tuple[Align, ...] = ("right", "center")


class TableLines(CodeLines):
    """A table, laid out for the width there is; rows that are the same as before cost nothing."""

    def __init__(self, table: Table) -> None:
        """Show ``table``."""
        super().__init__("")
        self._table = table
        self._room = 0
        self._wide: list[int] = []
        self._known: list[tuple[Sequence[Content], list[Content]]] = []  # rows and their lines

    def show_table(self, table: Table) -> None:
        """Show ``table``, which has grown."""
        self._table, self._room = table, 0
        self.refresh(layout=True)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """Of the columns, which shrink to ``container`` if they can."""
        self._lay_out(container.width)
        return max(sum(self._wide) + len(BETWEEN) * (len(self._wide) - 1), 1)

    def _lay_out(self, room: int) -> None:
        if room == self._room or room <= 0:
            return
        self._room, table = room, self._table
        wide = widths(table, room)
        if wide != self._wide:
            self._wide, self._known = wide, []
        lines = row_lines(table.header, wide, table.aligns, "bold $primary")
        lines.append(Content.styled(BETWEEN.join("─" * width for width in wide), "$map-cold"))
        known, self._known = self._known, []
        for at, row in enumerate(table.rows):
            same = at < len(known) and all(a.is_same(b) for a, b in zip(known[at][0], row, strict=True))
            drawn = known[at][1] if same else row_lines(row, wide, table.aligns)
            self._known.append((row, drawn))
        is_wrapped = any(len(drawn) > 1 for _, drawn in self._known)
        for at, (_, drawn) in enumerate(self._known):
            lines += ([Content("")] if is_wrapped and at else []) + drawn
        self._lines = lines
        self._strips.clear()


class AnswerTable(MarkdownBlock):
    """A table that wraps its cells, and scrolls to the side where that is not enough."""

    BLANK = True

    def compose(self) -> ComposeResult:
        """The table as lines."""
        yield Sideways(TableLines(self.read()))

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, AnswerTable) and (shown := list(self.query(TableLines))):
            shown[0].show_table(block.read())
        else:
            await super()._update_from_block(block)

    def read(self) -> Table:
        """Read the cells of the blocks that Textual made of the source."""
        rows: list[list[MarkdownBlock]] = []
        for block in _flat(self):
            if block.name == "tr_open":
                rows.append([])
            elif block.name in ("th_open", "td_open"):
                (rows or [[]])[-1].append(block)
        header, *body = rows or [[]]
        aligns = [_align(block) for block in header]
        cells = [[_plain_looks(block._content) for block in row][: len(header)] for row in body]
        filled = [row + [Content("")] * (len(header) - len(row)) for row in cells]
        return Table([_plain_looks(block._content) for block in header], filled, aligns)


def _flat(block: MarkdownBlock) -> Iterator[MarkdownBlock]:
    for child in block._blocks:
        yield child
        yield from _flat(child)


def _align(block: MarkdownBlock) -> Align:
    style = str(block._token.attrs.get("style", ""))
    return next((align for align in _ALIGNS if align in style), "left")


def _plain_looks(cell: Content) -> Content:
    """Name the looks of a cell without the component classes of Textual's block, which this widget does not have."""
    spans = [Span(span.start, span.end, _LOOKS.get(str(span.style), span.style)) for span in cell.spans]
    return Content(cell.plain, spans)
