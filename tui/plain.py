"""The chat line by line, for screen readers, dumb terminals and pipes: nothing is ever drawn over."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

from edgemoe.answer import effort, sampling
from edgemoe.answer.calls import Delta
from edgemoe.answer.calls import in_words as call_in_words
from edgemoe.answer.growth import Growing
from edgemoe.answer.receipt import Receipt, breaking_off, counters, what_cut
from edgemoe.answer.record import Answer
from edgemoe.text.display import duration, visible
from edgemoe.text.failures import in_words
from edgemoe.types import Thinking
from edgemoe.worker import EngineDied
from edgemoe.worker.interruptible import Interruptible
from edgemoe.worker.protocol import Engine, EngineSource, thinking_of

from . import context, interchange
from .archive import Archive
from .commands import COMMANDS, Call, Command, Unknown, parse
from .conversation import Conversation
from .records import ChatSettings
from .store import BROKE_OFF

PROMPT = "you> "
MORE = "...> "  # a line that ends in a backslash goes on
LOOK_SECONDS = 0.2  # between two looks at all there is of an answer
_HELP = {
    "length": "/set max_tokens, or --max-tokens at the start, allows more",
    "full": "a larger --ctx makes room",
}
NAMES = ("help", "new", "system", "set", "think", "stats", "export", "quit")


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
            settings: choices of the command line.
            archive: keeps the conversation, None to keep nothing.
            read: shows a prompt and gives a line; EOFError ends the chat, KeyboardInterrupt drops the line.
            write: takes text as it comes.
        """
        self._engines, self._settings, self._archive = engines, settings, archive
        self._read, self._write = read, write
        self._sampling = dict(settings.sampling or {})
        self._think, self._thoughts_shown = settings.think, False
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
        if self._think and (why := effort.refusal(self._think, thinking_of(engine))):
            self._say(f"note: {why}: thinking {self._think} is dropped")
            self._think = ""

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
            self._say("\n".join([f"{turn.role}: {turn.text}", *map(call_in_words, turn.calls)]))

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
        chat, room = self._conversation, sampling.limit(self._sampling, thinking_of(self._engine))
        chat.add("user", text)
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

    def _answer(self, engine: Engine, messages: list[dict[str, str]]) -> tuple[Answer, str]:
        """Write the answer as it comes; return it, whole or not, and its receipt."""
        reader, last = _Reader(self._write, self._thoughts_shown), {}
        keywords = sampling.keywords(self._sampling, thinking_of(engine), self._think)

        def chunks() -> Iterator[Any]:
            return iter(engine.create_chat_completion(messages, stream=True, **keywords))

        try:
            with Interruptible(engine, chunks) as pieces:
                for last in pieces:
                    if (delta := Delta.of(last)) and (answer := reader.read(delta)) is not None:
                        self._conversation.grow(answer)
        except EngineDied as error:
            answer = reader.end()
            self._say(f"\nerror: {in_words(error).text}; the conversation is kept, the engine starts again")
            engine.close()
            self._open()
            return answer, BROKE_OFF
        except Exception as error:
            answer, words = reader.end(), in_words(error)
            self._say(f"\nerror: {words.text}" + (f"\nhint: {words.hint}" if words.hint else ""))
            return answer, BROKE_OFF if answer else ""
        answer, receipt = reader.end(), Receipt.of(last)
        self._receipt = receipt
        reason = last["choices"][0].get("finish_reason") if last else None
        cut = what_cut(str(reason), receipt, keywords["max_tokens"])
        why = breaking_off("stopped" if pieces.interrupted else cut, answer)
        help = "" if pieces.interrupted else _HELP.get(cut, "")
        return answer, " · ".join(part for part in (why, help, receipt.line()) if part)

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
            self._say(sampling.listing(self._sampling, self._thinking(), self._think))
        except ValueError as error:
            self._say(f"error: {error}")

    def _do_think(self, text: str) -> None:
        word = text.lower()
        if word in (effort.SHOW, effort.HIDE):
            self._thoughts_shown = word == effort.SHOW
            self._say("the thinking is written out" if self._thoughts_shown else "the thinking is not written out")
        elif word and (why := effort.complaint(word, self._thinking())):
            self._say(f"error: {why}")
        else:
            if word:
                self._think = "" if word == effort.DEFAULT else word
            self._say(effort.in_words(self._think, self._thinking()))
            self._say("/think show and /think hide: whether the thinking is written out")

    def _thinking(self) -> Thinking:
        return thinking_of(self._engine) if self._engine is not None else Thinking()

    def _do_stats(self, text: str) -> None:
        assert self._engine is not None
        if self._receipt is not None:
            self._say(f"last answer: {self._receipt.statistics()}")
        if self._engine.experts.shape is not None:
            self._say("\n".join(counters(self._engine.experts.stats())))

    def _do_export(self, text: str) -> None:
        text, thoughts = interchange.asks_for_thoughts(text)
        document = self._conversation.document(thoughts)
        if not document.turns:
            self._say("there is nothing to export yet")
            return
        try:
            self._say(f"written to {interchange.export(document, text)}")
        except OSError as error:
            self._say(f"error: {error.filename} was not written: {error.strerror}")

    def _say(self, text: str) -> None:
        self._write(visible(text) + "\n")


class _Reader:
    """Writes one answer as it comes: that the model thinks, for how long, its answer, the tools it calls."""

    def __init__(self, write: Callable[[str], object], thoughts_shown: bool) -> None:
        self._write, self._thoughts_shown = write, thoughts_shown
        self._growing, self._began = Growing(0), time.perf_counter()
        self._thinking = False
        self._line_is_open = False  # something is written on it
        self._looked_s = -LOOK_SECONDS

    def read(self, delta: Delta) -> Answer | None:
        """Write the new piece; return the whole answer now and then, because each time costs more."""
        now_s = time.perf_counter() - self._began
        self._growing.add(delta, now_s)
        if delta.thought and not self._thinking:
            self._thinking = True
            begin = "thinking:\n" if self._thoughts_shown else "thinking ..."
            self._write(("\n" if self._line_is_open else "") + begin)
            self._line_is_open = False
        if delta.thought and self._thoughts_shown:
            self._write(visible(delta.thought))
        if delta.text or delta.calls:
            self._end_thinking()
        if delta.text:
            self._write(visible(delta.text))
            self._line_is_open = not delta.text.endswith("\n")
        for call in delta.calls:
            self._write(("\n" if self._line_is_open else "") + call_in_words(call))
            self._line_is_open = True
        if now_s - self._looked_s < LOOK_SECONDS:
            return None
        self._looked_s = now_s
        return self._growing.take().answer

    def end(self) -> Answer:
        """The answer ends here, whole or not."""
        self._end_thinking()
        return self._growing.take().answer

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            spent = duration(self._growing.take().answer.thought_s or 0.0)
            self._write(f"\n(thought for {spent})\n" if self._thoughts_shown else f" {spent}\n")
