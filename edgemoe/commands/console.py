"""What commands share on a terminal: talk on stderr, progress that does not litter a file, tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

BAR = 24


def talk(text: str, end: str = "\n") -> None:
    """Say something that is not data."""
    print(text, file=sys.stderr, end=end, flush=True)


def show_progress(share: float, step: str) -> None:
    """Draw one line over the last one; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        return
    if share >= 1.0:
        talk("\r\x1b[K", end="")
        return
    full = round(min(max(share, 0.0), 1.0) * BAR)
    talk(f"\r{'█' * full}{'░' * (BAR - full)} {share:4.0%}  {step[:44]}\x1b[K", end="")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right. Plain text that Markdown reads as a table."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(":" + "-" * (w + 1) if not i else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])
