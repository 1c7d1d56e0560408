"""A model's thinking told apart from its answer. Pure."""

from __future__ import annotations

from typing import NamedTuple

_OPEN, _CLOSE = "<think>", "</think>"


class Parts(NamedTuple):
    """``thought`` and ``answer`` of a text; ``closed`` once the thinking is complete (or there is none)."""

    thought: str
    answer: str
    closed: bool


def split(text: str) -> Parts:
    """Tell them apart while the text still grows: a tag that is half there belongs to neither."""
    start = text.lstrip()
    if not start.startswith(_OPEN):
        half = _OPEN.startswith(start)
        return Parts("", "" if half else text, not half)
    thought, closed, answer = start[len(_OPEN) :].partition(_CLOSE)
    if closed:
        return Parts(thought.strip("\n"), answer.lstrip("\n"), True)
    for length in range(len(_CLOSE) - 1, 0, -1):
        if thought.endswith(_CLOSE[:length]):
            thought = thought[:-length]
            break
    return Parts(thought.lstrip("\n"), "", False)
