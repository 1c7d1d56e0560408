"""The slash commands: each is a method named after its command."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from textual.widget import Widget

from edgemoe.answer import effort, sampling
from edgemoe.answer.calls import as_text
from edgemoe.config import Budget, context_length
from edgemoe.errors import ConfigError
from edgemoe.text.display import count
from edgemoe.types import Thinking

from .. import interchange
from ..attachments import load
from ..commands import Call
from ..conversation import Conversation
from ..presets import Preset, Presets, asks_to_save
from .answering import Answering
from .library import Library
from .surface import Surface

LARGEST_IMPORT = 512 << 20  # bytes: the export of years
_CODE = re.compile(r"^(`{3,})[^\n`]*\n(.*?)^\1`*[ ]*$", re.MULTILINE | re.DOTALL)


class Commanded(Surface, Protocol):
    """The screen as commands see it."""

    answering: Answering
    library: Library
    presets: Presets | None
    focused: Any
    suited: dict[str, float | int]  # sampling that suits the model; other values were set in this chat

    def set_focus(self, widget: Widget | None) -> None:
        """Let ``widget`` have the keys."""

    def cannot_place(self) -> str | None:
        """Why a budget cannot be set, None when it can."""

    def resize(self, size: str) -> None:
        """Change the budget."""

    def statistics(self) -> str:
        """Counters in words."""

    def switch_model(self, name: str) -> None:
        """Open another model in the place of this one."""

    def change_context(self, length: int | str) -> None:
        """Open the same model with a context of another length."""

    def action_models(self) -> None:
        """Show the models there are."""

    def action_history(self) -> None:
        """Show earlier conversations."""

    def action_toggle_experts(self) -> None:
        """Show or hide the experts."""

    def action_help(self) -> None:
        """Show keys and commands."""

    async def action_edit_outside(self) -> None:
        """Edit the prompt in the user's editor."""

    def action_settings(self) -> None:
        """Show the settings of the next answers."""

    async def find(self, text: str) -> None:
        """Find ``text`` in this chat."""


class Actions:
    """Runs commands on one screen."""

    def __init__(self, screen: Commanded) -> None:
        """Act on ``screen``."""
        self._screen = screen

    async def run(self, call: Call) -> None:
        """Run the command ``call``."""
        action: Callable[[str], Awaitable[None]] = getattr(self, f"do_{call.name}")
        await action(call.argument)

    async def do_help(self, text: str) -> None:
        """Show keys and commands."""
        self._screen.action_help()

    async def do_find(self, text: str) -> None:
        """Find words in this chat."""
        await self._screen.find(text)

    async def do_editor(self, text: str) -> None:
        """Edit the prompt outside."""
        await self._screen.action_edit_outside()

    async def do_theme(self, text: str) -> None:
        """Change the colours."""
        app = self._screen.app
        if not text:
            app.search_themes()
        elif text in app.available_themes:
            app.theme = text
        else:
            known = ", ".join(sorted(app.available_themes))
            await self._screen.say(f"there is no theme {text}", f"there are: {known}", wrong=True)

    async def do_new(self, text: str) -> None:
        """Another conversation."""
        await self._screen.library.new()

    async def do_history(self, text: str) -> None:
        """The conversations of before."""
        self._screen.action_history()

    async def do_rename(self, text: str) -> None:
        """Another title."""
        self._screen.conversation.rename(text)
        await self._screen.say(f"this conversation is called: {text}")

    async def do_model(self, text: str) -> None:
        """Which model it is, or another one."""
        screen = self._screen
        if text:
            screen.switch_model(text)
        else:
            screen.action_models()

    async def do_system(self, text: str) -> None:
        """The system prompt."""
        chat = self._screen.conversation
        text, save = asks_to_save(text)
        if text:
            chat.system = "" if text.lower() == "none" else text
        if save:
            await self.save()
        if chat.system:
            await self._screen.say(f"system prompt: {chat.system}")
        else:
            await self._screen.say("there is no system prompt", "/system TEXT sets one")

    async def do_set(self, text: str) -> None:
        """Sampling settings."""
        if not text:
            self._screen.action_settings()
            return
        text, save = asks_to_save(text)
        try:
            if text:
                self._screen.sampling = sampling.change(self._screen.sampling, text)
            if save:
                await self.save()
            screen = self._screen
            await screen.say(sampling.listing(screen.sampling, self._thinking(), screen.think))
        except ValueError as error:
            await self._screen.say(str(error), wrong=True)

    async def do_think(self, text: str) -> None:
        """How much the model thinks, and whether its thinking is shown."""
        screen, word = self._screen, text.lower()
        if screen.card is None:
            await screen.say("there is no model to ask")
        elif word in (effort.SHOW, effort.HIDE):
            screen.transcript.show_thinking(word == effort.SHOW)
        elif word and (why := effort.complaint(word, self._thinking())):
            await screen.say(why, wrong=True)
        else:
            if word:
                screen.think = "" if word == effort.DEFAULT else word
            await screen.say(effort.in_words(screen.think, self._thinking()))

    def _thinking(self) -> Thinking:
        card = self._screen.card
        return card.thinking if card is not None else Thinking()

    async def do_stats(self, text: str) -> None:
        """Counters."""
        await self._screen.say(self._screen.statistics())

    async def do_profile(self, text: str) -> None:
        """Where the time of the last answer went."""
        receipt = self._screen.answering.receipt
        if receipt is None:
            await self._screen.say("nothing has been answered yet")
            return
        spent = {"expert layers": receipt.moe_ms, "CPU": receipt.cpu_ms, "device": receipt.device_ms}
        spent["waiting for the device"] = receipt.join_ms
        if receipt.disk_bytes:
            spent["waiting for the disk"] = receipt.disk_ms
        tokens = max(receipt.answer_tokens + receipt.prompt_tokens, 1)
        lines = [f"{name:<24}{ms:>10.1f} ms  {ms / tokens:>8.2f} ms a token" for name, ms in spent.items()]
        remark = [receipt.remark()] if receipt.remark() else []
        await self._screen.say("\n".join(["the last answer, prompt included:", *lines, *remark]))

    async def do_experts(self, text: str) -> None:
        """The expert map."""
        self._screen.action_toggle_experts()

    async def do_vram(self, text: str) -> None:
        """The budget."""
        if (complaint := self._screen.cannot_place()) is not None:
            await self._screen.say(complaint)
            return
        try:
            Budget.parse(text)
        except ConfigError as error:
            await self._screen.say(str(error), error.hint, wrong=True)
            return
        self._screen.resize(text)

    async def do_ctx(self, text: str) -> None:
        """The length of the context."""
        screen = self._screen
        if text:
            try:
                screen.change_context(context_length(text))
            except ConfigError as error:
                await screen.say(str(error), error.hint, wrong=True)
        elif screen.card is None:
            await screen.say("there is no model", "/model opens one")
        else:
            used = f"{screen.status.context_used} of the {screen.card.context} tokens of the context are in use"
            await screen.say(used, "/ctx 32k or /ctx auto changes its length")

    async def do_file(self, text: str) -> None:
        """Attach a text file to the next question."""
        await self.attach_file(text)

    async def attach_file(self, path: str) -> bool:
        """Attach the file ``path``; False, after saying why, where it cannot be sent."""
        answering = self._screen.answering
        try:
            attachment = await asyncio.to_thread(load, path)
        except ValueError as error:
            await self._screen.say(str(error), wrong=True)
            return False
        await answering.attach([*answering.attached, attachment])
        return True

    async def do_detach(self, text: str) -> None:
        """Take the last attachment away, or number N, or all."""
        attached = list(self._screen.answering.attached)
        if not attached:
            await self._screen.say("nothing is attached")
        elif text.lower() == "all":
            await self._screen.answering.attach([])
        elif text and not (text.isdigit() and 0 < int(text) <= len(attached)):
            await self._screen.say(f"there are {len(attached)} attachments", "/detach N, or /detach all", wrong=True)
        else:
            del attached[int(text or len(attached)) - 1]
            await self._screen.answering.attach(attached)

    async def do_export(self, text: str) -> None:
        """Write the conversation to a file that does not exist yet."""
        text, thoughts = interchange.asks_for_thoughts(text)
        document = self._screen.conversation.document(thoughts)
        if not document.turns:
            await self._screen.say("there is nothing to export yet")
            return
        try:
            path = interchange.export(document, text)
        except OSError as error:
            why = f"{error.filename or 'the file'} was not written: {error.strerror}"
            await self._screen.say(why, "/export FILE.md or FILE.json", wrong=True)
            return
        await self._screen.say(f"written to {path}")

    async def do_import(self, text: str) -> None:
        """Open a conversation from a file."""
        try:
            documents = await asyncio.to_thread(lambda: interchange.read(load(text, LARGEST_IMPORT).text))
        except ValueError as error:
            await self._screen.say(f"{text} was not imported: {error}", wrong=True)
            return
        for document in documents:
            conversation = Conversation.imported(self._screen.archive, document)
        await self._screen.library.open(conversation)
        if len(documents) > 1:
            await self._screen.say(f"{count(len(documents))} chats were imported", "/history shows all of them")

    async def do_undo(self, text: str) -> None:
        """Take the last question and its answer back."""
        if self._screen.busy:
            await self._screen.say("Esc stops the answer first")
        elif question := await self._screen.library.take_back():
            self._screen.library.keep_undone()
            self._screen.prompt.give_back(question)
        else:
            await self._screen.say("there is nothing to take back")

    async def do_edit(self, text: str) -> None:
        """Change the last question."""
        if self._screen.busy:
            await self._screen.say("Esc stops the answer first")
        elif not await self._screen.library.edit():
            await self._screen.say("there is no question to change")

    async def do_regen(self, text: str) -> None:
        """Another answer to the last question."""
        if (why := self._cannot_ask()) is not None:
            await self._screen.say(why)
        elif await self._screen.library.take_back(keep_question=True):
            await self._screen.answering.answer(self._screen.library.restore)
        else:
            await self._screen.say("there is no question to answer again")

    async def do_branch(self, text: str) -> None:
        """Show the next of several answers to one question."""
        await self._screen.library.next_branch()

    async def do_continue(self, text: str) -> None:
        """Let the last answer go on."""
        if (why := self._cannot_ask()) is not None:
            await self._screen.say(why)
        elif not await self._screen.answering.go_on():
            await self._screen.say("there is no answer to continue")

    async def do_copy(self, text: str) -> None:
        """Copy the last answer, or one of its code blocks."""
        self.copy(text)

    async def do_quit(self, text: str) -> None:
        """Leave."""
        await self._screen.app.action_quit()

    def copy(self, number: str) -> None:
        """Copy the last answer, or its code block ``number`` (from 1), to the clipboard of the terminal."""
        screen = self._screen
        turns = reversed(screen.conversation.turns)
        text = next((as_text(turn.answer) for turn in turns if turn.role == "assistant"), "")
        blocks = [match[2] for match in _CODE.finditer(text)]
        if number:
            if not number.isdigit() or not 0 < int(number) <= len(blocks):
                screen.notify(f"the answer has {len(blocks)} code blocks", severity="warning")
                return
            text = blocks[int(number) - 1]
        if text:
            screen.app.copy_to_clipboard(text)
        screen.notify(f"copied {count(len(text))} characters" if text else "there is no answer to copy")

    async def save(self) -> None:
        """Keep system prompt and sampling for this model."""
        screen = self._screen
        if screen.presets is None:
            await screen.say("nothing is kept in this chat", wrong=True)
            return
        try:
            screen.presets.save(screen.model_name, Preset(screen.conversation.system, screen.sampling, screen.think))
        except OSError as error:
            await screen.say(f"the preset was not written: {error.strerror}", wrong=True)
        else:
            screen.suited = dict(screen.sampling)
            await screen.say(f"kept for {screen.model_name}: system prompt and settings as they are now")

    def _cannot_ask(self) -> str | None:
        if self._screen.busy:
            return "Esc stops the answer first"
        return None if self._screen.card is not None else "there is no model to ask"
