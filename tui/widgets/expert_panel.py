"""The experts panel: figures, the map, and what its cells mean."""

from __future__ import annotations

from collections import deque

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from edgemoe.types import ExpertStats, ModelShape

from ..expert_map import scale, sparkline
from ..records import ExpertMaps
from ..text import count, percent, size
from .expert_map import ExpertMap

_HISTORY = 64  # samples with decoded pairs: eight seconds at full rate


class ExpertPanel(Vertical):
    """Shows samples of the experts; knows nothing of where they come from."""

    def __init__(self, id: str | None = None) -> None:
        """Empty until the model is known."""
        super().__init__(id=id)
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self.stats: ExpertStats | None = None
        self._shape: ModelShape | None = None
        self._height = 0  # of the figures, in lines

    def compose(self) -> ComposeResult:
        """Figures above, map, legend below."""
        yield Static(Content("no model yet"), id="expert-figures")
        yield ExpertMap(id="expert-map")
        yield Static(Content(""), id="expert-legend")

    def open(self, shape: ModelShape | None, device: str, stats: ExpertStats | None) -> None:
        """A model was loaded: name its device, forget the old figures."""
        self._rates.clear()
        self._shape, self.stats = shape, stats
        self.border_title = Content(f"experts · {device}")
        if shape is None:
            self.say("this model has no routed experts")
        elif stats is not None:
            self._draw_figures(stats)

    def say(self, text: str) -> None:
        """Words in the place of the figures."""
        self._height = 0
        self.query_one("#expert-figures", Static).update(Content(text))

    def show(self, stats: ExpertStats, maps: ExpertMaps | None) -> None:
        """Draw a sample. The rate of the sparkline is that of the tokens since the sample before."""
        before = self.stats or ExpertStats()
        hits, misses = stats.hits - before.hits, stats.misses - before.misses
        if hits + misses > 0:
            self._rates.append(hits / (hits + misses))
        self.stats = stats
        if not self.display:
            return
        self._draw_figures(stats)
        if maps is not None:
            self.query_one(ExpertMap).show(maps)

    def on_resize(self) -> None:
        """The sparkline is as wide as there is room."""
        if self.stats is not None and self._shape is not None:
            self._draw_figures(self.stats)

    def _draw_figures(self, stats: ExpertStats) -> None:
        shape, wide = self._shape, max(self.content_size.width, 20)
        total = shape.layers * shape.experts if shape else 0
        hit = percent(stats.hit_rate) if stats.hits + stats.misses else "–"
        bars = sparkline(self._rates, min(wide - 16, _HISTORY))
        place = [f"{count(stats.resident)} of {count(total)} resident", f"{size(stats.slot_bytes)} on device"]
        moved = [f"{count(stats.uploads)} uploads", f"{size(stats.upload_bytes)} moved"]
        if stats.pending:
            moved.append(f"{count(stats.pending)} pending")
        one_line = len(" · ".join(place + moved)) <= wide
        words = [place + moved] if one_line else [place, moved]
        if stats.prefetch_useful + stats.prefetch_late + stats.prefetch_wasted:
            words.append(
                [
                    f"fetched ahead: {count(stats.prefetch_useful)} useful",
                    f"{count(stats.prefetch_late)} late",
                    f"{count(stats.prefetch_wasted)} wasted",
                ]
            )
        lines = Content.assemble(
            ("hit rate ", "$muted"),
            (f"{hit:>5} ", "bold $primary"),
            (bars, "$primary"),
            *(("\n" + " · ".join(line), "$muted") for line in words),
        )
        height, self._height = self._height, len(words) + 1
        # A layout of the whole screen only where these lines change their number.
        self.query_one("#expert-figures", Static).update(lines, layout=height != self._height)

    @on(ExpertMap.Fitted)
    def _draw_legend(self, event: ExpertMap.Fitted) -> None:
        layout = event.layout
        keys = [("█", "$map-hit", "hit"), ("□", "$map-miss", "miss"), ("■", "$map-hot", "on device")]
        if layout.dense:
            keys = [("▀", ink, name) for _, ink, name in keys]
        keys.append(("▀" if layout.dense else "·", "$map-cool", "on CPU"))
        legend = Content("  ").join(Content.assemble((glyph, ink), f" {name}") for glyph, ink, name in keys)
        note = scale(layout) or "bright = often"
        self.query_one("#expert-legend", Static).update(Content.assemble(legend, (f"  {note}", "$muted")))
