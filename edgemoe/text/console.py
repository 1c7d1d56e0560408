"""Terminal output that commands share: messages on stderr, a progress line, tables."""

from __future__ import annotations

import codecs
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BAR = 24


def mend_streams() -> None:
    """Repair the standard streams: reopen a closed one on the null device, and replace characters it cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their descriptors
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for as long as the program)
        elif mode == "w" and stream.encoding and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")


def readable(arguments: Sequence[str]) -> list[str]:
    """Decode arguments as UTF-8 if the locale only knows ASCII."""
    return [
        os.fsencode(text).decode("utf-8", "replace") if any("\ud800" <= sign <= "\udfff" for sign in text) else text
        for text in arguments
    ]


def talk(text: str, end: str = "\n") -> None:
    """Print a message on stderr, so that stdout holds data only."""
    print(text, file=sys.stderr, end=end, flush=True)


@contextmanager
def warnings_as_notes() -> Iterator[list[str]]:
    """Print each Python warning as a note; give a list that collects the texts."""
    texts: list[str] = []

    def show(message: Warning | str, *details: object) -> None:
        texts.append(str(message))
        talk(f"note: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield texts


def show_progress(share: float, step: str) -> None:
    """Draw one line over the last one. If stderr is no terminal, nothing is drawn."""
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
