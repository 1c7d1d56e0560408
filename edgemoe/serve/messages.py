"""Anthropic's Messages: their requests as chats, and answers in their blocks and events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .chat import forced
from .failures import Refused
from .parts import Answer, Event, Part
from .shapes import Block, MessagesRequest
from .shapes import Part as Content

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_UNREADABLE = {"image": "images", "document": "documents"}


def keywords(request: MessagesRequest, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Make the keywords of the engine's chat.

    Raises:
        Refused: a block cannot be read.
    """
    body = request.model_dump(exclude_none=True, include={"temperature", "top_p", "top_k", "min_p", "max_tokens"})
    if request.stop_sequences:
        body["stop"] = request.stop_sequences
    if request.thinking is not None:
        body["reasoning_effort"] = "off" if request.thinking.type == "disabled" else "on"
    if request.tools:
        body["tools"] = [_tool(tool.name, tool.description, tool.input_schema) for tool in request.tools]
        body |= _choice(request)
    system = [{"role": "system", "content": _text(request.system)}] if request.system else []
    messages = [message for given in request.messages for message in _messages(given.role, given.content)]
    return {**usual, **forced(body), "messages": [*system, *messages]}


def _tool(name: str, description: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "parameters": schema} | ({"description": description} if description else {})
    return {"type": "function", "function": function}


def _choice(request: MessagesRequest) -> dict[str, Any]:
    choice = request.tool_choice
    if choice is None or choice.type == "auto":
        return {}
    if choice.type == "tool":
        return {"tool_choice": {"type": "function", "function": {"name": choice.name or ""}}}
    return {"tool_choice": "required" if choice.type == "any" else "none"}


def _messages(role: str, content: str | list[Block]) -> list[dict[str, Any]]:
    """Turn one message into OpenAI's: results of tools first, then the text, with thinking and calls."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": _text(block.content or "")}
        for block in content
        if block.type == "tool_result"
    ]
    rest = [block for block in content if block.type != "tool_result"]
    message: dict[str, Any] = {"role": role, "content": _text([block for block in rest if block.type == "text"])}
    if thought := "".join(block.thinking or "" for block in rest if block.type == "thinking"):
        message["reasoning_content"] = thought
    if calls := [_call(block) for block in rest if block.type == "tool_use"]:
        message["tool_calls"] = calls
    for block in rest:
        if block.type not in ("text", "thinking", "redacted_thinking", "tool_use"):
            what = _UNREADABLE.get(block.type, f"blocks of the type {block.type!r}")
            raise Refused(400, f"this model reads text only, and the messages hold {what}")
    return [*results, *([message] if rest else [])]


def _call(block: Block) -> dict[str, Any]:
    function = {"name": block.name or "", "arguments": json.dumps(block.input or {}, ensure_ascii=False)}
    return {"id": block.id or "", "type": "function", "function": function}


def _text(content: str | list[Block] | list[Content]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text":
            what = _UNREADABLE.get(part.type, f"blocks of the type {part.type!r}")
            raise Refused(400, f"this model reads text only, and the messages hold {what}")
    return "\n".join(part.text or "" for part in content)


# Answers.


def message(answer: Answer, model: str) -> dict[str, Any]:
    """Write a whole answer."""
    return {
        **_begun(model),
        "content": [_block(part, part.text) for part in answer.parts],
        "stop_reason": _REASONS.get(answer.reason, "end_turn"),
        "usage": _usage(answer),
    }


def _begun(model: str) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def _usage(answer: Answer) -> dict[str, int]:
    usage = answer.usage or {"prompt_tokens": 0, "completion_tokens": 0}
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }


def _block(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "call":
        return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": json.loads(text) if text else {}}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text}


def _delta(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "call":
        return {"type": "input_json_delta", "partial_json": text}
    if part.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


async def events(
    pieces: AsyncGenerator[Event | None, None], answer: Answer, model: str
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Yield the events of a streamed answer."""
    index = -1
    async for piece in pieces:
        if piece is None:
            yield None
            yield {"type": "message_start", "message": _begun(model)}
            continue
        kind, part, text = piece
        if kind == "begin":
            index += 1
            yield {"type": "content_block_start", "index": index, "content_block": _block(part, "")}
        elif kind == "more":
            yield {"type": "content_block_delta", "index": index, "delta": _delta(part, text)}
        else:
            yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": _REASONS.get(answer.reason, "end_turn"), "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": _usage(answer)}
    yield {"type": "message_stop"}
