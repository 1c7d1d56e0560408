"""Conversations on disk and as files."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.archive import Archive
from tui.conversation import Conversation
from tui.interchange import Document, read, to_json, to_markdown
from tui.records import Answer, Turn
from tui.store import MIGRATIONS, Store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "chats.db")


class Inline(Archive):
    """Runs every job at once: what is tested here is what is kept, not when."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.told: list[str] = []

    def do(self, job: Callable[[Store], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(job(self.store))
        return done

    def tell(self, text: str) -> None:
        self.told.append(text)


def resumed(store: Store, chat: Conversation) -> Conversation:
    assert chat.key.id is not None
    saved = store.read(chat.key.id)
    assert saved is not None
    return Conversation.resumed(Inline(store), saved)


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in conversation.turns]


def test_a_conversation_comes_back_as_it_was_left(store: Store) -> None:
    chat = Conversation(Inline(store), "tiny", "Be kind.")
    chat.add("user", "hello there")
    for text in ("Hi", "Hi you", "Hi you!"):
        chat.grow(Answer(text))
    chat.end(Answer("Hi you!"), "3 tok/s")
    again = resumed(store, chat)
    assert said(again) == [("user", "hello there"), ("assistant", "Hi you!")]
    assert (again.title, again.system, again.turns[1].note) == ("hello there", "Be kind.", "3 tok/s")
    again.rename("Greetings")
    again.system = "Be rude."
    assert [summary.title for summary in store.recent()] == ["Greetings"]
    assert resumed(store, chat).system == "Be rude."


def test_a_second_answer_keeps_the_first_as_a_branch(store: Store) -> None:
    chat = Conversation(Inline(store))
    chat.add("user", "q")
    chat.end(Answer("one"))
    first = chat.turns[-1].key.id
    assert first is not None
    chat.cut(1)
    chat.end(Answer("two"))
    second = chat.turns[-1].key.id
    assert second is not None and store.siblings(second) == [first, second]
    chat.add("user", "more")
    assert chat.key.id is not None
    store.point(chat.key.id, store.leaf(first))
    assert said(resumed(store, chat)) == [("user", "q"), ("assistant", "one")]
    assert store.leaf(second) == chat.turns[-1].key.id


def test_search_finds_beginnings_of_words_in_turns_and_titles(store: Store) -> None:
    for question, answer in (("capital of France?", "Paris, on the Seine."), ("Bake bread", "Flour 100% and water.")):
        chat = Conversation(Inline(store))
        chat.add("user", question)
        chat.end(Answer(answer))
    assert [found.title for found in store.search("sein")] == ["capital of France?"]
    assert "Seine" in store.search("sein")[0].excerpt
    assert [found.title for found in store.search("flour wat")] == ["Bake bread"]
    assert store.search("100%") and not store.search("zebra")
    for hostile in ('"', "a OR", "NEAR(", "*", "-x", "%", "'; drop table chats"):
        store.search(hostile)
    assert len(store.search("  ")) == 2
    store.delete(store.recent()[0].id)
    assert not store.search("flour")


@pytest.mark.parametrize("damage", ["garbage", "newer", "foreign", "truncated"])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "chats.db"
    if damage == "garbage":
        path.write_bytes(b"not a database " * 1000)
    elif damage == "foreign":
        sqlite3.connect(path).executescript("create table chats (x); pragma user_version=1;")
    else:
        old = Store(path)
        Conversation(Inline(old)).add("user", "precious")
        if damage == "newer":
            old._db.execute(f"pragma user_version={len(MIGRATIONS) + 1}")
        old.close()
        if damage == "truncated":
            whole = path.read_bytes()
            path.write_bytes(whole[:100] + b"\xff" * 3000)
    before = path.read_bytes()
    store = Store(path)
    assert (tmp_path / "chats.db.bad-1").read_bytes() == before
    assert "chats.db.bad-1" in store.notes[0] and not store.recent()
    Conversation(Inline(store)).add("user", "new")
    assert not Store(path).notes and len(store.recent()) == 1


def test_a_disk_that_fails_is_said_and_the_chat_goes_on(store: Store) -> None:
    archive = Inline(store)
    chat = Conversation(archive)
    chat.add("user", "q")
    store._db.execute("pragma query_only=on")
    chat.end(Answer("answer"))
    assert ["not being saved" in text for text in archive.told] == [True] and said(chat)[-1] == ("assistant", "answer")
    chat.add("user", "next")


def test_a_killed_program_loses_at_most_the_last_second(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from tui.archive import Archive; from tui.conversation import Conversation; from tui.records import Answer\n"
        "chat = Conversation(Archive(Path(sys.argv[1]), print)); chat.add('user', 'go'); text = ''\n"
        "while True:\n"
        "    text += f'{time.time():.3f} '; chat.grow(Answer(text)); print(len(text), flush=True); time.sleep(0.01)\n"
    )
    path = tmp_path / "chats.db"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < 1400:
            pass
        killed = time.time()
        child.send_signal(signal.SIGKILL)
    store = Store(path)
    saved = store.read(store.recent()[0].id)
    assert saved is not None and not store.notes
    assert killed - float(saved.turns[1].text.split()[-1]) < 1.0


TURNS = st.lists(st.text(st.characters(codec="utf-8")) | st.sampled_from(["<!-- user -->", "\\<!-- user -->\n---"]))


@given(TURNS, st.text(), st.text(st.characters(codec="utf-8")))
def test_files_give_back_every_conversation(texts: list[str], title: str, system: str) -> None:
    turns = tuple(Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(texts))  # type: ignore[arg-type]
    document = Document(title, "tiny", system, turns)
    assert read(to_markdown(document)) == document
    assert read(to_json(document)) == document


@pytest.mark.parametrize(
    "text", ["", "hello", "{}", "[1]", '{"messages": [{"role": "tool", "content": "x"}]}', "{", "---\ntitle: x\n"]
)
def test_files_that_are_no_conversation_say_so(text: str) -> None:
    with pytest.raises(ValueError):
        read(text)
