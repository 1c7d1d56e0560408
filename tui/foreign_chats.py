"""Conversations as other programs export them: ChatGPT's conversations.json, LM Studio's conversation files. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .records import Turn

Written = tuple[str, list[Turn]]  # title and turns


def read(whole: Any) -> list[Written] | None:
    """Read parsed JSON; None where it is in neither form."""
    if isinstance(whole, list) and whole and all(isinstance(chat, dict) and "mapping" in chat for chat in whole):
        return [(_title(chat, "title"), _alternating(_of_chatgpt(chat))) for chat in whole]
    messages = whole.get("messages") if isinstance(whole, dict) else None
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "versions" in m for m in messages):
        return [(_title(whole, "name"), _alternating(_of_lm_studio(messages)))]
    return None


def _title(chat: dict[str, Any], key: str) -> str:
    title = chat.get(key)
    return title if isinstance(title, str) else ""


def _of_chatgpt(chat: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Follow the branch that was open last from its end to the beginning."""
    nodes, at = chat["mapping"], chat.get("current_node")
    line: list[tuple[str, str]] = []
    seen = set()
    while isinstance(node := nodes.get(at), dict) and at not in seen:
        seen.add(at)
        message = node.get("message") or {}
        role = (message.get("author") or {}).get("role")
        parts = (message.get("content") or {}).get("parts") or []
        line.append((str(role), "\n\n".join(part for part in parts if isinstance(part, str))))
        at = node.get("parent")
    return reversed(line)


def _of_lm_studio(messages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for message in messages:
        versions, selected = message["versions"], message.get("currentlySelected") or 0
        version = versions[selected] if isinstance(versions, list) and selected < len(versions) else {}
        steps = version.get("steps") or [version]
        yield str(version.get("role")), "\n\n".join(filter(None, map(_step_text, steps)))


def _step_text(step: dict[str, Any]) -> str:
    content = step.get("content") or []
    return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def _alternating(messages: Iterable[tuple[str, str]]) -> list[Turn]:
    """Put messages of one writer together: tools and pictures between them are left out."""
    turns: list[Turn] = []
    for role, text in messages:
        if role not in ("user", "assistant") or not text.strip():
            continue
        if turns and turns[-1].role == role:
            turns[-1] = Turn(turns[-1].role, f"{turns[-1].text}\n\n{text}")
        elif turns or role == "user":
            turns.append(Turn("user" if role == "user" else "assistant", text))
    return turns
