"""Where the user writes: grows with the text, completes commands and paths, Enter sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from textual import events, work
from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import TextArea

from .. import completion
from ..attachments import PASTE_CHARACTERS, unix_lines
from ..commands import Unknown, matches, parse
from ..completion import Candidate, PathBegun
from ..keys import Keys
from .completion_menu import CompletionMenu

NOTICE_SECONDS = 4.0
_EDITS = {
    key: binding.action
    for binding in TextArea.BINDINGS
    if isinstance(binding, Binding)
    for key in binding.key.split(",")
}


class Prompt(TextArea, inherit_bindings=False):
    """A text area of one line and more. Up brings earlier prompts back."""

    # The keys of the text area are looked up in _on_key, where those of the chat come first.
    BINDINGS = [
        Binding("enter", "send", "Send", show=False, id="prompt.send"),
        Binding("shift+enter,ctrl+j", "newline", "New line", show=False, id="prompt.newline"),
        Binding("ctrl+d", "leave", "Quit", show=False, id="prompt.leave"),
        Binding("ctrl+underscore", "undo", "Undo", show=False, id="prompt.undo"),
    ]

    @dataclass
    class Submitted(Message):
        """The user sent ``text``. A receiver that cannot use it now gives it back."""

        text: str

    @dataclass
    class Pasted(Message):
        """A paste too long to be shown."""

        text: str

    @dataclass
    class FileChosen(Message):
        """The user chose the file ``path`` after an ``@``: it goes along with the question."""

        path: str

    class StarterWanted(Message):
        """The user pressed Tab where nothing is typed, or on a first question that came by Tab."""

    class ChipDeleted(Message):
        """The user pressed Backspace in an empty prompt: the last attachment goes."""

    def __init__(self, keys: Keys, menu: CompletionMenu, id: str | None = None) -> None:
        """Empty; ``keys`` are named below it, ``menu`` shows completions."""
        super().__init__(id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False)
        self._sent: list[str] = []
        self._place = 0  # among the sent prompts; at their end while something new is written
        self._menu, self._offered_for = menu, ""
        self._tab_for: str | None = None  # the line that Tab completes as soon as its candidates are known
        self._starter = ""  # the first question that Tab wrote
        self._settled: str | None = None  # a text that needs no menu: recalled, given back, or the menu was closed
        self._send, self._newline, self._leave = keys.of("send"), keys.of("newline"), keys.of("leave")
        taken = keys.taken()
        self._edits = {key: action for key, action in _EDITS.items() if key not in taken}
        self._edits |= dict.fromkeys(keys.of("undo_typing"), "undo")
        self._notice: Timer | None = None  # until its end
        self._usual = f"{keys.shown('send')} send · {keys.shown('newline')} newline"
        self._keys = self._usual
        self.placeholder = "Ask something, / for commands, @ for a file"

    def on_mount(self) -> None:
        """Show the keys."""
        self.show_keys()

    def show_keys(self, keys: str = "") -> None:
        """Name the keys that matter now, below the text; those of writing when none is given."""
        self._keys = keys or self._usual
        self.border_subtitle = self._hint()

    def show_notice(self, text: str) -> None:
        """Show a passing word in the upper edge, where it covers nothing."""
        self.border_title = Content(text)
        if self._notice is not None:
            self._notice.stop()
        self._notice = self.set_timer(NOTICE_SECONDS, self._end_notice)

    def _end_notice(self) -> None:
        self.border_title, self._notice = "", None

    def give_back(self, text: str, whole: bool = False) -> None:
        """Put ``text``, which cannot be used now, before the text that was typed since; ``whole`` if it has both."""
        self._settle(text if whole else text + self.text)

    def begin_with(self, starter: str) -> None:
        """Write a first question, in the place of the one before."""
        self._starter = starter
        self._settle(starter)

    def remember(self, earlier: Iterable[str]) -> None:
        """Offer prompts that were sent in an ``earlier`` session, oldest first."""
        self._sent[:0] = earlier
        self._place = len(self._sent)

    def set_aside(self) -> None:
        """Clear the text; Up brings it back."""
        self._keep(self.text)
        self.clear()

    def action_send(self) -> None:
        """Send, unless there is nothing but space, and clear the prompt at once for the next letters."""
        if self.text.strip():
            text, self._starter = self.text, ""
            self._keep(text)
            self.clear()
            self._menu.show(())
            self.post_message(self.Submitted(text))

    def _keep(self, text: str) -> None:
        if not self._sent or self._sent[-1] != text:
            self._sent.append(text)
        self._place = len(self._sent)

    def action_newline(self) -> None:
        """Insert a line break."""
        self.replace("\n", *self.selection)

    async def action_leave(self) -> None:
        """Quit where nothing is typed; delete a letter elsewhere."""
        if self.text:
            self.action_delete_right()
        else:
            await self.run_action("app.quit")

    def on_text_area_changed(self) -> None:
        """Offer completions."""
        self._offer()
        self.border_subtitle = self._hint()

    async def _on_key(self, event: events.Key) -> None:
        # Here and not as bindings, which run when a key has bubbled up: in a burst, as over a slow line, letters would
        # overtake them, or they would overtake letters that still wait in this queue.
        if event.key in self._send:
            event.prevent_default().stop()
            self._choose_or_send()
        elif event.key in self._newline:
            event.prevent_default().stop()
            self.action_newline()
        elif event.key in self._leave:
            event.prevent_default().stop()
            await self.action_leave()
        elif event.key in ("up", "down") and self._move(-1 if event.key == "up" else 1):
            event.prevent_default().stop()
        elif event.key in ("tab", "shift+tab"):
            event.prevent_default().stop()  # never to the next widget, where letters are commands
            if event.key == "tab" and self.text == self._starter:
                self.post_message(self.StarterWanted())
            elif event.key == "tab":
                self._complete()
        elif event.key == "escape" and self._menu.candidates:
            event.prevent_default().stop()
            self._settle(self.text)
        elif event.key == "backspace" and not self.text:
            event.prevent_default().stop()
            self.post_message(self.ChipDeleted())
        elif (action := self._edits.get(event.key)) is not None:
            event.prevent_default().stop()
            await self.run_action(action)
        else:
            await super()._on_key(event)

    def _move(self, step: int) -> bool:
        """Move in the menu or in earlier prompts; False where the key has to move the cursor instead."""
        if self._menu.candidates:
            self._menu.move(step)
            return True
        return self._recall(step)

    def _recall(self, step: int) -> bool:
        """Show the prompt that was sent before or after; False where the key has to move the cursor instead."""
        shown = self._sent[self._place] if self._place < len(self._sent) else ""
        place = self._place + step
        if self.text != shown or not 0 <= place <= len(self._sent):
            return False
        self._place = place
        self._settle(self._sent[place] if place < len(self._sent) else "")
        return True

    # Completion.

    def _line(self) -> str:
        """The text before the cursor."""
        return self.get_text_range((0, 0), self.cursor_location)

    def _settle(self, text: str) -> None:
        """Show ``text`` without a menu."""
        self._settled = text
        self._menu.show(())
        if self.text != text:
            self.text = text
            self.move_cursor(self.document.end)

    def _offer(self) -> None:
        line = self._line()
        if self.text == self._settled:
            return
        self._settled = None
        if self.text.startswith("/") and (found := completion.commands(self.text)):
            self._show(line, found)
        elif (begun := completion.path_begun(line)) is not None:
            self._look_up(line, begun)
        else:
            self._show(line, [])

    def _show(self, line: str, candidates: list[Candidate]) -> None:
        self._offered_for = line
        self._menu.show(candidates)

    @work(exclusive=True, group="completion")
    async def _look_up(self, line: str, begun: PathBegun) -> None:
        found = await asyncio.to_thread(completion.paths, begun)
        if self._line() == line:
            self._show(line, found)
            wanted, self._tab_for = self._tab_for == line, None
            if wanted and found:
                self._complete()

    def _complete(self) -> None:
        """Tab: as far as it is clear, then to the candidate that is highlighted."""
        line = self._line()
        if found := completion.commands(self.text):
            self._extend(line, 0, found)
        elif (begun := completion.path_begun(line)) is not None:
            if self._menu.candidates and self._offered_for == line:
                self._extend(line, begun.start, list(self._menu.candidates))
            elif self._offered_for != line or self._settled is not None:
                self._settled, self._tab_for = None, line
                self._look_up(line, begun)

    def _extend(self, line: str, start: int, candidates: list[Candidate]) -> None:
        typed, whole = line[start:], completion.common(candidates)
        if len(candidates) > 1 and len(whole) > len(typed) and not self._moved_in(candidates):
            self._replace_from(start, whole)
        else:
            self.accept(self._highlighted(candidates))

    def _moved_in(self, candidates: list[Candidate]) -> bool:
        """Tell whether the user has left the first of ``candidates``; the menu may be behind the keys."""
        return list(self._menu.candidates) == candidates and bool(self._menu.highlighted)

    def _highlighted(self, candidates: list[Candidate]) -> Candidate:
        return chosen if (chosen := self._menu.chosen) in candidates else candidates[0]

    def _replace_from(self, start: int, text: str) -> None:
        before = self._line()[:start].split("\n")
        self.replace(text, (len(before) - 1, len(before[-1])), self.cursor_location)

    def accept(self, candidate: Candidate) -> None:
        """Put ``candidate`` in the place of the typed beginning."""
        begun = completion.path_begun(self._line())
        self._replace_from(begun.start if begun else 0, f"{candidate.label} " if candidate.attaches else candidate.text)
        if candidate.attaches:
            self.post_message(self.FileChosen(candidate.text[1:]))
        if not candidate.text.endswith("/"):
            self._settle(self.text)

    def _choose_or_send(self) -> None:
        """Enter: take the command or file that is highlighted where the text is not one yet, else send."""
        line = self._line()
        if (found := completion.commands(self.text)) and self._settled != self.text:
            if self._moved_in(found) or isinstance(parse(self.text), Unknown):
                self.accept(self._highlighted(found))
            if not isinstance(parse(self.text.rstrip()), Unknown):
                self.action_send()
            return
        begun = completion.path_begun(line)
        if begun is not None and begun.attaches and self._menu.chosen is not None and self._offered_for == line:
            self.accept(self._menu.chosen)
        else:
            self.action_send()

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default().stop()  # Textual calls the base class's method by itself as well
        event.text = unix_lines(event.text)
        if len(event.text) > PASTE_CHARACTERS:
            self.post_message(self.Pasted(event.text))
        else:
            await super()._on_paste(event)

    def _hint(self) -> Content:
        if " " in self.text and (found := matches(self.text)):
            return Content(f"{found[0].usage} · {found[0].help}")
        return Content(self._keys)
