"""The conversation on the screen: it follows the newest line until the user scrolls away.

A widget costs a hundred times its text, and every one of them is laid out again when an answer grows. So only
the turns within a few screens are widgets. Those above are kept as functions that make them again, and come back when
the user scrolls up to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeAlias

from textual.containers import VerticalScroll
from textual.geometry import Offset, Size
from textual.layout import DockArrangeResult
from textual.widget import Widget
from textual.widgets.markdown import MarkdownBlock

from ..finding import places
from ..records import Key
from .answer_turn import AnswerTurn
from .discard import discard
from .message import ChatMessage
from .note import Note
from .user_turn import UserTurn
from .welcome import Welcome

Maker: TypeAlias = Callable[[], Widget]

LEAST_SCREENS = 2  # above the screen: a page up never meets nothing
MOST_SCREENS = 5  # above the newest screen; well over the least, so that nothing goes to and fro


class Transcript(VerticalScroll, can_focus=False):
    """Holds turns and notes in their order.

    Attributes:
        thinking_open: thinking is unfolded.
    """

    BLANK = True  # as in :class:`~edgemoe.tui.widgets.markdown.Section`

    def __init__(self, *children: Widget, id: str | None = None, thinking_key: str = "") -> None:
        """Hold ``children``; ``thinking_key`` unfolds thinking."""
        super().__init__(*children, id=id)
        self.thinking_open, self._thinking_key = False, thinking_key
        self._earlier: list[Maker] = []  # turns above the first widget, oldest first
        self._fitting = False
        self._held: tuple[Widget, int] | None = None  # with its end's distance from the first line that is seen

    def on_mount(self) -> None:
        """Stay at the end while it grows."""
        self.anchor()

    @property
    def scroll_offset(self) -> Offset:
        """Where the view begins: Textual puts a short text that is anchored at the bottom, here it is at the top."""
        offset = super().scroll_offset
        return Offset(offset.x, max(offset.y, 0))

    async def add(self, turn: Widget) -> None:
        """Append ``turn`` and go to the end; the welcome leaves with the first message."""
        if not isinstance(turn, Note):
            await self.query(Welcome).remove()
        await self.mount(turn)
        self._fold(turn)
        self.anchor()

    async def show(self, makers: Iterable[Maker]) -> None:
        """The turns of ``makers`` in the place of all there were, at their end."""
        self._earlier.clear()
        for child in list(self.children):
            await discard(child)
        self._earlier = list(makers)
        if self._earlier:
            await self._return_turn()
        self.anchor()
        self.call_after_refresh(self._fit)  # a turn lower than the screen changes no size

    def show_thinking(self, unfolded: bool) -> None:
        """Unfold or fold the thinking of all answers, including answers that come back later."""
        self.thinking_open = unfolded
        for child in self.children:
            self._fold(child)

    def _fold(self, turn: Widget) -> None:
        if isinstance(turn, AnswerTurn):
            turn.show_thinking(self.thinking_open, self._thinking_key)

    # Going somewhere.

    def turn_page(self, pages: int) -> None:
        """Scroll by ``pages``, from where the page before leads to: keys may come faster than the screen."""
        self.scroll_to(y=self.scroll_target_y + pages * max(self.size.height - 1, 1), animate=False, immediate=True)

    async def to_top(self) -> None:
        """Go to the first message."""
        await self._bring(lambda: not self._has_earlier)
        self.scroll_home(animate=False, immediate=True)

    def to_end(self) -> None:
        """Go to the newest line and follow it."""
        self.anchor()
        self.scroll_end(animate=False, immediate=True)

    async def reveal(self, key: Key, words: str) -> None:
        """Show the part of the message ``key`` that has the ``words``, and mark it."""
        for marked in self.query(".-found"):
            marked.remove_class("-found")
        await self._bring(lambda: self._shown(key) is not None)
        if (turn := self._shown(key)) is None:
            return
        while isinstance(turn, AnswerTurn) and turn.has_more:
            await turn.lengthen()
        await self._laid_out()
        blocks = list(turn.query(MarkdownBlock))
        found = places([block.source or "" for block in blocks], words)
        target = blocks[found[0]] if found else turn
        target.add_class("-found")
        self.scroll_to_widget(target, animate=False, immediate=True, force=True)

    def _shown(self, key: Key) -> Widget | None:
        return next((turn for turn in self.children if isinstance(turn, ChatMessage) and turn.key is key), None)

    async def _bring(self, enough: Callable[[], bool]) -> None:
        """Bring widgets back from above until there are ``enough``."""
        self.release_anchor()
        self._fitting = True
        try:
            while self._has_earlier and not enough():
                first = self.children[0] if self.children else None
                if isinstance(first, AnswerTurn) and first.has_more:
                    await first.lengthen()
                else:
                    await self._return_turn()
            await self._laid_out()
        finally:
            self._fitting = False

    @property
    def _has_earlier(self) -> bool:
        """Something above the first widget is there as text only."""
        first = self.children[0] if self.children else None
        return bool(self._earlier) or (isinstance(first, AnswerTurn) and first.has_more)

    # Which messages are there as widgets.

    def watch_virtual_size(self, before: Size, now: Size) -> None:
        """There is more or less than before."""
        self._fit()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The user looks elsewhere."""
        super().watch_scroll_y(old_value, new_value)
        self._fit()

    def _fit(self) -> None:
        if not self._fitting and (self._is_short or self._is_long):
            self._fitting = True
            self.run_worker(self._fit_all())

    async def _fit_all(self) -> None:
        try:
            while self.is_attached and (self._is_short or self._is_long):
                if self._is_long:
                    await self._leave()
                    await self._laid_out()
                else:
                    await self._return()
        finally:
            self._fitting = False

    @property
    def _is_short(self) -> bool:
        """Something that should be there is not."""
        return self._has_earlier and self.scroll_y < LEAST_SCREENS * self.size.height

    @property
    def _is_long(self) -> bool:
        """Something is there that need not be: only while the newest line is followed, and nothing is selected."""
        first = self._first()
        if self._anchor_released or first is None or self.screen.selections:
            return False
        return self.max_scroll_y - first.outer_size.height > MOST_SCREENS * max(self.size.height, 1)

    def _first(self) -> Widget | None:
        """The uppermost thing that may leave: a turn before the last answer, or a section of a long one."""
        first = next(iter(self.children), None)
        if isinstance(first, AnswerTurn):
            if (section := first.first_section) is not None:
                return section
            last = next(child for child in reversed(self.children) if isinstance(child, AnswerTurn))
            return None if first is last else first
        return first if isinstance(first, UserTurn | Note) and len(self.children) > 1 else None

    async def _leave(self) -> None:
        first = self.children[0]
        if isinstance(first, AnswerTurn) and first.first_section is not None:
            await first.shorten()
        elif isinstance(first, AnswerTurn | UserTurn | Note):
            self._earlier.append(first.maker())
            await discard(first)

    async def _return(self) -> None:
        """Bring one more back above; the lines on the screen stay in their place."""
        first = self.children[0]
        if self._anchor_released:
            self.app.animator.force_stop_animation(self, "scroll_y")
            self._held = (first, first.virtual_region.bottom - round(self.scroll_y))
        if isinstance(first, AnswerTurn) and first.has_more:
            await first.lengthen()
        else:
            await self._return_turn()
        await self._laid_out()
        self._held = None
        self.vertical_scrollbar.position = self.scroll_y

    def arrange(self, size: Size, optimal: bool = False) -> DockArrangeResult:
        """Place all widgets; the one that is held stays in its place on the screen.

        Done here, as Textual does for an anchored widget, and not after the layout: no frame shows it elsewhere.
        """
        result = super().arrange(size, optimal)
        if self._held is not None and self._anchor_released:
            held, below = self._held
            for place in result.placements:
                if place.widget is held:
                    self.set_reactive(Widget.scroll_y, place.region.bottom - below)
                    self.set_reactive(Widget.scroll_target_y, place.region.bottom - below)
        return result

    async def _return_turn(self) -> None:
        turn = self._earlier.pop()()
        await self.mount(turn, before=0 if self.children else None)
        self._fold(turn)

    async def _laid_out(self) -> None:
        """Wait until every widget has its place."""
        done = asyncio.Event()
        self.call_after_refresh(done.set)
        await done.wait()
