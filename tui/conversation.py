"""The conversation that is open: its turns, handed to the archive as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from edgemoe.answer.record import Answer
from edgemoe.text.display import one_line

from .archive import Archive
from .interchange import Document
from .records import Key, Role, Turn
from .store import BROKE_OFF, Saved, Store

SAVE_SECONDS = 0.6  # a killed program loses at most this much of an answer
TITLE_WIDTH = 60


class Conversation:
    """Owned by the screen's thread; the keys of its rows by the archive's. Without an archive nothing is kept.

    Attributes:
        model: that it is kept under, the one its first answer came from.
        turns: the shown branch, oldest first.
        key: of the conversation in the database.
    """

    def __init__(self, archive: Archive | None, model: str = "", system: str = "") -> None:
        """A new one; it comes into the database with its first turn."""
        self._archive, self.model = archive, model
        self.key = Key()
        self.title = ""
        self._system = system
        self.turns: list[Turn] = []
        self._saved_at = 0.0
        self._draft: Future[None] | None = None

    @classmethod
    def resumed(cls, archive: Archive, saved: Saved) -> Conversation:
        """One of the database as it was left."""
        self = cls(archive, saved.model, saved.system)
        self.key, self.title, self.turns = Key(saved.id), saved.title, list(saved.turns)
        return self

    @classmethod
    def imported(cls, archive: Archive | None, document: Document) -> Conversation:
        """A new one with the turns of a file."""
        self = cls(archive, document.model, document.system)
        self.title = document.title
        for turn in document.turns:
            self._append(replace(turn, key=Key()))
        return self

    @property
    def system(self) -> str:
        """The system prompt, empty for none."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system = text
        self._keep_known(lambda store, id: store.set_system(id, text))

    def rename(self, title: str) -> None:
        """Give it another title."""
        self.title = title
        self._keep_known(lambda store, id: store.rename(id, title))

    def add(self, role: Role, text: str, title: str = "") -> Turn:
        """Append a turn, save it and give it; ``title`` names a conversation that has none, else ``text`` does."""
        self.title = self.title or one_line(title, TITLE_WIDTH)
        return self._append(Turn(role, text))

    def _append(self, turn: Turn) -> Turn:
        if not self.title:
            self.title = one_line(turn.text, TITLE_WIDTH)
        before = self.turns[-1].key if self.turns else Key()
        self.turns.append(turn)
        chat, title, model, system = self.key, self.title, self.model, self._system

        def keep(store: Store) -> None:
            if chat.id is None:
                chat.id = store.create(title, model, system)
            turn.key.id = store.add(chat.id, before.id, turn)

        self._keep(keep)
        self._saved_at = time.monotonic()
        return turn

    def grow(self, answer: Answer) -> None:
        """Take ``answer`` as all that has come of it so far; it is saved every ``SAVE_SECONDS``."""
        if self.turns[-1].role == "user":
            # Until its end it counts as broken off: a killed program writes nothing more.
            self._append(Turn("assistant", "", note=BROKE_OFF).with_answer(answer))
            return
        turn = self.turns[-1] = self.turns[-1].with_answer(answer)
        # On a disk that is slower than that, the next draft waits for this one.
        waiting = self._draft is not None and not self._draft.done()
        if time.monotonic() - self._saved_at >= SAVE_SECONDS and not waiting:
            self._draft = self._keep(
                lambda store: store.draft(turn.key.id, answer) if turn.key.id is not None else None, passing=True
            )
            self._saved_at = time.monotonic()

    def end(self, answer: Answer, note: str = "") -> None:
        """Take ``answer`` for complete, with its receipt in words; an empty one is not added."""
        if answer:
            self.grow(answer)
            self.turns[-1] = replace(self.turns[-1], note=note)
            self._write()

    def cut(self, count: int) -> list[Turn]:
        """Take the last turns away until ``count`` are left. The database shows them until the next turn is added."""
        gone = self.turns[count:]
        del self.turns[count:]
        return gone

    def keep_branch(self) -> None:
        """Let the database show the turns as they are now; without any it stays as it is."""
        if self.turns:
            head = self.turns[-1].key
            self._keep_known(lambda store, id: store.point(id, head.id))

    def drop_unanswered(self) -> None:
        """Take back a last question that got no answer, so that the roles keep alternating."""
        if self.turns and self.turns[-1].role == "user":
            self.cut(len(self.turns) - 1)

    def messages(self) -> list[dict[str, str]]:
        """OpenAI messages, the system prompt first when there is one; tool calls are left out: nothing answers them."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return system + [_message(turn) for turn in self.turns]

    def document(self, thoughts: bool = False) -> Document:
        """The conversation for an export, with the model's thinking only when ``thoughts`` says so."""
        turns = self.turns if thoughts else [replace(turn, thought="", thought_s=None) for turn in self.turns]
        return Document(self.title, self.model, self._system, tuple(turns))

    def _write(self) -> None:
        turn = self.turns[-1]

        def keep(store: Store) -> None:
            if turn.key.id is not None:
                store.write(turn.key.id, turn.answer, turn.note)

        self._keep(keep)
        self._saved_at = time.monotonic()

    def _keep_known(self, save: Callable[[Store, int], None]) -> None:
        """Run ``save`` if the conversation is in the database."""
        chat = self.key
        self._keep(lambda store: save(store, chat.id) if chat.id is not None else None)

    def _keep(self, save: Callable[[Store], None], passing: bool = False) -> Future[None] | None:
        return self._archive.save(save, passing) if self._archive is not None else None


def _message(turn: Turn) -> dict[str, str]:
    thought = {"reasoning_content": turn.thought} if turn.thought else {}
    return {"role": turn.role, "content": turn.text, **thought}
