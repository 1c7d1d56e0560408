"""Stand-in until the real reader lands: a leading thought told apart from the answer."""

from __future__ import annotations

import re
from typing import Any

_OPENED = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*(.*)", re.DOTALL)
_UNCLOSED = re.compile(r"\s*<think>\n?(.*)", re.DOTALL)
_CLOSED = re.compile(r"(.*?)\n</think>\n\s*(.*)", re.DOTALL)
_HARMONY = re.compile(
    r"<\|channel\|>(?P<channel>\w+)[^<]*?(?:to=functions\.(?P<tool>\S+?))?(?:\s*<\|constrain\|>\w+)?<\|message\|>"
    r"(?P<text>.*?)(?:<\|end\|>|<\|return\|>|<\|call\|>|\Z)",
    re.DOTALL,
)


def read(text: str, template: str = "", prompt: str = "") -> dict[str, Any]:
    """Read a whole raw text into an OpenAI assistant message."""
    if text.startswith("<|channel|>"):
        return _harmony(text)
    for pattern in (_OPENED, _CLOSED):
        if found := pattern.fullmatch(text):
            return _message(found[1], found[2])
    if found := _UNCLOSED.fullmatch(text):
        return _message(found[1], "")
    return _message("", text)


def _message(thought: str, content: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | ({"reasoning_content": thought} if thought else {})


def _harmony(text: str) -> dict[str, Any]:
    thoughts, answers = [], []
    calls: list[dict[str, Any]] = []
    for part in _HARMONY.finditer(text):
        if part["tool"]:
            function = {"name": part["tool"], "arguments": part["text"]}
            calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
        elif part["channel"] == "analysis":
            thoughts.append(part["text"])
        else:
            answers.append(part["text"])
    message = _message("\n\n".join(thoughts), "\n\n".join(answers))
    return message | ({"tool_calls": calls} if calls else {})
