"""Rewrite messages so that one template can express them, without losing any content. Pure.

**Source**: OpenAI's chat messages, and the abilities that :class:`~edgemoe.formats.template.Template` finds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import BadMessages
from .reading import HarmonyReader, Reader, TagReader
from .styles import Style, style_of
from .template import Message, Template

_PARTS = {"image_url": "an image", "image": "an image", "input_audio": "sound", "audio": "sound", "video": "a video"}
_PARTS |= {"video_url": "a video", "file": "a file", "input_image": "an image"}
_HINT = "a model with a projector (mmproj) takes it through chat_handler="


def prepared(
    template: Template, messages: Sequence[Any], shield: Callable[[str], str] = lambda text: text
) -> list[Message]:
    """Copy ``messages`` into the form that ``template`` takes.

    Args:
        template: chat template of the model.
        messages: messages in OpenAI's shape: ``content`` may be None or a list of parts, ``arguments`` a JSON string.
        shield: function that is applied to every text of a user, a tool or an answer.

    Raises:
        BadMessages: a message holds an image, sound or video, or an item is no message.
    """
    style = style_of(template.text)
    given = [_plain(message) for message in messages]
    for message in given:
        if message["role"] == "assistant":
            _split(message, style)
        if isinstance(message.get("content"), str):
            message["content"] = shield(message["content"])
    given = _systems(template, given)
    return _calls(template, style, given)


def _plain(message: Any) -> Message:
    """Copy a message, with text or None as its content."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadMessages("a message needs a role and content", 'for example {"role": "user", "content": "Hello"}')
    copy = {key: value for key, value in message.items() if value is not None or key == "content"}
    if not copy.get("tool_calls"):
        copy.pop("tool_calls", None)
    content = copy.get("content")
    if isinstance(content, list):
        copy["content"] = "\n".join(_text_of(part) for part in content)
    elif content is None and "tool_calls" not in copy:
        copy["content"] = ""
    if copy["role"] == "developer":
        copy["role"] = "system"
    return copy


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "") if isinstance(part, dict) else ""
    if kind in _PARTS or any(key in _PARTS for key in (part if isinstance(part, dict) else ())):
        named = next((key for key in (kind, *part) if key in _PARTS), kind)
        raise BadMessages(f"this model reads text only: a message holds {_PARTS[named]} ({named})", _HINT)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadMessages(f"a part of a message is neither text nor of a known kind: {kind or part!r}")


def _split(message: Message, style: Style) -> None:
    """Separate thinking and answer in a model's raw text. Clients that do not know thinking send such text back."""
    content = message.get("content")
    if not isinstance(content, str) or message.get("reasoning_content") is not None:
        return
    start = content.lstrip()
    if style.harmony:
        if not start.startswith(("<|channel|>", "<|start|>")):
            return
        given: Reader = HarmonyReader()
    else:
        pair = next((pair for pair in style.thinking if start.startswith(pair[0])), None)
        loose = pair is None and next(
            (p for p in style.thinking if re.search(rf"^\s*{re.escape(p[1])}", content, re.MULTILINE)), None
        )
        if pair is None and not loose:
            return
        given = TagReader(Style(thinking=style.thinking), loose[0] if loose else "")
    given.feed(content)
    given.end()
    read = given.message()
    message["content"] = read["content"]
    if "reasoning_content" in read:
        message["reasoning_content"] = read["reasoning_content"]


# System messages.


def _systems(template: Template, messages: list[Message]) -> list[Message]:
    """Join system messages into one in front. If the template takes none, the text goes before the first question."""
    lead = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    first, rest = messages[:lead], messages[lead:]
    if any(message["role"] == "system" for message in rest) and not template.takes_later_system:
        first += [message for message in rest if message["role"] == "system"]
        rest = [message for message in rest if message["role"] != "system"]
    if not first:
        return rest
    text = "\n\n".join(message["content"] for message in first if message["content"])
    if template.takes_system:
        return [{**first[0], "content": text}, *rest]
    at = next((at for at, message in enumerate(rest) if message["role"] == "user"), None)
    if at is None:
        return [{"role": "user", "content": text}, *rest]
    joined = "\n\n".join(part for part in (text, rest[at]["content"]) if part)
    return [*rest[:at], {**rest[at], "content": joined}, *rest[at + 1 :]]


# Calls and their results.


def _calls(template: Template, style: Style, messages: list[Message]) -> list[Message]:
    names: dict[str, str] = {}
    changed: list[Message] = []
    several = any(len(message.get("tool_calls", ())) > 1 for message in messages) and not template.takes_several_calls
    for message in _paired(messages) if several else messages:
        if message["role"] == "assistant":
            calls = [_call(call) for call in message.get("tool_calls", ())]
            names |= {call["id"]: call["function"]["name"] for call in calls if call.get("id")}
            changed += _answer(template, style, message, calls)
        elif message["role"] == "tool":
            name = message.get("name") or names.get(str(message.get("tool_call_id")), "")
            changed.append(_result(template, message, name, bool(names)))
        else:
            changed.append(message)
    return changed


def _call(call: Any) -> dict[str, Any]:
    """Copy a call, with its arguments as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadMessages("a tool call needs a function with a name and arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", strict=False)
        except ValueError:
            arguments = {"input": arguments}
    if not isinstance(arguments, dict):
        arguments = {} if arguments is None else {"input": arguments}
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _answer(template: Template, style: Style, message: Message, calls: list[dict[str, Any]]) -> list[Message]:
    answer = {key: value for key, value in message.items() if key != "tool_calls"}
    content, thought = answer.get("content") or "", answer.get("reasoning_content")
    answer["content"] = content
    field = _field(template.text)
    if thought and field != "reasoning_content":
        answer[field] = thought
    if not calls:
        return [answer]
    form = template.call_form
    if form is None:
        written = "\n".join(_written(style, call) for call in calls)
        return [{**answer, "content": f"{content}\n{written}" if content else written}]
    as_object, empty = form
    given = calls if as_object else [_as_text(call) for call in calls]
    if not content:
        return [{**answer, "content": empty, "tool_calls": given}]
    if style.harmony and thought:  # gpt-oss's template takes either the thinking or the content
        answer["thinking"], content = f"{thought}\n\n{content}", ""
        return [{**answer, "content": content, "tool_calls": given}]
    if template.takes_content_with_calls or not template.takes_answers_in_a_row:
        return [{**answer, "tool_calls": given}]
    called = {key: value for key, value in answer.items() if key != "reasoning_content"}
    return [answer, {**called, "content": empty, "tool_calls": given}]


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _field(template: str) -> str:
    """Find the template's name for the thinking of a message; empty if it has none."""
    if "reasoning_content" in template:
        return "reasoning_content"
    return next(
        (name for name in ("thinking", "reasoning") if re.search(rf"\.{name}\b|['\"]{name}['\"]", template)), ""
    )


def _written(style: Style, call: dict[str, Any]) -> str:
    """Write a call in the family's notation, for a template that leaves calls out."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if any(known.start == "<|tool_call_start|>" for known in style.calls):
        given = ", ".join(f"{key}={_python(value)}" for key, value in arguments.items())
        return f"<|tool_call_start|>[{name}({given})]<|tool_call_end|>"
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def _python(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _result(template: Template, message: Message, name: str, after_call: bool) -> Message:
    """Rewrite a tool's result. If the template leaves results out, it becomes a message of the user."""
    content = message.get("content") or ""
    if template.takes_results and after_call:
        return {**message, "content": content} | ({"name": name} if name else {})
    if template.call_form is None and _shows_results(template):
        return {**message, "content": content}
    return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}


def _shows_results(template: Template) -> bool:
    tail: Iterable[Message] = [{"role": "tool", "content": "Resultwords"}]
    shown = template.attempt([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}, *tail])
    return "Resultwords" in shown


def _paired(messages: list[Message]) -> list[Message]:
    """Give every call its own message, followed by its result, for templates that write only the first call."""
    changed: list[Message] = []
    results = {str(m.get("tool_call_id")): m for m in messages if m["role"] == "tool"}
    moved: set[int] = set()
    for message in messages:
        calls = message.get("tool_calls", [])
        if len(calls) < 2:
            if id(message) not in moved:
                changed.append(message)
            continue
        for number, call in enumerate(calls):
            alone = message if number == 0 else {"role": "assistant", "content": None}
            changed.append({**alone, "tool_calls": [call]})
            result = results.get(str(call.get("id"))) if isinstance(call, dict) else None
            if result is not None:
                changed.append(result)
                moved.add(id(result))
    return changed
