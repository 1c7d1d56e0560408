"""The conversations of before: a list, and a search through every word of them."""

from __future__ import annotations

import asyncio
import sqlite3
import time

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgemoe.text.display import one_line, visible

from ..archive import Archive
from ..store import Summary

_SHOWN = 60


class HistoryScreen(ModalScreen[int | None]):
    """Gives the id of the conversation that was chosen, None for none."""

    BINDINGS = [
        Binding("escape", "dismiss(None)", "Back", id="history.back"),
        Binding("ctrl+r", "dismiss(None)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("ctrl+d", "delete", "Delete", id="history.delete"),
    ]

    def __init__(self, archive: Archive) -> None:
        """Look into ``archive``."""
        super().__init__()
        self._archive = archive

    def compose(self) -> ComposeResult:
        """What is searched above, what was found below."""
        with Vertical(id="history"):
            yield Input(placeholder="Search all conversations", id="history-search")
            yield OptionList(id="history-list")
            yield Static(Content("Enter open · Up, Down choose · Ctrl+D delete · Esc back"), id="history-keys")

    def on_mount(self) -> None:
        """Begin with the newest."""
        self.query_one("#history", Vertical).border_title = "conversations"
        self._show("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    @on(Input.Submitted)
    def _chosen(self) -> None:
        found = self.query_one(OptionList)
        if found.highlighted is not None and found.option_count:
            self._open(found.get_option_at_index(found.highlighted))

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self._open(event.option)

    def _open(self, option: Option) -> None:
        if option.id is not None:
            self.dismiss(int(option.id))

    def action_move(self, step: int) -> None:
        """Choose the next or the one before, while the search keeps the focus."""
        found = self.query_one(OptionList)
        if step > 0:
            found.action_cursor_down()
        else:
            found.action_cursor_up()

    def action_delete(self) -> None:
        """Forget the conversation that is highlighted."""
        found = self.query_one(OptionList)
        if found.highlighted is not None and found.option_count:
            option = found.get_option_at_index(found.highlighted)
            if option.id is not None:
                chat = int(option.id)
                self._archive.do(lambda store: store.delete(chat))
                self._show(self.query_one(Input).value)

    @work(exclusive=True)  # a search that another letter has overtaken is not shown
    async def _show(self, text: str) -> None:
        found = self.query_one(OptionList)
        try:
            summaries = await asyncio.wrap_future(self._archive.do(lambda store: store.search(text, _SHOWN)))
        except sqlite3.Error as error:
            self.notify(str(error), severity="error")
            return
        found.clear_options()
        found.add_options([Option(_line(summary), id=str(summary.id)) for summary in summaries])
        if summaries:
            found.highlighted = 0
        else:
            found.add_option(Option(Content("nothing found" if text else "no conversations yet"), disabled=True))


def _line(summary: Summary) -> Content:
    parts = [
        (one_line(summary.title, 60), "bold"),
        (f"  {_age(summary.changed)}  {one_line(summary.model, 24)}", "$text-muted"),
    ]
    if summary.excerpt:
        parts.append((f"\n  {visible(summary.excerpt)}", "$text-muted"))
    return Content.assemble(*parts)


def _age(changed: float) -> str:
    seconds = max(time.time() - changed, 0)
    for name, long in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= long:
            return f"{int(seconds // long)} {name} ago"
    return "just now"
