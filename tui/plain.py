"""The chat line by line, for screen readers, dumb terminals and pipes: nothing is ever drawn over."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from edgemoe.worker import EngineDied

from . import context, interchange, sampling
from .archive import Archive
from .commands import COMMANDS, Call, Command, Unknown, parse
from .conversation import Conversation
from .failures import in_words
from .interruptible import Interruptible
from .receipt import Receipt, counters
from .records import ChatSettings
from .session import Engine, EngineSource
from .text import visible

PROMPT = "you> "
MORE = "...> "  # a line that ends in a backslash goes on
NAMES = ("help", "new", "system", "set", "stats", "export", "quit")


class PlainChat:
    """Reads questions and commands, writes answers as they come and a receipt line after each."""

    def __init__(
        self,
        engines: EngineSource,
        settings: ChatSettings,
        archive: Archive | None,
        read: Callable[[str], str] = input,
        write: Callable[[str], object] = lambda text: print(text, end="", flush=True),
    ) -> None:
        """Nothing is loaded yet.

        Args:
            engines: opens the model, again when its process has died.
            settings: what the command line decided.
            archive: keeps the conversation, None to keep nothing.
            read: shows a prompt and gives a line; EOFError ends the chat, KeyboardInterrupt drops the line.
            write: takes text as it comes.
        """
        self._engines, self._settings, self._archive = engines, settings, archive
        self._read, self._write = read, write
        self._sampling = dict(settings.sampling or {})
        self._conversation = Conversation(archive, settings.title, settings.system)
        self._receipt: Receipt | None = None
        self._engine: Engine | None = None

    def run(self) -> None:
        """Chat until the end of the input or ``/quit``.

        Raises:
            Exception: why the model could not be opened.
        """
        self._open()
        self._resume()
        self._say("Type a question, /help for commands, /quit to leave. Ctrl+C stops an answer.")
        try:
            while (line := self._line()) is not None:
                command = parse(line)
                if isinstance(command, Unknown):
                    self._say(f"error: {command.text}; {command.hint}")
                elif isinstance(command, Call):
                    if command.name == "quit":
                        return
                    self._run(command)
                elif line.strip():
                    self._ask(line.strip())
        finally:
            if self._engine is not None:
                self._engine.close()

    def _open(self) -> None:
        self._say(f"loading {self._settings.title}")
        self._engine = engine = self._engines.open(lambda: None, lambda share: None)
        self._say(f"ready: device {engine.experts.device}, context {engine.n_ctx()} tokens")
        for note in engine.experts.notes:
            self._say(f"note: {note}")

    def _resume(self) -> None:
        if not self._settings.resume or (archive := self._archive) is None:
            return
        try:
            last = archive.do(lambda store: store.recent(1)).result()
            saved = archive.do(lambda store: store.read(last[0].id)).result() if last else None
        except sqlite3.Error as error:
            self._say(f"error: conversations cannot be read: {error}")
            return
        if saved is None:
            self._say("there is no conversation to resume yet")
            return
        self._conversation = Conversation.resumed(archive, saved)
        self._conversation.drop_unanswered()
        self._say(f"resumed: {saved.title}, {len(self._conversation.turns)} messages")
        for turn in self._conversation.turns[-2:]:
            self._say(f"{turn.role}: {turn.text}")

    def _line(self) -> str | None:
        """One entry, of several lines where they end in a backslash; None at the end."""
        lines: list[str] = []
        prompt = PROMPT
        while True:
            try:
                line = self._read(prompt)
            except EOFError:
                return None
            except KeyboardInterrupt:
                self._say("\n(Ctrl+D or /quit leaves)")
                lines, prompt = [], PROMPT
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            prompt = MORE

    def _ask(self, text: str) -> None:
        assert self._engine is not None
        chat, limit = self._conversation, self._sampling.get("max_tokens")
        chat.add("user", text)
        room = int(limit) if limit else None
        fitting = context.fit(chat.messages(), self._engine.n_ctx(), room, context.CHARACTERS_PER_TOKEN)
        if fitting.left_out:
            self._say(f"note: the oldest {fitting.left_out} messages no longer fit the context")
        try:
            answer, note = self._answer(self._engine, fitting.messages)
        finally:
            chat.drop_unanswered()
        if answer:
            chat.end(answer, note)
        self._say(f"\n[{note}]" if note else "")

    def _answer(self, engine: Engine, messages: list[dict[str, str]]) -> tuple[str, str]:
        """Write the answer as it comes; what there was of it, and its receipt."""
        text, last = "", {}

        def chunks() -> Iterator[Any]:
            return iter(engine.create_chat_completion(messages, stream=True, **self._sampling))

        try:
            with Interruptible(engine, chunks) as answer:
                for last in answer:
                    piece = last["choices"][0]["delta"].get("content") or ""
                    text += piece
                    self._write(visible(piece))
                    if piece:
                        self._conversation.grow(text)
        except EngineDied as error:
            self._say(f"\nerror: {in_words(error).text}; the conversation is kept, the engine starts again")
            engine.close()
            self._open()
            return text, "broke off"
        except Exception as error:
            words = in_words(error)
            self._say(f"\nerror: {words.text}" + (f"\nhint: {words.hint}" if words.hint else ""))
            return text, "broke off" if text else ""
        self._receipt = receipt = Receipt.of(last)
        return text, ("stopped · " if answer.interrupted else "") + receipt.line()

    def _run(self, call: Call) -> None:
        if call.name not in NAMES:
            self._say(f"error: there is no /{call.name} in the plain chat; /help lists what there is")
            return
        getattr(self, f"_do_{call.name}")(call.argument)

    def _do_help(self, text: str) -> None:
        known: list[Command] = [command for command in COMMANDS if command.name in NAMES]
        self._say("\n".join(f"{command.usage}: {command.help}" for command in known))
        self._say("A line that ends in a backslash goes on in the next one.")

    def _do_new(self, text: str) -> None:
        self._conversation = Conversation(self._archive, self._settings.title, self._conversation.system)
        self._say("a new conversation begins")

    def _do_system(self, text: str) -> None:
        if text:
            self._conversation.system = "" if text.lower() == "none" else text
        self._say(f"system prompt: {self._conversation.system or 'none'}")

    def _do_set(self, text: str) -> None:
        try:
            if text:
                self._sampling = sampling.change(self._sampling, text)
            self._say(sampling.listing(self._sampling))
        except ValueError as error:
            self._say(f"error: {error}")

    def _do_stats(self, text: str) -> None:
        assert self._engine is not None
        if self._receipt is not None:
            self._say(f"last answer: {self._receipt.statistics()}")
        if self._engine.experts.shape is not None:
            self._say("\n".join(counters(self._engine.experts.stats())))

    def _do_export(self, text: str) -> None:
        document = self._conversation.document()
        if not document.turns:
            self._say("there is nothing to export yet")
            return
        try:
            self._say(f"written to {interchange.export(document, text)}")
        except OSError as error:
            self._say(f"error: {error.filename} was not written: {error.strerror}")

    def _say(self, text: str) -> None:
        self._write(visible(text) + "\n")
