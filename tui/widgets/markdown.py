"""Markdown that grows cheaply: code is plain while it is being written, and highlighted once at its end."""

from __future__ import annotations

from markdown_it import MarkdownIt
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownFence


class CodeBlock(MarkdownFence):
    """A fence that costs nothing while it grows."""

    complete = False
    _theme = ""  # that it is coloured for

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """Plain: what Textual asks for on every piece."""
        return Content(code)

    def notify_style_update(self) -> None:
        """Another theme has other colours; any other change of style leaves them."""
        if self.complete and self._theme != self.app.theme:
            self.finish()
        super(MarkdownFence, self).notify_style_update()

    def finish(self) -> None:
        """The code is complete: colour it."""
        self.complete, self._theme = True, self.app.theme
        theme = self.app.current_theme
        content = MarkdownFence.highlight(self.code, self.lexer, ansi=self.app.native_ansi_color, dark=theme.dark)
        self._highlighted_code = content
        self.set_content(content)


def _parser() -> MarkdownIt:
    # HTML would be dropped from the screen; as text it is seen, "<think>" and all.
    return MarkdownIt("gfm-like", {"html": False})


class GrowingMarkdown(Markdown):
    """One document, appended to until :meth:`finish`."""

    BLOCKS = {**Markdown.BLOCKS, "fence": CodeBlock, "code_block": CodeBlock}

    def __init__(self) -> None:
        """Empty."""
        super().__init__(parser_factory=_parser, open_links=False)

    async def grow(self, fresh: str) -> None:
        """Append ``fresh``; code above what is being written is complete."""
        await self.append(fresh)
        self._finish_above(len(self.children) - 1)

    def finish(self) -> None:
        """Nothing comes any more."""
        self._finish_above(len(self.children))

    def _finish_above(self, end: int) -> None:
        # From the end: what was complete before stays so, and a long answer has many blocks.
        for block in reversed(self.children[:end]):
            if isinstance(block, CodeBlock):
                if block.complete:
                    return
                block.finish()
