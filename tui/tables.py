"""Tables in lines: columns shrink by wrapping their cells, and never below a least width. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from textual.content import Content

LEAST_COLUMN = 10  # characters: a narrower column is not read any more; then the table scrolls
BETWEEN = "  "
Align: TypeAlias = Literal["left", "right", "center"]


@dataclass(frozen=True)
class Table:
    """Header and rows, of as many cells as there are ``aligns``."""

    header: Sequence[Content]
    rows: Sequence[Sequence[Content]]
    aligns: Sequence[Align]


def widths(table: Table, room: int) -> list[int]:
    """Give the width of each column for ``room`` characters, more in all where even the least widths need more."""
    columns = list(zip(table.header, *table.rows, strict=True))
    natural = [max(_widest(cell) for cell in column) for column in columns]
    least = [min(width, LEAST_COLUMN) for width in natural]
    room -= len(BETWEEN) * (len(natural) - 1)
    fitting = list(natural)
    while (over := sum(fitting) - room) > 0:
        widest = max(fitting)
        shrinking = [at for at, width in enumerate(fitting) if width == widest and width > least[at]]
        if not shrinking:
            shrinking = [at for at, width in enumerate(fitting) if width > least[at]]
            if not shrinking:
                break
            widest = max(fitting[at] for at in shrinking)
            shrinking = [at for at in shrinking if fitting[at] == widest]
        below = max((width for width in fitting if width < widest), default=0)
        step = max(min(-(-over // len(shrinking)), widest - below), 1)
        for at in shrinking:
            fitting[at] = max(fitting[at] - step, least[at])
    return fitting


def _widest(cell: Content) -> int:
    return max((line.cell_length for line in cell.split("\n", allow_blank=True)), default=1) or 1


def row_lines(row: Sequence[Content], wide: Sequence[int], aligns: Sequence[Align], look: str = "") -> list[Content]:
    """Lay out one row of cells."""
    wrapped = [cell.wrap(width) or [Content("")] for cell, width in zip(row, wide, strict=True)]
    lines = []
    for number in range(max(map(len, wrapped))):
        parts: list[Content] = []
        for cell, width, align in zip(wrapped, wide, aligns, strict=True):
            parts.append(_padded(cell[number] if number < len(cell) else Content(""), width, align))
        line = Content(BETWEEN).join(parts)
        lines.append(line.stylize(look) if look else line)
    return lines


def _padded(cell: Content, width: int, align: Align) -> Content:
    cell = cell.rstrip()
    gap = max(width - cell.cell_length, 0)
    left = {"left": 0, "right": gap, "center": gap // 2}[align]
    return cell.pad(left, gap - left)
