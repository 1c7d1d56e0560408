"""Words in a text. Pure."""

from __future__ import annotations


def has_words(text: str, words: str) -> bool:
    """Tell whether every word of ``words`` is somewhere in ``text``, in letters of either case; False without any."""
    low = text.lower()
    return bool(words.split()) and all(word in low for word in words.lower().split())
