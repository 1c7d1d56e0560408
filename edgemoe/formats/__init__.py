"""Text formats of every model family: thinking, answers and tool calls, in both directions. Pure.

``reader`` turns generated text into OpenAI's ``reasoning_content``, ``content`` and ``tool_calls`` while it streams.
``prepared`` turns OpenAI's messages into messages that a family's template can express. No model is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .history import prepared
from .reading import Delta, HarmonyReader, Reader, TagReader
from .shield import pieces, shielded
from .styles import ANY, Style, compiled, style_of
from .template import Template, keywords_of

__all__ = [
    "Delta",
    "Reader",
    "Style",
    "Template",
    "keywords_of",
    "pieces",
    "prepared",
    "read",
    "reader",
    "shielded",
    "style_of",
]


def reader(template: str, prompt: str = "", *, tools: Iterable[Any] = (), ends: bool = True) -> Reader:
    """Make a reader for the family of ``template``.

    Args:
        template: Jinja text of the model's chat template; empty if the model has none.
        prompt: the rendered prompt or its end, which may have opened thinking. If it is empty, the reader assumes the
            end that the template writes.
        tools: tools that the request offered, in OpenAI's shape. Their schemas tell a number from a text of digits.
        ends: True if the text may end with the special token that ends an answer.
    """
    style = style_of(template)
    if not prompt and (known := compiled(template)) is not None:
        prompt = known.opening
    if style.harmony:
        return HarmonyReader(prompt, tools, ends)
    opened = next((opening for opening, _ in style.thinking if prompt.rstrip().endswith(opening)), "")
    return TagReader(style, opened, prompt, tools, ends)


def read(text: str, template: str = "", prompt: str = "") -> dict[str, Any]:
    """Turn a whole raw ``text`` into OpenAI's assistant message.

    Without a template, the markers of every family count. If the prompt opened thinking, it ends at a closing marker
    on a line of its own.
    """
    if template:
        given = reader(template, prompt)
    elif text.lstrip().startswith(("<|channel|>", "<|start|>")):
        given = HarmonyReader()
    else:
        given = TagReader(ANY, _unopened(text))
    given.feed(text)
    given.end()
    return given.message()


def _unopened(text: str) -> str:
    """Find the opening marker of thinking that ``text`` closes but does not open; empty if there is none."""
    for opening, closing in ANY.thinking:
        match = re.search(rf"^\s*{re.escape(closing)}", text, re.MULTILINE)
        if match and opening not in text[: match.start()]:
            return opening
    return ""
