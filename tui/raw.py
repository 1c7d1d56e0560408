"""Raw text of a model, as older versions kept it, split into thought, answer and tool calls."""

from __future__ import annotations

from edgemoe.answer.calls import of_openai
from edgemoe.answer.record import Answer
from edgemoe.formats import read


def split(text: str) -> Answer:
    """Split ``text`` by the markers at its beginning. A text without any comes back as it is; nothing is lost."""
    try:
        message = read(text)
    except Exception:  # a conversation that cannot be split can still be read
        return Answer(text)
    content, thought = message.get("content") or "", message.get("reasoning_content") or ""
    answer = Answer(content, thought, None, of_openai(message.get("tool_calls")))
    is_plain = answer == Answer(content) and content.strip() == text.strip()
    return Answer(text) if is_plain or not answer else answer
