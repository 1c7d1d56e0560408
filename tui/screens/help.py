"""Help in a window: every key and every command in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ..commands import COMMANDS
from ..keys import Keys
from .window import Window

_GAP = 2  # characters between columns


class HelpScreen(Window[None]):
    """Shows keys and commands; arrows and PageDown scroll."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (130, "-wide")]  # keys and commands side by side

    def __init__(self, keys: Keys) -> None:
        """Explain ``keys`` and all commands."""
        super().__init__()
        self._keys = keys

    def compose(self) -> ComposeResult:
        """Keys above, commands below."""
        with Vertical(classes="window"):
            with VerticalScroll(), Vertical(classes="help-columns"):
                yield Static(_table("Keys", self._keys.rows()))
                yield Static(_table("Commands", [(command.usage, _explained(command.name)) for command in COMMANDS]))
            yield Static("Up, Down, PageUp, PageDown scroll · Esc back", classes="window-keys", markup=False)

    def on_mount(self) -> None:
        """Name the window."""
        self.query_one(".window", Vertical).border_title = "help"
        self.query_one(VerticalScroll).focus()


def _explained(name: str) -> str:
    command = next(command for command in COMMANDS if command.name == name)
    also = ", ".join(f"/{alias}" for alias in command.aliases)
    return f"{command.help} (also {also})" if also else command.help


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Content:
    width = max(len(left) for left, _ in rows) + _GAP
    lines = [Content.assemble((f"{left:<{width}}", "bold"), (right, "$muted")) for left, right in rows]
    return Content("\n").join([Content.styled(title, "bold $primary"), *lines, Content("")])
