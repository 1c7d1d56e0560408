"""An answer as a sequence of parts: the form between a chat's chunks and the events of other interfaces.

An answer consists of parts of three kinds: thinking, text, and calls. `parts` tells where a part begins, grows and
ends; a call comes whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal

from .chat import Chunks, usage_of

Kind = Literal["reasoning", "text", "call"]
_FIELDS: tuple[tuple[str, Kind], ...] = (("reasoning_content", "reasoning"), ("content", "text"))


@dataclass
class Part:
    """One part of an answer.

    Attributes:
        kind: of the part.
        text: the thinking, the text, or the arguments of the call.
        call_id: of a call.
        name: of the called function.
    """

    kind: Kind
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass
class Answer:
    """A whole answer.

    Attributes:
        parts: in their order.
        reason: OpenAI's ``finish_reason``.
        usage: OpenAI's counts of tokens.
    """

    parts: list[Part] = field(default_factory=list)
    reason: str = "stop"
    usage: dict[str, Any] = field(default_factory=dict)


Event = tuple[Literal["begin", "more", "end"], Part, str]


async def parts(chunks: Chunks, answer: Answer) -> AsyncGenerator[Event | None, None]:
    """Yield the events of an answer, and fill ``answer`` meanwhile; None when the request is sound."""
    current: Part | None = None
    async for chunk in chunks:
        if chunk is None:
            yield None
            continue
        for part in _parts_of(chunk):
            if current is not None and (part.kind == "call" or part.kind != current.kind):
                yield "end", current, ""
                current = None
            if current is None:
                current = Part(part.kind, "", part.call_id, part.name)
                answer.parts.append(current)
                yield "begin", current, ""
            current.text += part.text
            yield "more", current, part.text
        answer.reason = _reason(chunk) or answer.reason
        if "timings" in chunk:
            answer.usage = usage_of(chunk["timings"])
    if current is not None:
        yield "end", current, ""


def _parts_of(chunk: dict[str, Any]) -> list[Part]:
    found = []
    for choice in chunk["choices"]:
        delta = choice["delta"]
        found += [Part(kind, delta[name]) for name, kind in _FIELDS if delta.get(name)]
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            found.append(Part("call", function["arguments"], call["id"], function["name"]))
    return found


def _reason(chunk: dict[str, Any]) -> str | None:
    return next((choice["finish_reason"] for choice in chunk["choices"] if choice["finish_reason"]), None)
