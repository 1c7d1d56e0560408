"""Levels of thinking: their names, and checks of a level against a model. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..types import Thinking

LEVELS = ("on", "off", "low", "medium", "high")
DEFAULT = "default"  # the template's own level
SHOW, HIDE = "show", "hide"  # words after /think that show or hide thinking on the screen


def refusal(level: str, thinking: Thinking) -> str:
    """Give the reason why a model cannot think at ``level``, in one sentence; empty if it can."""
    if level in thinking.levels:
        return ""
    if not thinking.levels:
        always = "always" if thinking.thinks else "never"
        return f"this model {always} thinks before it answers and cannot be switched"
    return f"this model's thinking can be set to {', '.join(thinking.levels)}, not to {level}"


def complaint(word: str, thinking: Thinking) -> str:
    """Give the error of ``word`` after /think, in one sentence; empty if the word is valid."""
    if thinking.levels and word == DEFAULT:
        return ""
    if word not in (*LEVELS, DEFAULT):
        return f"there is no level {word}; there are: {', '.join((*LEVELS, DEFAULT))}"
    return refusal(word, thinking)


def in_words(level: str, thinking: Thinking) -> str:
    """Describe the current level and the levels of the model."""
    if not thinking.levels:
        return refusal(level, thinking)
    return f"thinking: {level or DEFAULT} (/think {', '.join((*thinking.levels, DEFAULT))})"
