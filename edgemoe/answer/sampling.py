"""The sampling settings of ``/set``, their kinds and their bounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..types import Thinking

Value = float | int
MAX_TOKENS = 1024  # default for a model without thinking: a small model can repeat itself forever


@dataclass(frozen=True)
class Setting:
    """Describe a keyword of ``create_chat_completion``: its range, its effect, and whether it is a whole number."""

    name: str
    low: float
    high: float
    help: str
    whole: bool = False


SETTINGS = (
    Setting("temperature", 0, 2, "0 takes the likeliest token; higher is bolder"),
    Setting("top_p", 0, 1, "the likeliest tokens up to this probability"),
    Setting("top_k", 0, 1000, "so many of the likeliest tokens; 0 for all", whole=True),
    Setting("min_p", 0, 1, "tokens with this share of the likeliest one's probability"),
    Setting("repeat_penalty", 0.1, 5, "above 1 the model repeats itself less"),
    Setting("max_tokens", 1, 1_000_000, "the longest answer", whole=True),
    Setting("seed", 0, 2**32 - 1, "the same seed gives the same answer", whole=True),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def change(now: Mapping[str, Value], text: str) -> dict[str, Value]:
    """Apply ``text`` (``NAME VALUE``, or ``NAME default``) to the settings ``now``.

    Raises:
        ValueError: there is no such setting, or its value is out of range.
    """
    name, _, value = text.replace("=", " ").strip().partition(" ")
    setting, value = _BY_NAME.get(name.lower()), value.strip()
    if setting is None:
        raise ValueError(f"there is no setting {name}; there are: {', '.join(_BY_NAME)}")
    if value.lower() == "default":
        return {key: kept for key, kept in now.items() if key != setting.name}
    try:
        number: Value = int(value) if setting.whole else float(value)
    except ValueError:
        number = float("nan")
    if not setting.low <= number <= setting.high:
        kind = "a whole number" if setting.whole else "a number"
        raise ValueError(f"{setting.name} is {kind} from {setting.low:g} to {setting.high:g}, or 'default'")
    return {**now, setting.name: number}


def limit(now: Mapping[str, Value], thinking: Thinking) -> int | None:
    """Give the most tokens of an answer; None for the rest of the context.

    Without a setting, only a model without thinking has a limit, because the length of thinking is unknown.
    """
    if (given := now.get("max_tokens")) is not None:
        return int(given)
    return None if thinking.thinks else MAX_TOKENS


def keywords(now: Mapping[str, Value], thinking: Thinking, think: str = "") -> dict[str, Any]:
    """Turn the settings ``now`` into keywords of ``create_chat_completion``, with the limit and the level ``think``."""
    effort = {"reasoning_effort": think} if think else {}
    return {**now, "max_tokens": limit(now, thinking), **effort}


def listing(now: Mapping[str, Value], thinking: Thinking, think: str = "") -> str:
    """List every setting with its current value, one per line."""
    most = limit({}, thinking)
    usual = {"max_tokens": "default: the rest of the context" if most is None else f"default: {most}"}
    lines = [f"{setting.name:<16}{now.get(setting.name, usual.get(setting.name, 'default'))}" for setting in SETTINGS]
    return "\n".join([*lines, f"{'think':<16}{think or 'default'} (/think)"] if thinking.levels else lines)
