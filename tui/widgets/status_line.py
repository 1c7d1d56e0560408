"""The status line: the state of the program and its main figures."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from edgemoe.text.display import one_line, percent, rate, seconds

from ..records import State

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
        while figures and sum(len(figure) + 2 for figure in figures) > room - 8:
            figures.pop(0)
        right = "  ".join(figures)
        name = " · ".join(part for part in (self.model, self.device) if part)
        left = one_line(name, max(room - len(right) - 1, 0))
        gap = " " * max(room - len(left) - len(right), 0)
        return Content.assemble((f" {mark} {state}", f"bold {ink}"), "  ", left, gap, (right, "$muted"), " ")

    def _figures(self) -> list[str]:
        figures = []
        if self.unsaved:
            figures.append("not saved")
        if self.first_token_s:
            figures.append(f"TTFT {seconds(self.first_token_s)}")
        if self.answer_rate:
            figures.append(rate(self.answer_rate))
        if self.hit_rate is not None:
            figures.append(f"hit {percent(self.hit_rate)}")
        if self.context_size:
            figures.append(f"ctx {self.context_used}/{self.context_size}")
        return figures
