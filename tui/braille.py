"""Graphs in braille: every character has two columns of four dots. Pure."""

from __future__ import annotations

from collections.abc import Sequence

DOTS = 4  # rows of dots in a character
_BLANK = 0x2800
_LEFT, _RIGHT = (0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08)  # the dots of a column, lowest first
_UPPER_ROW, _LOWER_ROW = 0x02 | 0x10, 0x40 | 0x80  # the row of a bar in the upper and in the lower half


def area(values: Sequence[float], width: int, height: int = 1) -> list[str]:
    """Draw the last values of 0..1 as a filled area of ``width`` x ``height`` characters, the newest on the right.

    Every value has at least one dot, so that a value of 0 differs from none.
    """
    shown = columns(values, width)
    levels = [0 if value is None else min(max(round(value * DOTS * height), 1), DOTS * height) for value in shown]
    rows = []
    for below in range(DOTS * (height - 1), -1, -DOTS):
        pairs = zip(levels[::2], levels[1::2], strict=True)
        rows.append("".join(chr(_BLANK + _column(a - below, _LEFT) + _column(b - below, _RIGHT)) for a, b in pairs))
    return rows


def columns(values: Sequence[float], width: int) -> list[float | None]:
    """Give the last values that ``width`` characters show, and None where there is no value yet."""
    recent = list(values[max(len(values) - 2 * width, 0) :])
    return [*([None] * (2 * width - len(recent))), *recent]


def _column(level: int, dots: Sequence[int]) -> int:
    return sum(dots[: max(level, 0)])


def pair_of_bars(upper: float | None, lower: float | None, width: int) -> str:
    """Draw two shares of 0..1 as thin bars, one above the other in one line of ``width`` characters."""
    high, low = (0 if share is None else round(share * 2 * width) for share in (upper, lower))
    return "".join(
        chr(_BLANK + _part(high - at, _UPPER_ROW) + _part(low - at, _LOWER_ROW)) for at in range(0, 2 * width, 2)
    )


def _part(columns: int, row: int) -> int:
    """Give the dots of ``row`` in a character of which ``columns`` are filled."""
    return row if columns > 1 else row & (_LEFT[0] | _LEFT[2]) if columns == 1 else 0


def bar(share: float | None, width: int) -> str:
    """Draw a share of 0..1 as a heavy line, in half characters."""
    halves = 0 if share is None else round(share * 2 * width)
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width)
