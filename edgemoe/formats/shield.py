"""Keep markers that a user or an answer wrote as text: the template and the vocabulary must not see them. Pure.

``shielded`` puts a character that occurs in no text into each marker before a template sees the messages. ``pieces``
takes the character out again, and cuts the prompt into text of the template and text of the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# A noncharacter of Unicode. Programs may use it internally; it never occurs in text.
_MARK = "\ufdd0"


def shielded(text: str, markers: Iterable[str]) -> str:
    """Put a mark after the first character of every marker in ``text``."""
    found = sorted({marker for marker in markers if len(marker) > 1 and marker in text}, key=len, reverse=True)
    if not found:
        return text
    return re.sub("|".join(map(re.escape, found)), lambda match: f"{match[0][0]}{_MARK}{match[0][1:]}", text)


def pieces(prompt: str, markers: Iterable[str]) -> list[tuple[str, bool]]:
    """Cut ``prompt`` into pieces without marks. True marks a piece with special tokens, False a piece of plain text."""
    if _MARK not in prompt:
        return [(prompt, True)]
    ordered = sorted({marker for marker in markers if len(marker) > 1}, key=len, reverse=True)
    shields = "|".join(re.escape(f"{marker[0]}{_MARK}{marker[1:]}") for marker in ordered)
    parts = re.split(f"({shields})", prompt)
    cut = [(part.replace(_MARK, ""), number % 2 == 0) for number, part in enumerate(parts)]
    return [(part, special) for part, special in cut if part]
