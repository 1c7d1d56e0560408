"""Learn the markers of an unlisted family from a render of its template. Pure."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from .calls import Call, Calls, Parse, Schemas, _text, _typed, in_json
from .template import ANSWER, KEY, THOUGHT, TOOL, VALUE, Message, Template

_MARKER = re.compile(r"<[^<>\n]{1,60}>|\[[^\[\]\n]{1,40}\]")
_LAST = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\]|\S+)\s*$")
_QUESTION: Message = {"role": "user", "content": "Questionwords"}


class Learnt(NamedTuple):
    """Hold the learnt notation of calls.

    Attributes:
        start: marker before the calls.
        end: marker after the calls.
        parse: function that reads the text between the markers.
        inner: other markers of the notation.
    """

    start: str
    end: str
    parse: Parse
    inner: tuple[str, ...] = ()


def learnt_thinking(template: Template | None) -> tuple[str, str] | None:
    """Find the pair of markers that the template writes around thinking; None if it writes none."""
    if template is None:
        return None
    thought = {name: THOUGHT for name in ("reasoning_content", "reasoning", "thinking")}
    answers = [{"role": "assistant", "content": ANSWER}]
    if template.call_form is not None:  # some templates keep thinking only in answers that call tools
        answers.append({**template.called(template.call_form[0], ANSWER)[1]})
    for answer in answers:
        for switch in ({}, {"enable_thinking": True, "thinking": True}):
            shown = template.attempt([_QUESTION, answer | thought], generate=False, **switch)
            before, _, after = shown.partition(THOUGHT)
            prompt = template.attempt([_QUESTION], **switch)
            opening = before[_common(before, prompt) :].strip() or (_LAST.findall(before) or [""])[0]
            closing = after.partition(ANSWER)[0].strip()
            if ANSWER in after and opening and closing:
                return opening, closing
    return None


def learnt_call(template: Template | None) -> Learnt | None:
    """Learn the template's notation of a call; None if it writes no calls or the notation cannot be read back."""
    if template is None or (form := template.call_form) is None:
        return None
    text = _written(template, 1, form)
    if TOOL not in text or VALUE not in text:
        return None
    learnt = _object(text) or _named(text) or _listed(text)
    if learnt is None or not template.takes_several_calls:
        return learnt
    _, _, rest = _written(template, 2, form).partition(VALUE)
    between = rest.partition(TOOL)[0]
    cut = between.partition(learnt.start)
    if not cut[1] or cut[0].strip().endswith(learnt.end):  # each call has markers of its own
        both = _written(template, 2, form)
        if cut[1] or f"{learnt.end}{learnt.start}" in re.sub(r"\s+", "", both):
            return learnt
    return _several(learnt, template, form)


def _several(one: Learnt, template: Template, form: tuple[bool, str | None]) -> Learnt:
    """Learn the separator of calls that share their outer markers."""
    text = _written(template, 2, form)
    first, second = text.find(TOOL), text.find(TOOL, text.find(VALUE))
    single = _written(template, 1, form)
    tail = single[single.find(VALUE) + len(VALUE) :].removesuffix(one.end)
    between = text[text.find(VALUE) + len(VALUE) + len(tail) : second].strip()
    if first < 0 or not between:
        return one

    def parse(body: str, schemas: Schemas) -> Calls:
        read = [one.parse(part, schemas) for part in body.split(between)]
        return [call for calls in read if calls for call in calls] if all(read) else None

    return Learnt(one.start, one.end, parse, (*one.inner, between))


def _written(template: Template, count: int, form: tuple[bool, str | None]) -> str:
    """Render an answer with ``count`` calls, and cut out the text that the calls add."""
    messages = template.called(*form, count)[:2]
    shown = template.attempt(messages, generate=False)
    without = template.attempt([_QUESTION, {"role": "assistant", "content": ""}], generate=False)
    begin, end = _common(shown, without), len(shown) - _common_end(shown, without)
    return shown[begin:end].strip() if begin < end else ""


def _common(first: str, second: str) -> int:
    """Count the characters with which both texts begin, without a marker that agrees only in part."""
    alike = zip(first, second, strict=False)
    count = next((at for at, (a, b) in enumerate(alike) if a != b), min(len(first), len(second)))
    begun = re.search(r"[<\[][^<>\[\]]*$", first[:count])
    return begun.start() if begun else count


def _common_end(first: str, second: str) -> int:
    """Count the characters with which both texts end, without a marker that agrees only in part."""
    alike = zip(reversed(first), reversed(second), strict=False)
    count = next((at for at, (a, b) in enumerate(alike) if a != b), min(len(first), len(second)))
    cut = len(first) - count
    inside = next((m for m in _MARKER.finditer(first) if m.start() < cut < m.end()), None)
    return len(first) - (inside.end() if inside else cut)


def _object(text: str) -> Learnt | None:
    """Learn a notation with a JSON object of name and arguments."""
    for match in re.finditer(r"[\[{]", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        if isinstance(value, dict | list) and TOOL in json.dumps(value) and VALUE in json.dumps(value):
            start, close = text[: match.start()].strip(), text[end:].strip()
            return Learnt(start, close, in_json) if start else None
    return None


def _named(text: str) -> Learnt | None:
    """Learn a notation with the name between two markers, then the arguments as JSON."""
    before, _, after = text.partition(TOOL)
    at = after.find("{")
    if at < 0 or not before.strip():
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(after, at)
    except ValueError:
        return None
    if value != {KEY: VALUE}:
        return None
    separator = after[:at].strip()
    head = re.compile(rf"\s*(?P<name>[\w.:/-]+?)\s*{re.escape(separator)}\s*(?=\{{)", re.DOTALL)

    def parse(body: str, schemas: Schemas) -> Calls:
        match = head.match(body)
        if match is None:
            return None
        try:
            arguments, stop = json.JSONDecoder(strict=False).raw_decode(body, match.end())
        except ValueError:
            return None
        return None if body[stop:].strip() else [Call(match["name"], _text(arguments))]

    return Learnt(before.strip(), after[end:].strip(), parse, (separator,) if separator else ())


def _listed(text: str) -> Learnt | None:
    """Learn a notation with the name, then markers around every key and every value."""
    before, _, after = text.partition(TOOL)
    name_end, key, rest = after.partition(KEY)
    between, value, close = rest.partition(VALUE)
    if not (before.strip() and key and value and between.strip()):
        return None
    closing = re.match(r"\s*(\S[^\n]*?>|\S+)", close)
    if closing is None:
        return None
    head_end, opening = _cut(name_end)
    one = re.compile(
        rf"\s*{re.escape(opening)}(?P<key>.+?){re.escape(between.strip())}\s*(?P<value>.*?)\s*{re.escape(closing[1])}",
        re.DOTALL,
    )
    head = re.compile(rf"\s*(?P<name>[\w.:/-]+?)\s*{re.escape(head_end)}\s*(?={re.escape(opening)}|$)")

    def parse(body: str, schemas: Schemas) -> Calls:
        match = head.match(body)
        if match is None:
            return None
        given = body[match.end() :]
        if one.sub("", given).strip():
            return None
        return [_typed(match["name"], {m["key"].strip(): m["value"] for m in one.finditer(given)}, schemas)]

    return Learnt(before.strip(), close[closing.end() :].strip(), parse, (head_end, opening, between.strip()))


def _cut(text: str) -> tuple[str, str]:
    """Cut the text after a name into the end of the name and the marker before a key. The last marker is the key's."""
    at = max(text.rfind("<"), text.rfind("["))
    return (text[:at].strip(), text[at:].strip()) if at > 0 else ("", text.strip())
