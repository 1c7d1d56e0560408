"""How much a model shall think: the words for it, and whether a model knows them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..types import Thinking

LEVELS = ("on", "off", "low", "medium", "high")
DEFAULT = "default"  # what the template does when nothing is said
SHOW, HIDE = "show", "hide"  # of /think: the thinking on the screen


def refusal(level: str, thinking: Thinking) -> str:
    """Why a model cannot think as ``level`` says, in one sentence; empty when it can."""
    if level in thinking.levels:
        return ""
    if not thinking.levels:
        always = "always" if thinking.thinks else "never"
        return f"this model {always} thinks before it answers and cannot be switched"
    return f"this model's thinking can be set to {', '.join(thinking.levels)}, not to {level}"


def complaint(word: str, thinking: Thinking) -> str:
    """What is wrong with ``word`` behind /think; empty when it can be obeyed."""
    if thinking.levels and word == DEFAULT:
        return ""
    if word not in (*LEVELS, DEFAULT):
        return f"there is no level {word}; there are: {', '.join((*LEVELS, DEFAULT))}"
    return refusal(word, thinking)


def in_words(level: str, thinking: Thinking) -> str:
    """The level in force and those there are."""
    if not thinking.levels:
        return refusal(level, thinking)
    return f"thinking: {level or DEFAULT} (/think {', '.join((*thinking.levels, DEFAULT))})"
