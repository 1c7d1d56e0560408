"""The models there are: a list to choose from, with a field that narrows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgemoe.errors import EdgeMoEError
from edgemoe.text.display import one_line, size

from ..records import ModelChoice
from .window import Picks, PickWindow

if TYPE_CHECKING:
    from textual.app import App

    from ..fetching import Fetcher, FetchState
    from ..forecasts import Forecasts

Choices = Callable[[], list[ModelChoice]]
Remove = Callable[[str, bool], int]
REFRESH_SECONDS = 0.25
WIDEST, AROUND = 110, 7  # characters, as in app.tcss: of the list, and of the edges beside its lines
MOST_TITLE, NARROW = 36, 120
_GAP = "  "


class ModelsScreen(PickWindow[str | None]):
    """Gives the name of the model that was chosen, None for none."""

    BINDINGS = [
        Binding("ctrl+d", "remove", "Remove", id="models.remove", priority=True),
        Binding("ctrl+f", "forecast", "Forecast", id="models.forecast", priority=True),
    ]

    def __init__(
        self,
        choices: Choices,
        current: str,
        fetcher: Fetcher | None = None,
        remove: Remove | None = None,
        forecasts: Forecasts | None = None,
    ) -> None:
        """Offer ``choices``, called in a thread as it looks at disks; ``current`` is the title of the open one.

        ``fetcher`` downloads a model that is not on this disk, ``remove`` frees its space again; ``forecasts`` tell how
        fast each would be here.
        """
        super().__init__()
        self._choices, self._current, self._fetcher, self._remove = choices, current, fetcher, remove
        self._forecasts, self._told = forecasts, dict[str, str]()
        self._models: list[ModelChoice] = []
        self._doomed = ""
        self._wanted = ""  # Enter downloads it when it is pressed again
        self._reported: FetchState | None = None

    def compose(self) -> ComposeResult:
        """The words that narrow the list above, the list below."""
        with Vertical(classes="window"):
            yield Input(placeholder="Narrow down, or type the path of a GGUF file")
            yield Picks(markup=False)
            yield Static(id="models-news", classes="window-news", markup=False)
            yield Static(
                Content("Enter open or download · Ctrl+F forecast · Ctrl+D remove · Esc back"),
                classes="window-keys",
            )

    def on_mount(self) -> None:
        """Look for the models."""
        self.query_one(Vertical).border_title = "models"
        self._find()
        self._refresh()
        self.set_interval(REFRESH_SECONDS, self._refresh)

    @work
    async def _find(self) -> None:
        self._models = await asyncio.to_thread(self._choices)
        if self._forecasts is not None:
            self._forecasts.look([model.name for model in self._models if model.here and model.title != self._current])
        with contextlib.suppress(NoMatches):  # closed meanwhile
            self._show(self.query_one(Input).value)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        found = self.query_one(Picks)
        if found.highlighted is not None and found.option_count:
            self._open(found.get_option_at_index(found.highlighted))
        elif event.value.strip():
            self.dismiss(event.value.strip())

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self._open(event.option)

    def _open(self, option: Option) -> None:
        choice = next((model for model in self._models if model.name == option.id), None)
        if choice is None or choice.here or self._fetcher is None:
            self.dismiss(option.id)
        elif self._fetcher.state.running and self._fetcher.state.name == choice.name:
            self._fetcher.pause()
        elif choice.name not in (self._wanted, self._fetcher.state.name):
            self._wanted = choice.name
            self._say(f"Enter again downloads {choice.title}: {choice.size}, {choice.detail}")
        elif not self._fetcher.start(choice.name, _teller(self.app)):
            self._say(f"{self._fetcher.state.name} is being downloaded: pause it first (Enter on it)")

    def _refresh(self) -> None:
        if self._fetcher is not None:
            self._tell_progress()
        if self._forecasts is not None:
            self._tell_forecasts()

    def _tell_forecasts(self) -> None:
        """Renew the lines of models of which more is known."""
        assert self._forecasts is not None
        before, self._told = self._told, self._forecasts.known
        found = self.query_one(Picks)
        shown = {option.id for option in found.options}
        for model in self._models:
            if model.name in shown and before.get(model.name) != self._told.get(model.name):
                found.replace_option_prompt(model.name, self._line(model))

    def action_forecast(self) -> None:
        """Work out how fast the highlighted model would be."""
        if (choice := self._highlighted()) is not None and self._forecasts is not None:
            self._forecasts.measure(choice.name)
            self._tell_forecasts()

    def _highlighted(self) -> ModelChoice | None:
        found = self.query_one(Picks)
        if found.highlighted is None:
            return None
        name = found.get_option_at_index(found.highlighted).id
        return next(model for model in self._models if model.name == name)

    def _tell_progress(self) -> None:
        """Say how far the download is; look for models anew when it is complete."""
        assert self._fetcher is not None
        state = self._fetcher.state
        if state == self._reported or not state.name:
            return
        self._reported = state
        if state.error:
            self._say(f"{state.name}: {state.error}")
        elif state.complete:
            self._say(f"{state.name} is here: Enter opens it")
            self._find()
        else:
            self._say(f"{state.name}: {state.share:.0%}, {state.words}{' · Enter pauses' if state.running else ''}")

    def _say(self, text: str) -> None:
        self.query_one("#models-news", Static).update(text)

    def action_remove(self) -> None:
        """Tell the space that removing the highlighted model frees; the second time, remove it."""
        choice = self._highlighted()
        if choice is None or self._remove is None:
            return
        if not choice.removable:
            self._say("only what was downloaded from the hub is removed here")
        else:
            self._remove_it(choice.name, really=self._doomed == choice.name)

    @work(exclusive=True, group="remove")
    async def _remove_it(self, name: str, really: bool) -> None:
        assert self._remove is not None
        try:
            freed = await asyncio.to_thread(self._remove, name, really)
        except EdgeMoEError as error:
            self._doomed = ""
            self._say(f"{error}. {error.hint}".strip(". "))
            return
        self._doomed = "" if really else name
        self._say(
            f"{name} is gone, {size(freed)} are free" if really else f"Ctrl+D again removes {name}: {size(freed)}"
        )
        if really:
            self._find()

    def _show(self, text: str) -> None:
        found = self.query_one(Picks)
        words = text.lower().split()
        fitting = [model for model in self._models if all(word in self._line(model).plain.lower() for word in words)]
        found.clear_options()
        found.add_options([Option(self._line(model), id=model.name) for model in fitting])
        found.highlighted = 0 if fitting else None

    def _line(self, model: ModelChoice) -> Content:
        """Give the columns title, size, parameters, detail; below them the forecast where there is one."""
        told, width = self._told.get(model.name, ""), min(self.app.size.width * 9 // 10, WIDEST) - AROUND
        titles, sizes, parameters = self._widths
        rest = max(width - titles - sizes - parameters - 3 * len(_GAP), 8)
        return Content.assemble(
            (f"{one_line(model.title, titles):<{titles}}", "bold"),
            f"{_GAP}{model.size:>{sizes}}{_GAP}",
            (f"{model.parameters:<{parameters}}{_GAP}" if parameters else "", "$muted"),
            ("open  " if model.title == self._current else "", "$primary"),
            (one_line(model.detail, rest), "$muted"),
            (f"\n  {one_line(told, width - 2)}" if told else "", "$map-cool"),
        )

    @property
    def _widths(self) -> tuple[int, int, int]:
        """Give the characters of the columns; a narrow list has no parameters."""
        titles = min(max((len(model.title) for model in self._models), default=0), MOST_TITLE)
        sizes = max((len(model.size) for model in self._models), default=0)
        parameters = max((len(model.parameters) for model in self._models), default=0)
        return titles, sizes, parameters if self.app.size.width >= NARROW else 0


def _teller(app: App[object]) -> Callable[[FetchState], None]:
    """Says in a corner how a download ended, wherever its user is by then."""

    def tell(state: FetchState) -> None:
        text = (
            f"{state.name} is here: Ctrl+O opens it"
            if state.complete
            else f"{state.name}: {state.error or state.words}"
        )
        with contextlib.suppress(RuntimeError):  # the app has ended
            app.call_from_thread(app.notify, text)

    return tell
