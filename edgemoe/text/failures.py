"""Errors in words: what happened and what to do about it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import EdgeMoEError
from .display import visible


class Failure(NamedTuple):
    """An error as the user reads it: ``text`` is one line, ``hint`` one line or empty."""

    text: str
    hint: str


def in_words(error: BaseException) -> Failure:
    """Describe ``error``; ours carry their own hint, the well-known ones of llama_cpp get one here."""
    text = " ".join(visible(str(error)).split())
    if isinstance(error, EdgeMoEError):
        return Failure(text or type(error).__name__, error.hint)
    if "exceed context window" in text:
        return Failure("the conversation is longer than the context", "a new chat, or a larger --ctx")
    if isinstance(error, MemoryError):
        return Failure("out of memory", "a smaller --ctx or --vram may fit")
    return Failure(f"{type(error).__name__}: {text}" if text else type(error).__name__, "")
