"""Words and figures as they are shown: no control characters, units people read. Pure."""

from __future__ import annotations

import unicodedata

_KEPT = {"\n", "\t"}
# Both end a line for str.splitlines but not for a Markdown parser, which counts lines by "\n".
_LINE_ENDS = {"\u2028": "\n", "\u2029": "\n"}
# Bidirectional overrides can make shown text differ from the text there is.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """``text`` without what a terminal could obey: control characters but newline and tab, and overrides.

    Works character by character, so cleaning pieces and cleaning their sum give the same.
    """
    if text.isprintable():
        return text
    return "".join(_LINE_ENDS.get(mark, mark) for mark in text if not _is_hidden(mark))


def _is_hidden(mark: str) -> bool:
    return (unicodedata.category(mark) in ("Cc", "Cs") and mark not in _KEPT) or mark in _OVERRIDES


def one_line(text: str, width: int) -> str:
    """``text`` cleaned, on one line, cut to ``width`` characters with an ellipsis."""
    line = " ".join(visible(text).split())
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def flow(text: str, width: int, between: str = " · ") -> str:
    """``text`` in lines of ``width`` characters that end between two of its parts where they can."""
    lines = []
    for paragraph in text.split("\n"):
        line, *rest = paragraph.split(between)
        for part in rest:
            if len(line) + len(between) + len(part) <= width:
                line += between + part
            else:
                lines.append(line)
                line = part
        lines.append(line)
    return "\n".join(lines)


def size(count: float) -> str:
    """A number of bytes in MiB, or GiB from one GiB up."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def seconds(value: float) -> str:
    """A duration given in seconds, in ms below one second."""
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def duration(value: float) -> str:
    """A duration of some seconds or minutes, without fractions above one second."""
    if value < 0.9995:
        return seconds(value)
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def rate(per_second: float) -> str:
    """Tokens per second: one digit after the point below 100."""
    return f"{per_second:.0f} tok/s" if per_second >= 100 else f"{per_second:.1f} tok/s"


def percent(share: float) -> str:
    """A share of 0..1 in per cent. Only a full share is written as 100 %."""
    return f"{min(round(share * 100), 99 if share < 1 else 100)} %"


def count(value: int) -> str:
    """A whole number with its thousands grouped."""
    return f"{value:,}"
