"""OpenAI's Responses: their requests as chats, and answers in their items and events. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .chat import EFFORTS, forced
from .failures import Refused
from .parts import Answer, Event, Part
from .shapes import Item, NamedResponseTool, ResponsesRequest
from .shapes import Part as Content

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def keywords(request: ResponsesRequest, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Make the keywords of the engine's chat.

    Raises:
        Refused: the request refers to a stored answer, or holds an item that cannot be read.
    """
    if request.previous_response_id is not None:
        raise Refused(400, "this server stores no responses", "send the whole conversation as input")
    given = request.model_dump(exclude_none=True, include={"temperature", "top_p", "top_k", "min_p", "repeat_penalty"})
    if request.max_output_tokens is not None:
        given["max_tokens"] = request.max_output_tokens
    if request.reasoning is not None and request.reasoning.effort is not None:
        given["reasoning_effort"] = EFFORTS.get(request.reasoning.effort, request.reasoning.effort)
    if request.tools:
        given |= _tools(request)
    if request.text is not None and request.text.format is not None:
        given["response_format"] = _format(request)
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    return {**usual, **forced(given), "messages": [*system, *_messages(request.input)]}


def _tools(request: ResponsesRequest) -> dict[str, Any]:
    functions = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in request.tools or ()]
    given: dict[str, Any] = {"tools": [{"type": "function", "function": function} for function in functions]}
    choice = request.tool_choice
    if isinstance(choice, NamedResponseTool):
        given["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        given["tool_choice"] = choice
    return given


def _format(request: ResponsesRequest) -> dict[str, Any]:
    assert request.text is not None and request.text.format is not None
    wanted = request.text.format
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}


def _messages(given: str | list[Item]) -> list[dict[str, Any]]:
    """Turn the items into a chat: calls join the message of the assistant before them."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for item in given:
        if item.type == "function_call_output":
            output = _text(item.output or "")
            messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": output})
        elif item.type == "message":
            role = item.role or "user"
            before = messages[-1] if messages and role == "assistant" else {}
            if before.get("role") == "assistant" and not before["content"] and "tool_calls" not in before:
                before["content"] = _text(item.content or "")
            else:
                messages.append({"role": role, "content": _text(item.content or "")})
        else:
            _add_to_assistant(messages, item)
    return messages


def _add_to_assistant(messages: list[dict[str, Any]], item: Item) -> None:
    """Add a call or thinking to the assistant's last message, or begin a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    last = messages[-1]
    if item.type == "reasoning":
        last["reasoning_content"] = last.get("reasoning_content", "") + _text(item.content or "")
        return
    function = {"name": item.name or "", "arguments": item.arguments or "{}"}
    call = {"id": item.call_id or "", "type": "function", "function": function}
    last["tool_calls"] = [*last.get("tool_calls", ()), call]


def _text(content: str | list[Content]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in _TEXTS:
            raise Refused(400, f"this model reads text only, and the input holds a part of the type {part.type!r}")
    return "".join(part.text or "" for part in content)


# Answers.


class Writer:
    """Writes one answer as a response, whole or in events."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        """Begin a response to ``request``."""
        self._request, self._model = request, model
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._ids: list[str] = []
        self._number = 0

    def response(self, answer: Answer, status: str = "") -> dict[str, Any]:
        """Write the response as it is now; without ``status`` it is complete."""
        cut = answer.reason == "length"
        request, choice = self._request, self._request.tool_choice
        items = [self._item(at, part, "completed") for at, part in enumerate(answer.parts)] if not status else []
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status or ("incomplete" if cut else "completed"),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut and not status else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": items,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "text": {"format": {"type": "text"}},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedResponseTool) else choice or "auto",
            "tools": [{"parameters": None, "strict": None, **tool.model_dump()} for tool in request.tools or ()],
            "usage": None if status else _usage(answer),
        }

    def _item(self, at: int, part: Part, status: str) -> dict[str, Any]:
        while len(self._ids) <= at:
            prefix = {"reasoning": "rs", "text": "msg", "call": "fc"}[part.kind]
            self._ids.append(f"{prefix}_{uuid.uuid4().hex}")
        known = {"id": self._ids[at], "status": status}
        done = status == "completed"
        if part.kind == "call":
            call = {"call_id": part.call_id, "name": part.name, "arguments": part.text if done else ""}
            return {**known, "type": "function_call", **call}
        if part.kind == "reasoning":
            content = [{"type": "reasoning_text", "text": part.text}] if done else []
            return {**known, "type": "reasoning", "summary": [], "content": content}
        content = [_content(part.text)] if done else []
        return {**known, "type": "message", "role": "assistant", "content": content}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **fields}

    async def events(
        self, pieces: AsyncGenerator[Event | None, None], answer: Answer
    ) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Yield the events of a streamed answer."""
        async for piece in pieces:
            if piece is None:
                yield None
                for kind in ("created", "in_progress"):
                    yield self._event(kind, response=self.response(answer, "in_progress"))
                continue
            for event in self._events_of(*piece, len(answer.parts) - 1):
                yield event
        final = self.response(answer)
        yield self._event(final["status"], response=final)

    def _events_of(self, kind: str, part: Part, text: str, at: int) -> list[dict[str, Any]]:
        if kind == "begin":
            item = self._item(at, part, "in_progress")
            events = [self._event("output_item.added", output_index=at, item=item)]
            if part.kind == "text":
                events.append(self._event("content_part.added", **self._place(at), content_index=0, part=_content("")))
            return events
        place = self._place(at) if part.kind == "call" else {**self._place(at), "content_index": 0}
        name = {"call": "function_call_arguments", "reasoning": "reasoning_text", "text": "output_text"}[part.kind]
        logprobs: dict[str, Any] = {"logprobs": []} if part.kind == "text" else {}
        if kind == "more":
            return [self._event(f"{name}.delta", **place, delta=text, **logprobs)]
        field = "arguments" if part.kind == "call" else "text"
        named = {"name": part.name} if part.kind == "call" else {}
        events = [self._event(f"{name}.done", **place, **{field: part.text}, **named, **logprobs)]
        if part.kind == "text":
            events.append(self._event("content_part.done", **place, part=_content(part.text)))
        return [*events, self._event("output_item.done", output_index=at, item=self._item(at, part, "completed"))]

    def _place(self, at: int) -> dict[str, Any]:
        return {"item_id": self._ids[at], "output_index": at}


def _content(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
