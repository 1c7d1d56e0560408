"""Conversations as files: Markdown with front matter, and JSON in OpenAI messages, both ways.

In Markdown each turn begins with a comment line such as ``<!-- user -->``; a line of a message that looks like one gets
a backslash in front, so every conversation comes back as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .records import Role, Turn

_MARK = re.compile(r"<!-- (user|assistant) -->")
_LIKE_MARK = re.compile(r"^(\\*<!-- (?:user|assistant) -->)$", re.MULTILINE)
_ESCAPED = re.compile(r"^\\(\\*<!-- (?:user|assistant) -->)$", re.MULTILINE)
_FIELDS = ("title", "model", "system")


@dataclass(frozen=True)
class Document:
    """A conversation without its place in a database."""

    title: str
    model: str
    system: str
    turns: tuple[Turn, ...]


def to_markdown(document: Document) -> str:
    """Front matter with title, model and system prompt, then the turns."""
    lines = ["---", *(f"{name}: {json.dumps(getattr(document, name), ensure_ascii=True)}" for name in _FIELDS), "---"]
    for turn in document.turns:
        lines += ["", f"<!-- {turn.role} -->", _LIKE_MARK.sub(r"\\\1", turn.text)]
    return "\n".join(lines) + "\n"


def to_json(document: Document) -> str:
    """An object with ``title``, ``model`` and OpenAI ``messages``, the system prompt as the first."""
    system = [{"role": "system", "content": document.system}] if document.system else []
    messages = system + [{"role": turn.role, "content": turn.text} for turn in document.turns]
    whole = {"title": document.title, "model": document.model, "messages": messages}
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def read(text: str) -> Document:
    """Read either form; JSON may also be the bare list of messages.

    Raises:
        ValueError: it is neither, said in words.
    """
    if text.lstrip()[:1] in ("{", "["):
        return _from_json(text)
    return _from_markdown(text)


def _from_json(text: str) -> Document:
    whole: Any = json.loads(text)
    if isinstance(whole, list):
        whole = {"messages": whole}
    messages = whole.get("messages")
    if not isinstance(messages, list):
        raise ValueError("there are no messages in it")
    system, turns = "", []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("user", "assistant", "system") or not isinstance(content, str):
            raise ValueError("a message has no role (user, assistant, system) or no text")
        if role == "system":
            system = content
        else:
            turns.append(Turn(cast(Role, role), content))
    return Document(_word(whole, "title"), _word(whole, "model"), system, _alternating(turns))


def _from_markdown(text: str) -> Document:
    lines = text.split("\n")
    if lines[0].strip() != "---" or "---" not in lines[1:]:
        raise ValueError("it does not begin with front matter (---)")
    end = lines.index("---", 1)
    fields: dict[str, Any] = {}
    for line in lines[1:end]:
        name, _, value = line.partition(":")
        try:
            fields[name.strip()] = json.loads(value)
        except ValueError:
            fields[name.strip()] = value.strip()
    turns: list[tuple[str, list[str]]] = []
    for line in lines[end + 1 :]:
        if match := _MARK.fullmatch(line):
            turns.append((match[1], []))
        elif turns:
            turns[-1][1].append(line)
    # Each turn is followed by an empty line, the last one by the end of the file: both are one newline of ours.
    whole = [Turn(cast(Role, role), _ESCAPED.sub(r"\1", "\n".join(body[:-1]))) for role, body in turns]
    title, model, system = (_word(fields, name) for name in _FIELDS)
    return Document(title, model, system, _alternating(whole))


def _word(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    return value if isinstance(value, str) else str(value)


def _alternating(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    roles = [turn.role for turn in turns]
    if roles != [("user", "assistant")[index % 2] for index in range(len(roles))]:
        raise ValueError("user and assistant do not take turns in it")
    return tuple(turns)


def export(document: Document, name: str = "") -> Path:
    """Write ``document`` to a file that does not exist yet, named after its title by default; returns its path.

    Raises:
        OSError: it was not written.
    """
    title = "".join(mark if mark.isalnum() else "-" for mark in document.title[:40]).strip("-") or "chat"
    path = Path(name or f"{title}.md").expanduser()
    write = to_json if path.suffix.lower() == ".json" else to_markdown
    with path.open("x", encoding="utf-8", errors="surrogatepass") as file:
        file.write(write(document))
    return path
