"""The status line: the state of the program and its main figures."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from edgemoe.text.display import count, one_line, percent, rate, seconds

from ..context import WARN_SHARE
from ..records import UNDER_WAY, State

_METER = 8  # characters of the bar that shows the context
_WIDE = 60  # characters of the line, from which the bar has room
_FULL_SHARE = 0.9

_MARKS: dict[State, tuple[str, str]] = {
    "loading": ("◌", "$warning"),
    "idle": ("○", "$success"),
    "reading": ("◔", "$warning"),
    "thinking": ("◐", "$warning"),
    "answering": ("●", "$primary"),
    "stopping": ("◐", "$warning"),
    "stopped": ("□", "$secondary"),
    "failed": ("×", "$error"),
    "no model": ("○", "$warning"),
}


class StatusLine(Widget):
    """State, model and device on the left; figures on the right, dropped from the left when it is narrow."""

    state: reactive[State] = reactive[State]("loading")
    loaded = reactive(1.0)  # share of the model's files that is in RAM
    model = reactive("")
    device = reactive("")
    answer_rate = reactive(0.0)
    first_token_s = reactive(0.0)
    hit_rate: reactive[float | None] = reactive[float | None](None)
    context_used = reactive(0)
    context_size = reactive(0)
    unsaved = reactive(False)  # the conversation is not on the disk

    def render(self) -> Content:
        """The line for the width there is."""
        mark, ink = _MARKS[self.state]
        width = self.size.width - 2
        figures = self._figures()
        state: str = self.state
        if state == "loading" and self.loaded < 1:
            state = f"loading {percent(self.loaded)}"
        room = width - len(state) - 4
        while figures and sum(figure.cell_length + 2 for figure in figures) > room - 8:
            figures.pop(0)
        right = Content("  ").join(figures)
        name = " · ".join(part for part in (self.model, self.device) if part)
        left = one_line(name, max(room - right.cell_length - 1, 0))
        gap = " " * max(room - len(left) - right.cell_length, 0)
        return Content.assemble((f" {mark} {state}", f"bold {ink}"), "  ", left, gap, right, " ")

    def _figures(self) -> list[Content]:
        """Give the figures of now: those of a complete answer stand below it."""
        figures = [Content.styled("not saved", "bold $error")] if self.unsaved else []
        if self.state in UNDER_WAY or self.state == "stopping":
            live = [f"TTFT {seconds(self.first_token_s)}" if self.first_token_s else ""]
            live.append(rate(self.answer_rate) if self.answer_rate else "")
            live.append("" if self.hit_rate is None else f"hit {percent(self.hit_rate)}")
            figures += [Content.styled(figure, "$muted") for figure in live if figure]
        if self.context_size:
            figures.append(self._context_meter())
        return figures

    def _context_meter(self) -> Content:
        """Show how full the context is, as a bar and as a figure."""
        share = min(self.context_used / self.context_size, 1.0)
        full = max(round(share * _METER), 1 if self.context_used else 0)
        ink = "$error" if share >= _FULL_SHARE else "$warning" if share >= WARN_SHARE else "$map-cool"
        bar = [("━" * full, ink), ("─" * (_METER - full), "$map-cold")] if self.size.width >= _WIDE else []
        figure = f"{count(self.context_used)}/{count(self.context_size)}"
        return Content.assemble(("ctx ", "$muted"), *bar, (f" {figure}" if bar else figure, "$muted"))
