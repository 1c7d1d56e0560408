"""Markdown that grows cheaply: in sections that are laid out once, its code coloured once, at its end.

Textual lays out every block of a document whenever one of them grows, and parses from its last block on. A section is a
document of few blocks; the next one begins where a block is certainly complete.
"""

from __future__ import annotations

import re

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown

from .code_block import CodeBlock
from .discard import discard
from .parsing import parser
from .table import AnswerTable

SECTION_BLOCKS = 8  # laying out this many costs about as much as the rest of the screen
SECTION_CHARACTERS = 3000  # a page or so: long answers are shortened by sections
_ENDED_BY_EMPTY_LINE = ("paragraph_open", "heading_open")  # unlike lists and quotations
_FENCE = re.compile("`{3,}|~{3,}")


class Section(Markdown):
    """Some blocks of an answer."""

    BLANK = True  # the ground behind blocks: not drawn line by line, and no line of it is remembered

    BLOCKS = {**Markdown.BLOCKS, "fence": CodeBlock, "code_block": CodeBlock, "table_open": AnswerTable}

    def __init__(self) -> None:
        """Empty."""
        super().__init__(parser_factory=parser, open_links=False)

    @property
    def is_full(self) -> bool:
        """Whether the next text may begin another section: enough blocks, and the last of them is complete."""
        if not self.children or (len(self.children) < SECTION_BLOCKS and len(self.source) < SECTION_CHARACTERS):
            return False
        last = self.children[-1]
        if isinstance(last, CodeBlock):
            opening, *rest = (last.source or "").strip().split("\n")
            marks = _FENCE.match(opening.strip())
            closed = marks is not None and bool(rest) and rest[-1].strip().startswith(marks[0])
            return closed and self.source.endswith("\n")
        return last.name in _ENDED_BY_EMPTY_LINE and self.source.endswith("\n\n")

    def finish(self, end: int) -> None:
        """The blocks before ``end`` are complete."""
        # From the end: a complete block stays so.
        for block in reversed(self.children[:end]):
            if isinstance(block, CodeBlock):
                if block.complete:
                    return
                block.finish()


class GrowingMarkdown(Vertical):
    """One text, appended to until :meth:`finish`; its upper sections may be there as text only."""

    BLANK = True

    def __init__(self, text: str = "") -> None:
        """Show ``text``, which is complete, or begin an empty one; only the last section of ``text`` is drawn."""
        super().__init__()
        self.source = text
        self._above = sections(text)  # texts of sections that are not drawn, in their order
        self._last_text = self._above.pop() if self._above else ""

    def compose(self) -> ComposeResult:
        """The last section."""
        yield Section()

    async def on_mount(self) -> None:
        """Fill it."""
        if self._last_text and self.children:  # none any more where it was removed meanwhile
            await self._fill(self._last(), self._last_text)
            self._last_text = ""

    async def grow(self, fresh: str) -> None:
        """Append ``fresh``; code above the last block is complete."""
        self.source += fresh
        while fresh:
            section = self._last()
            if section.is_full:
                section.finish(len(section.children))
                await self.mount(section := Section())
            # A block ends with an empty line or later: so many of them at a time never overfill a section.
            end = _after_empty_lines(fresh, max(SECTION_BLOCKS - len(section.children), 1))
            now, fresh = fresh[:end], fresh[end:]
            await section.append(now)
        self._last().finish(len(self._last().children) - 1)

    def finish(self) -> None:
        """Nothing comes any more."""
        self._last().finish(len(self._last().children))

    @property
    def has_more(self) -> bool:
        """There are sections above the first that is drawn."""
        return bool(self._above and self.drawn)

    @property
    def drawn(self) -> list[Section]:
        """The sections that are there, in their order."""
        return list(self.query_children(Section))

    async def shorten(self) -> None:
        """Keep only the text of the first section that is drawn."""
        first = self.drawn[0]
        self._above.append(first.source)
        await discard(first)

    async def lengthen(self) -> None:
        """Draw the section above the first."""
        await self.mount(section := Section(), before=0)
        await self._fill(section, self._above.pop())

    async def _fill(self, section: Section, text: str) -> None:
        await section.append(text)
        section.finish(len(section.children))

    def _last(self) -> Section:
        section = self.children[-1]
        assert isinstance(section, Section)
        return section


def _after_empty_lines(text: str, count: int) -> int:
    end = 0
    for _ in range(count):
        if (found := text.find("\n\n", end)) < 0:
            return len(text)
        end = found + 2
    return end


def sections(text: str) -> list[str]:
    """``text`` in parts of no more than ``SECTION_BLOCKS`` blocks, none of them cut; together they are ``text``."""
    reader = parser()
    reader.core.ruler.enableOnly(["normalize", "block"])
    lines = text.splitlines(keepends=True)
    begins = [token.map[0] for token in reader.parse(text) if token.map and token.level == 0 and token.nesting >= 0]
    parts, part, blocks = [], "", 0
    for begin, end in zip([0, *begins[1:]], [*begins[1:], len(lines)], strict=True):
        if blocks >= SECTION_BLOCKS or len(part) >= SECTION_CHARACTERS:
            parts.append(part)
            part, blocks = "", 0
        part, blocks = part + "".join(lines[begin:end]), blocks + 1
    return [*parts, part] if part else parts
