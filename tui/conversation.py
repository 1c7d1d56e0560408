"""The conversation that is open: its turns, saved as they come. A failing disk is said once, and the chat goes on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace

from .interchange import Document
from .records import Role, Turn
from .store import Store
from .text import one_line

SAVE_SECONDS = 0.5  # a killed program loses at most this much of an answer
TITLE_WIDTH = 60


class Conversation:
    """Owned by the screen's thread. Without a ``store`` everything works and nothing is kept.

    Attributes:
        turns: the shown branch, oldest first.
        problem: why saving failed, for the user; empty when all is well.
    """

    def __init__(self, store: Store | None, model: str = "", system: str = "") -> None:
        """A new one; it comes into the database with its first turn."""
        self._store, self._model = store, model
        self.id: int | None = None
        self.title = ""
        self._system = system
        self.turns: list[Turn] = []
        self.problem = ""
        self._saved_at = 0.0

    @classmethod
    def resume(cls, store: Store, id: int) -> Conversation | None:
        """One of the database as it was left; None when it is gone."""
        saved = store.read(id)
        if saved is None:
            return None
        self = cls(store, saved.model, saved.system)
        self.id, self.title, self.turns = saved.id, saved.title, list(saved.turns)
        return self

    @classmethod
    def imported(cls, store: Store | None, document: Document) -> Conversation:
        """A new one with the turns of a file."""
        self = cls(store, document.model, document.system)
        self.title = document.title
        for turn in document.turns:
            self.add(turn.role, turn.text)
        return self

    @property
    def system(self) -> str:
        """The system prompt, empty for none."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system = text
        if (id := self.id) is not None:
            self._keep(lambda store: store.set_system(id, text))

    def rename(self, title: str) -> None:
        """Give it another title."""
        self.title = title
        if (id := self.id) is not None:
            self._keep(lambda store: store.rename(id, title))

    def add(self, role: Role, text: str) -> None:
        """Append a turn and save it."""
        if not self.title:
            self.title = one_line(text, TITLE_WIDTH)
        self.turns.append(Turn(role, text))

        def keep(store: Store) -> None:
            if self.id is None:
                self.id = store.create(self.title, self._model, self._system)
            parent = self.turns[-2].id if len(self.turns) > 1 else None
            self.turns[-1] = replace(self.turns[-1], id=store.add(self.id, parent, role, text))

        self._keep(keep)
        self._saved_at = time.monotonic()

    def grow(self, text: str) -> None:
        """The answer under way reads ``text`` by now; it is saved every ``SAVE_SECONDS``."""
        if self.turns[-1].role == "user":
            self.add("assistant", text)
            return
        self.turns[-1] = replace(self.turns[-1], text=text)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            if (id := self.turns[-1].id) is not None:
                self._keep(lambda store: store.draft(id, text))
            self._saved_at = time.monotonic()

    def end(self, text: str, note: str = "") -> None:
        """The answer is complete, with its receipt in words; nothing is added when it is empty."""
        if text:
            self.grow(text)
            self.turns[-1] = replace(self.turns[-1], text=text, note=note)
            self._write()

    def cut(self, count: int) -> list[Turn]:
        """Take the last turns away until ``count`` are left; they stay in the database as another branch."""
        gone = self.turns[count:]
        del self.turns[count:]
        head = self.turns[-1].id if self.turns else None
        if (id := self.id) is not None:
            self._keep(lambda store: store.point(id, head))
        return gone

    def drop_unanswered(self) -> None:
        """Take back a last question that got no answer, so that the roles keep alternating."""
        if self.turns and self.turns[-1].role == "user":
            self.cut(len(self.turns) - 1)

    def messages(self) -> list[dict[str, str]]:
        """OpenAI messages, the system prompt first when there is one."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return system + [{"role": turn.role, "content": turn.text} for turn in self.turns]

    def document(self) -> Document:
        """For an export."""
        return Document(self.title, self._model, self._system, tuple(self.turns))

    def _write(self) -> None:
        turn = self.turns[-1]
        if (id := turn.id) is not None:
            self._keep(lambda store: store.write(id, turn.text, turn.note))
        self._saved_at = time.monotonic()

    def _keep(self, save: Callable[[Store], None]) -> None:
        if self._store is None:
            return
        try:
            save(self._store)
        except sqlite3.Error as error:
            self.problem = f"The conversation is not being saved: {error}."
            self._store = None
