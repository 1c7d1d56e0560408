"""A window to choose one thing in: commands, themes, prompts. A field above the list narrows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgemoe.text.display import one_line

from .window import Picks, PickWindow

_GAP = "  "


@dataclass(frozen=True)
class Row:
    """One thing: ``name`` is the result, the others are its columns."""

    name: str
    label: str
    key: str = ""
    detail: str = ""

    def fits(self, words: Sequence[str]) -> bool:
        """Whether all ``words`` are in it."""
        text = f"{self.label} {self.key} {self.detail}".lower()
        return all(word in text for word in words)


class ChoiceScreen(PickWindow[str | None]):
    """Gives the name of the row that was chosen, None for none."""

    def __init__(
        self,
        title: str,
        placeholder: str,
        rows: Sequence[Row],
        chosen: str = "",
        looked_at: Callable[[str], object] | None = None,
    ) -> None:
        """Offer ``rows``, that of ``chosen`` highlighted; ``looked_at`` gets the name of every row on the way."""
        super().__init__()
        self._heading, self._placeholder, self._rows = title, placeholder, rows
        self._chosen, self._looked_at = chosen, looked_at

    def compose(self) -> ComposeResult:
        """The words that narrow the list above, the list below."""
        with Vertical(classes="window -small"):
            yield Input(placeholder=self._placeholder)
            yield Picks(markup=False)
            yield Static("Enter choose · Up, Down move · Esc back", classes="window-keys", markup=False)

    def on_mount(self) -> None:
        """Show all."""
        self.query_one(".window", Vertical).border_title = self._heading
        self._show("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, text: str) -> None:
        found = self.query_one(Picks)
        rows = [row for row in self._rows if row.fits(text.lower().split())]
        label = max((len(row.label) for row in self._rows), default=0)
        key = max((len(row.key) for row in self._rows), default=0)
        found.clear_options()
        found.add_options([Option(_line(row, label, key), id=row.name) for row in rows])
        names = [row.name for row in rows]
        found.highlighted = names.index(self._chosen) if self._chosen in names else 0 if rows else None

    @on(Input.Submitted)
    def _entered(self) -> None:
        found = self.query_one(Picks)
        if found.highlighted is not None and found.option_count:
            self.dismiss(found.get_option_at_index(found.highlighted).id)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    @on(OptionList.OptionHighlighted)
    def _moved(self, event: OptionList.OptionHighlighted) -> None:
        if self._looked_at is not None and event.option.id is not None:
            self._looked_at(event.option.id)


def _line(row: Row, label: int, key: int) -> Content:
    keys = f"{row.key:<{key}}{_GAP}" if key else ""
    name = f"{one_line(row.label, label):<{label}}{_GAP}"
    return Content.assemble((name, "bold"), (keys, "$primary"), (row.detail, "$muted"))
