"""The Markdown parser of answers: formulas, tasks and footnotes as people see them, HTML as text."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, reference
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline

from ..formulas import in_unicode

_FORMULA = re.compile(
    r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?=\S)[^$\n]*[\\^_][^$\n]*(?<=\S)\$(?!\d)", re.DOTALL
)  # a formula between single dollars has a command or a script in it: prices have none
_FOOTNOTE = re.compile(r"\[\^([^\]\s]{1,20})\](:?)")
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_TASKS = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}


def parser() -> MarkdownIt:
    """Make one."""
    # HTML would be dropped from the screen; as text it is seen, "<think>" and all.
    made = MarkdownIt("gfm-like", {"html": False})
    made.inline.ruler.before("escape", "formula", _formula)
    made.inline.ruler.before("link", "footnote", _footnote)
    made.block.ruler.at("reference", _reference, {"alt": []})
    made.core.ruler.after("inline", "tasks", _tasks)
    return made


def _formula(state: StateInline, silent: bool) -> bool:
    """Show a formula of LaTeX in Unicode: Markdown would read its backslashes as escapes and drop them."""
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("text", "", 0).content = in_unicode(found[0])
    state.pos = found.end()
    return True


def _footnote(state: StateInline, silent: bool) -> bool:
    """Show the mark of a footnote as a raised number."""
    found = _FOOTNOTE.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        name = found[1].translate(_RAISED) if found[1].isdigit() else f"[{found[1]}]"
        state.push("text", "", 0).content = name
    state.pos = found.end()
    return True


def _reference(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Read the target of a link, but leave the text of a footnote a paragraph."""
    at = state.bMarks[start] + state.tShift[start]
    return not state.src.startswith("[^", at) and reference(state, start, end, silent)


def _tasks(state: StateCore) -> None:
    """Show the boxes of a list of tasks."""
    for before, token in zip(state.tokens[1:], state.tokens[2:], strict=False):
        item = before.type == "paragraph_open" and before.level > 1 and token.type == "inline"
        if item and token.children and (box := _TASKS.get(token.children[0].content[:4])):
            token.children[0].content = box + token.children[0].content[4:]
