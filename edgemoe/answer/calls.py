"""Read the chunks of an answer, and write tool calls: in words, as JSON, in OpenAI's form. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..text.display import one_line
from .record import Answer, ToolCall

_VALUE_WIDTH = 200  # characters of one argument that are shown


class Delta(NamedTuple):
    """Hold the additions of one chunk to an answer. It is false if the chunk adds nothing."""

    thought: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether the chunk adds anything."""
        return bool(self.thought or self.text or self.calls)

    @classmethod
    def of(cls, chunk: Mapping[str, Any]) -> Delta:
        """Read an OpenAI chunk of a stream."""
        delta = chunk["choices"][0]["delta"]
        calls = of_openai(delta.get("tool_calls"))
        return cls(delta.get("reasoning_content") or "", delta.get("content") or "", calls)


def of_openai(calls: object) -> tuple[ToolCall, ...]:
    """Read a list of ``tool_calls``. Entries that are no calls are skipped."""
    found = []
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            arguments = function.get("arguments") or ""
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            found.append(ToolCall(function["name"], text))
    return tuple(found)


def to_openai(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """Write calls as ``tool_calls`` of an OpenAI message."""
    return [
        {"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for number, call in enumerate(calls)
    ]


def to_json(calls: Iterable[ToolCall]) -> str:
    """Write calls as JSON, one object per line; empty without calls."""
    lines = ({"name": call.name, "arguments": call.arguments} for call in calls)
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def of_json(text: str) -> tuple[ToolCall, ...]:
    """Read the text of :func:`to_json`.

    Raises:
        ValueError: the text has another form.
    """
    calls = []
    for line in text.split("\n"):
        if line.strip():
            call = json.loads(line)
            if not isinstance(call, dict) or not all(isinstance(call.get(key), str) for key in ("name", "arguments")):
                raise ValueError("a tool call has no name or no arguments")
            calls.append(ToolCall(call["name"], call["arguments"]))
    return tuple(calls)


def in_words(call: ToolCall) -> str:
    """Describe a call in one line, for example ``called get_weather · city: Oslo``."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = call.arguments
    if isinstance(arguments, dict):
        parts = [f"{one_line(name, _VALUE_WIDTH)}: {_value(value)}" for name, value in arguments.items()]
    else:
        parts = [_value(arguments)]
    return " · ".join([f"called {one_line(call.name, _VALUE_WIDTH)}", *parts])


def as_text(answer: Answer) -> str:
    """Write an answer as text for the clipboard. An answer without text gives its calls in words."""
    return answer.text or "\n".join(in_words(call) for call in answer.calls)


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text, _VALUE_WIDTH)
