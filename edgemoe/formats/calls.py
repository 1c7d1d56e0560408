"""Read tool calls from the text that a model writes: one function per notation. Pure.

Every function takes the text between a family's outer markers and returns its calls, or None if the text is not a
complete call. None is no error: the reader waits for more text, or keeps the text as it is.

**Source**: the notations come from the publishers' chat templates. The parameter types of an XML notation follow the
tool's JSON schema if there is one, as in the publishers' own parsers.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias


class Call(NamedTuple):
    """Hold one tool call. ``arguments`` is JSON text; ``id`` is empty if the model gives none."""

    name: str
    arguments: str
    id: str = ""


Schemas: TypeAlias = Mapping[str, Mapping[str, Any]]
"""JSON schema of each parameter, by tool and parameter name."""
Calls: TypeAlias = list[Call] | None
Parse: TypeAlias = Callable[[str, Schemas], Calls]

_NAME = r"[\w.$:/-]+"
_INVOKE = re.compile(r'<(?P<p>｜DSML｜|\w+:)?invoke name="(?P<name>[^"]+)">(?P<body>.*?)</(?P=p)?invoke>', re.DOTALL)
_PARAMETER = r'<(?:｜DSML｜|\w+:)?parameter name="(?P<key>[^"]+)"(?: string="(?P<text>true|false)")?>(?P<value>.*?)'
_INVOKED = re.compile(
    _PARAMETER + r"</(?:｜DSML｜|\w+:)?parameter>(?=\s*(?:<(?:｜DSML｜|\w+:)?parameter name=|$))", re.DOTALL
)
_TAGGED = re.compile(r"<(?P<key>[\w.-]+)>(?P<value>.*?)</(?P=key)>\s*", re.DOTALL)
_FUNCTION = re.compile(
    rf'<function(?:=| name=")(?P<name>{_NAME}?)"?>(?P<body>.*?)</function>(?=\s*(?:<function|$))', re.DOTALL
)
_OF_FUNCTION = re.compile(
    r'<param(?:eter)?(?:=| name=")(?P<key>[^">]+)"?>(?P<value>.*?)</param(?:eter)?>(?=\s*(?:<param|$))', re.DOTALL
)
_PAIRED = re.compile(
    r"<arg_key(?P<s>[^>]*)>(?P<key>.*?)</arg_key(?P=s)>\s*<arg_value(?P=s)>(?P<value>.*?)</arg_value(?P=s)>"
    r"(?=\s*(?:<arg_key|$))",
    re.DOTALL,
)
_PAIRED_NAME = re.compile(rf"\s*(?P<name>{_NAME})\s*(?:<tool_sep[^>]*>)?\s*(?=<arg_key|$)")
_MINIMAX = "]<]minimax[>["


def anything(text: str, schemas: Schemas) -> Calls:
    """Read the notations that share ``<tool_call>``: JSON, functions, invocations, keys and values."""
    body = text.strip()
    if body.startswith(("{", "[")):
        return in_json(body, schemas) or pythonic(body, schemas)
    if body.startswith("<function"):
        return functions(body, schemas)
    if "invoke name=" in body[:40]:
        return invocations(body, schemas)
    if body.startswith("<tool_call"):
        return nested(body, schemas)
    return keys_and_values(body, schemas)


def in_json(text: str, schemas: Schemas) -> Calls:
    """Read ``{"name": ..., "arguments": {...}}``, a list of such objects, or several in a row."""
    values, at, body = [], 0, text.strip()
    while at < len(body):
        try:
            value, at = json.JSONDecoder(strict=False).raw_decode(body, at)
        except ValueError:
            return None
        values += value if isinstance(value, list) else [value]
        while at < len(body) and body[at] in " \t\r\n,;":
            at += 1
    calls = [_of_object(value) for value in values]
    return [call for call in calls if call] if calls and all(calls) else None


def _of_object(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = {**value, **value["function"]}
    name = next((value[key] for key in ("name", "tool_name", "function") if isinstance(value.get(key), str)), None)
    if name is None:  # {"get_weather": {"city": "Oslo"}}
        if len(value) != 1:
            return None
        name, arguments = next(iter(value.items()))
        return Call(name, _text(arguments)) if isinstance(arguments, dict) else None
    arguments = next((value[key] for key in ("arguments", "parameters", "args") if key in value), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    identity = next((value[key] for key in ("id", "tool_call_id") if isinstance(value.get(key), str)), "")
    return Call(name, _text(arguments if arguments is not None else {}), identity)


def functions(text: str, schemas: Schemas) -> Calls:
    """Read ``<function=NAME><parameter=KEY>VALUE</parameter></function>`` (Qwen, Seed, MiniCPM), or ``name="..."``."""
    calls, end = [], 0
    for match in _FUNCTION.finditer(text):
        if text[end : match.start()].strip():
            return None
        body = match["body"].strip()
        given = {m["key"]: m["value"] for m in _OF_FUNCTION.finditer(body)}
        if _OF_FUNCTION.sub("", body).strip():
            return None
        calls.append(_typed(match["name"], {key: _unwrapped(value) for key, value in given.items()}, schemas))
        end = match.end()
    return calls if calls and not text[end:].strip() else None


def invocations(text: str, schemas: Schemas) -> Calls:
    """Read ``<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>``: MiniMax and DeepSeek's DSML."""
    calls, end = [], 0
    for match in _INVOKE.finditer(text):
        if text[end : match.start()].strip():
            return None
        body = match["body"].strip()
        found = list(_INVOKED.finditer(body))
        if not found and body:
            found = list(_TAGGED.finditer(body))
            if _TAGGED.sub("", body).strip():
                return None
        given: dict[str, Any] = {}
        for parameter in found:
            kind = parameter.groupdict().get("text")
            value = _unwrapped(parameter["value"])
            given[parameter["key"]] = value if kind is None else value if kind == "true" else _from_json(value)
        exact = any(parameter.groupdict().get("text") for parameter in found)
        calls.append(Call(match["name"], _text(given)) if exact else _typed(match["name"], given, schemas))
        end = match.end()
    return calls if calls and not text[end:].strip() else None


def minimax_m3(text: str, schemas: Schemas) -> Calls:
    """Read MiniMax M3: invocations with a mark before every tag and a tag per parameter."""
    return invocations(text.replace(_MINIMAX, ""), schemas)


def nested(text: str, schemas: Schemas) -> Calls:
    """Read Hy3: several ``<tool_call>`` in one outer pair."""
    inner = re.findall(r"<tool_call[^>]*>(.*?)</tool_call[^>]*>", text, re.DOTALL)
    read = [anything(body, schemas) for body in inner]
    return [call for calls in read if calls for call in calls] if read and all(read) else None


def keys_and_values(text: str, schemas: Schemas) -> Calls:
    """Read ``NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>``: GLM, Laguna, Ling, Spark."""
    head = _PAIRED_NAME.match(text)
    if head is None:
        return None
    rest = text[head.end() :].strip()
    given = {match["key"].strip(): _unwrapped(match["value"]) for match in _PAIRED.finditer(rest)}
    return None if _PAIRED.sub("", rest).strip() else [_typed(head["name"], given, schemas)]


def named_json(text: str, schemas: Schemas) -> Calls:
    """Read Mistral's text after ``[TOOL_CALLS]``: a JSON list, or ``NAME[CALL_ID]ID[ARGS]{...}`` several times."""
    body = text.strip()
    if body.startswith(("[{", "[ {", "{")):
        return in_json(body, schemas)
    calls, at = [], 0
    head = re.compile(rf"\s*(?:\[TOOL_CALLS\])?\s*(?P<name>{_NAME})(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?\s*(?=\{{)")
    while at < len(body):
        match = head.match(body, at)
        if match is None:
            return None
        try:
            arguments, at = json.JSONDecoder(strict=False).raw_decode(body, match.end())
        except ValueError:
            return None
        calls.append(Call(match["name"], _text(arguments), match["id"] or ""))
        at += len(body[at:]) - len(body[at:].lstrip())
    return calls or None


def by_tokens(begin: str, separator: str, end: str) -> Parse:
    """Make the function for a notation with special tokens between its parts: Kimi, DeepSeek V3 and V3.1, Solar."""
    one = re.compile(
        rf"\s*{re.escape(begin)}(?P<head>.*?){re.escape(separator)}(?P<body>.*?){re.escape(end)}\s*", re.DOTALL
    )

    def parse(text: str, schemas: Schemas) -> Calls:
        calls, at = [], 0
        while at < len(text) and text[at:].strip():
            match = one.match(text, at)
            call = _of_tokens(match["head"].strip(), match["body"].strip()) if match else None
            if match is None or call is None:
                return None
            calls.append(call)
            at = match.end()
        return calls or None

    return parse


def _of_tokens(head: str, body: str) -> Call | None:
    name, arguments, identity = head, body, ""
    if head == "function" and "\n" in body:  # DeepSeek V3: the name, then a fence
        name, _, arguments = body.partition("\n")
        arguments = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", arguments)
    elif match := re.fullmatch(rf"(?:functions\.)?({_NAME}?):(\d+)", head):  # Kimi: functions.get_weather:0
        name, identity = match[1], head
    elif match := re.fullmatch(rf"(\w+)<\|tool_call:name\|>({_NAME})", head):  # Solar
        identity, name = match[1], match[2]
    try:
        value = json.loads(arguments or "{}", strict=False)
    except ValueError:
        return None
    return Call(name.strip(), _text(value), identity) if re.fullmatch(_NAME, name.strip()) else None


def gemma(text: str, schemas: Schemas) -> Calls:
    """Read Gemma 4: ``call:NAME{key:<|"|>text<|"|>,other:3}``."""
    match = re.fullmatch(rf"\s*call:\s*(?P<name>{_NAME}?)\s*(?P<body>\{{.*\}})\s*", text, re.DOTALL)
    if match is None:
        return None
    try:
        value, end = _gemma_value(match["body"], 0)
    except (ValueError, IndexError):
        return None
    return [Call(match["name"], _text(value))] if end == len(match["body"]) else None


_QUOTE = '<|"|>'


def _gemma_value(text: str, at: int) -> tuple[Any, int]:
    if text.startswith(_QUOTE, at):
        end = text.index(_QUOTE, at + len(_QUOTE))
        return text[at + len(_QUOTE) : end], end + len(_QUOTE)
    if text[at] in "{[":
        close, mapping, items, at = "}" if text[at] == "{" else "]", {}, [], at + 1
        while text[at] != close:
            key: Any = None
            if close == "}":
                key, at = _gemma_key(text, at)
            value, at = _gemma_value(text, at)
            mapping[key] = value
            items.append(value)
            if text[at] == ",":
                at += 1
        return (mapping if close == "}" else items), at + 1
    match = re.compile(r"[^,}\]]+").match(text, at)
    if match is None:
        raise ValueError(text[at:])
    return _from_json(match[0].strip()), match.end()


def _gemma_key(text: str, at: int) -> tuple[str, int]:
    if text.startswith(_QUOTE, at):
        key, at = _gemma_value(text, at)
    else:
        end = text.index(":", at)
        key, at = text[at:end].strip(), end
    if text[at] != ":":
        raise ValueError(text[at:])
    return str(key), at + 1


def pythonic(text: str, schemas: Schemas) -> Calls:
    """Read ``[get_weather(city="Oslo"), now()]``: LFM2 and Llama."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_of_python(node) for node in nodes] or None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_WORDS = {"true": True, "false": False, "null": None}


def _of_python(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("no call with named arguments")
    given = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    return Call(ast.unparse(node.func), json.dumps(given, ensure_ascii=False))


def _literal(node: ast.expr) -> Any:
    """Read a value in Python's or in JSON's notation."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key
        }
    return ast.literal_eval(node)


def k3(text: str, schemas: Schemas) -> Calls:
    """Read Kimi K3: ``<|open|>call tool="NAME"<|sep|><|open|>argument key="KEY" type="number"<|sep|>3<|close|>...``."""
    call = re.compile(r'\s*<\|open\|>call tool="([^"]+)"[^<]*<\|sep\|>(.*?)<\|close\|>call<\|sep\|>\s*', re.DOTALL)
    argument = re.compile(
        r'\s*<\|open\|>argument key="([^"]+)"(?: type="(\w+)")?[^<]*<\|sep\|>(.*?)<\|close\|>argument<\|sep\|>\s*',
        re.DOTALL,
    )
    calls, at = [], 0
    while at < len(text) and text[at:].strip():
        match = call.match(text, at)
        if match is None or argument.sub("", match[2]).strip():
            return None
        given = {k: v if kind in ("", "string") else _from_json(v) for k, kind, v in argument.findall(match[2])}
        calls.append(Call(match[1], _text(given)))
        at = match.end()
    return calls or None


def _typed(name: str, given: Mapping[str, Any], schemas: Schemas) -> Call:
    """Give text parameters the types of the tool's schema. Without a schema, text that is JSON becomes its value."""
    known = schemas.get(name, {})
    return Call(name, _text({key: _as(known.get(key), value) for key, value in given.items()}))


def _as(schema: Mapping[str, Any] | None, text: str) -> Any:
    kinds = (schema or {}).get("type")
    if kinds == "string" or (isinstance(kinds, list) and "string" in kinds and text != "null"):
        return text
    if isinstance(schema, Mapping) and text in schema.get("enum", ()):
        return text
    value = _from_json(text)
    return text if isinstance(value, str) else value


def _from_json(text: str) -> Any:
    """Give the JSON value of ``text``, or the text itself if it is no JSON."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)


def _unwrapped(text: str) -> str:
    """Remove the line ends around a value on lines of its own."""
    return text.removeprefix("\n").removesuffix("\n")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
