"""Describe errors in words, each with a hint that may help. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import EdgeMoEError
from .display import visible


class Failure(NamedTuple):
    """Describe an error for the user: ``text`` is one line, ``hint`` one line or empty."""

    text: str
    hint: str


def in_words(error: BaseException) -> Failure:
    """Describe ``error``. Our errors carry their own hint; common errors of llama_cpp get a hint here."""
    text = " ".join(visible(str(error)).split())
    if isinstance(error, EdgeMoEError):
        return Failure(text or type(error).__name__, error.hint)
    if "exceed context window" in text:
        return Failure("the conversation is longer than the context", "a new chat, or a larger --ctx")
    if isinstance(error, MemoryError):
        return Failure("out of memory", "a smaller --ctx or --vram may fit")
    return Failure(f"{type(error).__name__}: {text}" if text else type(error).__name__, "")
