"""Format words and figures for people: without control characters, with readable units. Pure."""

from __future__ import annotations

import unicodedata

_KEPT = {"\n", "\t"}
# Both end a line for str.splitlines but not for a Markdown parser, which counts lines by "\n".
_LINE_ENDS = {"\u2028": "\n", "\u2029": "\n"}
# Bidirectional overrides can make a terminal show a text in another order.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Remove the characters that control a terminal: overrides, and control characters except newline and tab.

    Each character is judged alone, so cleaning the pieces of a text gives the same as cleaning the whole.
    """
    if text.isprintable():
        return text
    return "".join(_LINE_ENDS.get(mark, mark) for mark in text if not _is_hidden(mark))


def _is_hidden(mark: str) -> bool:
    return (unicodedata.category(mark) in ("Cc", "Cs") and mark not in _KEPT) or mark in _OVERRIDES


def one_line(text: str, width: int) -> str:
    """Clean ``text``, put it on one line, and cut it to ``width`` characters with an ellipsis."""
    line = " ".join(visible(text).split())
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def flow(text: str, width: int, between: str = " · ") -> str:
    """Break ``text`` into lines of ``width`` characters. A line breaks at ``between``; a longer part stays whole."""
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
    """Write a number of bytes in MiB, or in GiB from one GiB up."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def seconds(value: float) -> str:
    """Write a duration in seconds, or in ms below one second."""
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def duration(value: float) -> str:
    """Write a duration of seconds or minutes, without fractions above one second."""
    if value < 0.9995:
        return seconds(value)
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def ago(seconds_ago: float) -> str:
    """Write the age of something, for example ``3 h ago``."""
    for name, long in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds_ago >= long:
            return f"{int(seconds_ago // long)} {name} ago"
    return "just now"


def rate(per_second: float) -> str:
    """Write tokens per second, with one digit after the point below 100."""
    return f"{per_second:.0f} tok/s" if per_second >= 100 else f"{per_second:.1f} tok/s"


def percent(share: float) -> str:
    """Write a share of 0..1 in per cent. Only a full share is written as 100 %."""
    return f"{min(round(share * 100), 99 if share < 1 else 100)} %"


def count(value: int) -> str:
    """Write a whole number with its thousands grouped."""
    return f"{value:,}"
