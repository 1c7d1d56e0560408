"""Conversations as files: Markdown with front matter, and JSON in OpenAI messages, both ways.

In Markdown each turn begins with a line such as ``### You <!-- user -->``, a heading for readers and a comment for
programs. So do the thinking of an answer before it, its tool calls and its receipt after it. A line of a message that
looks like one gets a backslash in front, so every conversation comes back as it was. An answer from elsewhere that has
markers of thinking in its text is split.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from edgemoe.answer import calls

from . import foreign_chats, raw
from .records import Role, Turn

THOUGHTS = "--thoughts"  # in /export: with the thinking
_PARTS = r"(?:### [^<>\n]* )?<!-- (?:user|assistant|thinking|calls|receipt)(?: [\d.e+-]+ s)? -->"
_MARK = re.compile(r"(?:### [^<>\n]* )?<!-- (user|assistant|thinking|calls|receipt)(?: ([\d.e+-]+) s)? -->")
_LIKE_MARK = re.compile(rf"^(\\*{_PARTS})$", re.MULTILINE)
_ESCAPED = re.compile(rf"^\\(\\*{_PARTS})$", re.MULTILINE)
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
    answers = re.sub(r"[<>\s]+", " ", document.model).strip() or "Answer"
    for turn in document.turns:
        if turn.thought:
            spent = "thinking" if turn.thought_s is None else f"thinking {turn.thought_s!r} s"
            lines += _part("Thinking", spent, turn.thought)
        lines += _part("You" if turn.role == "user" else answers, turn.role, turn.text)
        if turn.calls:
            lines += _part("Tool calls", "calls", calls.to_json(turn.calls))
        if turn.note:
            lines += _part("Figures", "receipt", turn.note)
    return "\n".join(lines) + "\n"


def _part(heading: str, mark: str, text: str) -> list[str]:
    return ["", f"### {heading} <!-- {mark} -->", _LIKE_MARK.sub(r"\\\1", text)]


def to_json(document: Document) -> str:
    """An object with ``title``, ``model`` and OpenAI ``messages``, the system prompt as the first."""
    system = [{"role": "system", "content": document.system}] if document.system else []
    messages = system + [_message(turn) for turn in document.turns]
    whole = {"title": document.title, "model": document.model, "messages": messages}
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.thought:
        message["reasoning_content"] = turn.thought
    if turn.thought_s is not None:
        message["reasoning_seconds"] = turn.thought_s
    if turn.calls:
        message["tool_calls"] = calls.to_openai(turn.calls)
    if turn.note:
        message["receipt"] = turn.note
    return message


def read(text: str) -> list[Document]:
    """Read either form; JSON may also be the bare list of messages, or an export of ChatGPT or LM Studio.

    Raises:
        ValueError: it is none of them, said in words.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return [_from_markdown(text)]
    whole: Any = json.loads(text)
    if (chats := foreign_chats.read(whole)) is None:
        return [_from_json(whole)]
    documents = [Document(title, "", "", tuple(map(_split, turns))) for title, turns in chats if turns]
    if not documents:
        raise ValueError("there are no messages in it")
    return documents


def _from_json(whole: Any) -> Document:
    if isinstance(whole, list):
        whole = {"messages": whole}
    messages = whole.get("messages")
    if not isinstance(messages, list):
        raise ValueError("there are no messages in it")
    system, turns = "", []
    for message in messages:
        turn = _from_message(message) if isinstance(message, dict) else None
        if turn is None:
            raise ValueError("a message has no role (user, assistant, system) or no text")
        if message["role"] == "system":
            system = turn.text
        else:
            turns.append(turn)
    return Document(_word(whole, "title"), _word(whole, "model"), system, _alternating(turns))


def _from_message(message: dict[str, Any]) -> Turn | None:
    """Read one OpenAI message; None where it has no known role or nothing in it."""
    role, content, thought = (message.get(key) for key in ("role", "content", "reasoning_content"))
    called = calls.of_openai(message.get("tool_calls")) if role == "assistant" else ()
    thought = thought if role == "assistant" and isinstance(thought, str) else ""
    if content is None and (called or thought):
        content = ""
    if role not in ("user", "assistant", "system") or not isinstance(content, str):
        return None
    spent = message.get("reasoning_seconds")
    seconds = float(spent) if thought and isinstance(spent, int | float) else None
    note = message.get("receipt")
    note = note if isinstance(note, str) else ""
    return _split(Turn(cast(Role, role), content, note=note, thought=thought, thought_s=seconds, calls=called))


def _split(turn: Turn) -> Turn:
    """Take thinking and calls out of the text of an answer that has them there."""
    if turn.role != "assistant" or turn.thought or turn.calls:
        return turn
    return turn.with_answer(raw.split(turn.text))


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
    parts: list[tuple[re.Match[str], list[str]]] = []
    for line in lines[end + 1 :]:
        if match := _MARK.fullmatch(line):
            parts.append((match, []))
        elif parts:
            parts[-1][1].append(line)
    # Each part is followed by an empty line, the last one by the end of the file: both are one newline of ours.
    bodies = [(mark[1], mark[2], _ESCAPED.sub(r"\1", "\n".join(body[:-1]))) for mark, body in parts]
    title, model, system = (_word(fields, name) for name in _FIELDS)
    return Document(title, model, system, _alternating(_put_together(bodies)))


def _put_together(parts: Sequence[tuple[str, str | None, str]]) -> list[Turn]:
    """Turns of the parts of a Markdown file: kind, seconds, text."""
    turns: list[Turn] = []
    thought: tuple[str, float | None] = ("", None)
    for kind, spent, body in parts:
        if kind == "thinking":
            thought = (body, float(spent) if spent else None)
        elif kind == "calls":
            if not turns or turns[-1].role != "assistant":
                raise ValueError("tool calls without an answer are in it")
            turns[-1] = replace(turns[-1], calls=calls.of_json(body))
        elif kind == "receipt":
            if not turns or turns[-1].role != "assistant":
                raise ValueError("figures without an answer are in it")
            turns[-1] = replace(turns[-1], note=body)
        else:
            turns.append(Turn(cast(Role, kind), body, thought=thought[0], thought_s=thought[1]))
            thought = ("", None)
    return [_split(turn) for turn in turns]


def _word(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    return value if isinstance(value, str) else str(value)


def _alternating(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    roles = [turn.role for turn in turns]
    if roles != [("user", "assistant")[index % 2] for index in range(len(roles))]:
        raise ValueError("user and assistant do not take turns in it")
    return tuple(turns)


def asks_for_thoughts(text: str) -> tuple[str, bool]:
    """``text`` of an export command without its word ``--thoughts``, and whether the word was there."""
    words = text.split(" ")
    return " ".join(word for word in words if word != THOUGHTS).strip(), THOUGHTS in words


def export(document: Document, name: str = "") -> Path:
    """Write ``document`` to a file that does not exist yet and return its path.

    Without a ``name`` the file is named after the title, with a number where that file exists.

    Raises:
        OSError: it was not written, and nothing of it is there; ``filename`` names it.
    """
    path = Path(name).expanduser() if name else _free(document.title)
    write = to_json if path.suffix.lower() == ".json" else to_markdown
    file = path.open("xb")
    try:
        with file:
            file.write(write(document).encode("utf-8", "surrogatepass"))
    except OSError as error:
        path.unlink()
        error.filename = str(path)
        raise
    return path


def _free(title: str) -> Path:
    stem = "".join(mark if mark.isalnum() else "-" for mark in title[:40]).strip("-") or "chat"
    names = itertools.chain([f"{stem}.md"], (f"{stem}-{number}.md" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())
