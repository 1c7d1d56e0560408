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


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Align columns: the first ``texts`` to the left, the others to the right. Markdown reads it as a table."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, strict=True)
        return "| " + " | ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(padded)) + " |"

    marks = (":" + "-" * (w + 1) if i < texts else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    rule = f"|{'|'.join(marks)}|"
    return "\n".join([line(header), rule, *map(line, rows)])
