"""Markers that a person or an answer wrote as text stay text: they reach neither the template nor the vocabulary. Pure.

A character that no text holds is put into each of them before a template sees the messages, and taken out afterwards,
when the prompt is cut into what the template wrote and what it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# A noncharacter of Unicode: for use inside a program, never for text.
_MARK = "\ufdd0"


def shielded(text: str, markers: Iterable[str]) -> str:
    """``text`` with a mark behind the first character of every marker in it."""
    found = sorted({marker for marker in markers if len(marker) > 1 and marker in text}, key=len, reverse=True)
    if not found:
        return text
    return re.sub("|".join(map(re.escape, found)), lambda match: f"{match[0][0]}{_MARK}{match[0][1:]}", text)


def pieces(prompt: str, markers: Iterable[str]) -> list[tuple[str, bool]]:
    """``prompt`` without marks, in pieces: each with whether special tokens in it are meant as such."""
    if _MARK not in prompt:
        return [(prompt, True)]
    ordered = sorted({marker for marker in markers if len(marker) > 1}, key=len, reverse=True)
    shields = "|".join(re.escape(f"{marker[0]}{_MARK}{marker[1:]}") for marker in ordered)
    parts = re.split(f"({shields})", prompt)
    cut = [(part.replace(_MARK, ""), number % 2 == 0) for number, part in enumerate(parts)]
    return [(part, special) for part, special in cut if part]
