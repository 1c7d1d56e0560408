"""Conversations on disk and as files."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.answer.record import Answer, ToolCall
from edgemoe.tui import interchange
from edgemoe.tui.archive import Archive
from edgemoe.tui.conversation import Conversation
from edgemoe.tui.interchange import Document, export, to_json, to_markdown
from edgemoe.tui.raw import split
from edgemoe.tui.records import Turn
from edgemoe.tui.store import BROKE_OFF, MIGRATIONS, Store

ROOT = Path(__file__).resolve().parent.parent


def read(text: str) -> Document:
    """Read a file with one conversation."""
    (document,) = interchange.read(text)
    return document


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "chats.db")


class Inline(Archive):
    """Run every job at once, because these tests are about content, not time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.told: list[str] = []
        self.is_failing = False
        self._unsaved = []

    def _hand(self, work: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work())
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


def test_a_failing_disk_is_reported_and_the_chat_continues(store: Store) -> None:
    archive = Inline(store)
    chat = Conversation(archive)
    chat.add("user", "q")
    store._db.execute("pragma query_only=on")
    chat.end(Answer("answer"))
    assert ["not being saved" in text for text in archive.told] == [True] and said(chat)[-1] == ("assistant", "answer")
    chat.add("user", "next")
    assert archive.is_failing and len(archive.told) == 1, "it is said once"
    store._db.execute("pragma query_only=off")
    chat.end(Answer("more"))
    assert not archive.is_failing and "saved again" in archive.told[-1]
    assert [text for _, text in said(resumed(store, chat))] == ["q", "answer", "next", "more"]


def test_search_finds_chinese_inside_a_sentence(store: Store) -> None:
    chat = Conversation(Inline(store))
    chat.add("user", "请解释")
    chat.end(Answer("混合专家模型只激活一部分专家。And **experts** too."))
    assert [found.title for found in store.search("专家")] == ["请解释"]
    assert "专家" in store.search("专家")[0].excerpt and "*" not in store.search("experts")[0].excerpt
    assert store.search("专家 experts") and not store.search("专家 zebra") and not store.search("狮子")


def test_an_export_names_the_speakers_and_can_be_imported(store: Store) -> None:
    turns = (Turn("user", "### You <!-- user -->"), Turn("assistant", "Hi.", note="25 tok/s · 12 tokens"))
    document = Document("t", "tiny", "", turns)
    text = to_markdown(document)
    rendered = [line for line in text.splitlines() if line.startswith("### ")]
    assert rendered[0].startswith("### You") and "### tiny" in rendered[1] and "25 tok/s" in text
    assert read(text) == document and read(to_json(document)) == document
    old = text.replace("\n### You <", "\n<").replace("### tiny <", "<")
    assert [turn.role for turn in read(old).turns] == ["user", "assistant"], "as older versions wrote it"


def test_an_export_that_fails_leaves_nothing_and_a_second_one_takes_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = Document("t", "", "", (Turn("user", "hi"),))
    assert [str(export(document)) for _ in range(2)] == ["t.md", "t-2.md"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="large") as caught:
            export(document, "a.md")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.filename == "a.md" and not (tmp_path / "a.md").exists()


def test_a_killed_program_loses_at_most_the_last_second(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from edgemoe.tui.archive import Archive; from edgemoe.tui.conversation import Conversation\n"
        "from edgemoe.answer.record import Answer\n"
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
    assert saved.turns[1].note == BROKE_OFF


def test_an_answer_that_was_killed_at_once_is_marked(store: Store) -> None:
    chat = Conversation(Inline(store))
    chat.add("user", "q")
    chat.grow(Answer("one"))
    assert resumed(store, chat).turns[1].note == BROKE_OFF
    chat.end(Answer("one two"), "2 tok/s")
    assert resumed(store, chat).turns[1].note == "2 tok/s"


def test_an_answer_comes_back_with_its_thought_and_calls(store: Store) -> None:
    chat = Conversation(Inline(store), "tiny")
    chat.add("user", "rain?")
    answer = Answer("Yes.", "Let me look.", 2.5, (ToolCall("look", '{"at": "the \u2028 sky"}'), ToolCall("now")))
    chat.end(answer, "3 tok/s")
    assert resumed(store, chat).turns[1].answer == answer
    assert not store.search("look") and store.search("yes")


def test_an_answer_that_is_killed_in_mid_thought_keeps_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    chat = Conversation(Inline(store), "tiny")
    chat.add("user", "go")
    chat.grow(Answer(thought="Let"))
    turn = chat.turns[-1].key.id
    assert turn is not None
    store.draft(turn, Answer(thought="Let me see", thought_s=4.0))
    again = Store(tmp_path / "chats.db")  # as the next start does
    saved = again.read(again.recent()[0].id)
    assert saved is not None and saved.turns[-1].answer == Answer(thought="Let me see", thought_s=4.0)
    assert saved.turns[-1].note == "broke off"


HARMONY = (
    "<|channel|>analysis<|message|>Secret weather.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
)
RAW = [
    ("user", "<think>why</think>do I write this?", ("<think>why</think>do I write this?", "", ())),
    ("assistant", "<think>\nSecret steps.\n</think>\n\nForty two.", ("Forty two.", "Secret steps.", ())),
    ("user", "And?", ("And?", "", ())),
    ("assistant", "Secret too.\n</think>\n\nYes.", ("Yes.", "Secret too.", ())),
    ("user", "Rain?", ("Rain?", "", ())),
    ("assistant", HARMONY, ("", "Secret weather.", (ToolCall("get_weather", '{"city":"Oslo"}'),))),
    ("user", "Plain?", ("Plain?", "", ())),
    ("assistant", "  Plain, with <think> inside.\n", ("  Plain, with <think> inside.\n", "", ())),
    ("user", "Empty?", ("Empty?", "", ())),
    ("assistant", "<think>\n\n</think>\n\nNothing thought.", ("Nothing thought.", "", ())),
    ("user", "Killed?", ("Killed?", "", ())),
    ("assistant", "<think>", ("", "Secret half", ())),
]


def version_1(path: Path) -> None:
    """Make a database of the first version that was killed during its last answer."""
    db = sqlite3.connect(path)
    db.executescript(f"{MIGRATIONS[0]}; pragma user_version=1;")
    db.execute("insert into chats values (1, 'old', 'tiny', '', ?, 0, 0)", (len(RAW),))
    for number, (role, text, _) in enumerate(RAW, 1):
        row = (number, number - 1 or None, role, text, f"note {number}")
        db.execute("insert into turns (id, chat, parent, role, text, note) values (?, 1, ?, ?, ?, ?)", row)
    db.execute("insert into drafts values (?, '<think>Secret half')", (len(RAW),))
    db.commit()
    db.close()


def test_a_database_of_version_1_is_split_once(tmp_path: Path) -> None:
    version_1(tmp_path / "chats.db")
    for _ in range(2):
        store = Store(tmp_path / "chats.db")
        assert not store.notes and store._db.execute("pragma user_version").fetchone()[0] == len(MIGRATIONS)
        saved = store.read(1)
        assert saved is not None
        assert [(turn.text, turn.thought, turn.calls) for turn in saved.turns] == [after for _, _, after in RAW]
        assert [turn.note for turn in saved.turns] == [*(f"note {n}" for n in range(1, len(RAW))), "broke off"]
        assert not store.search("secret") and store.search("forty") and store.search("why")
        store._db.execute("insert into words (words) values ('integrity-check')")
        store.close()


def test_a_migration_that_fails_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(tmp_path / "chats.db")

    def killed(text: str) -> Answer:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgemoe.tui.raw.split", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path / "chats.db")
    store = Store(tmp_path / "chats.db")
    assert not store.notes and store.search("forty") and not store.search("secret")


def test_two_programs_that_open_an_old_database_at_once_migrate_it_once(tmp_path: Path) -> None:
    version_1(tmp_path / "chats.db")
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(Store, [tmp_path / "chats.db"] * 4))
    assert all(not store.notes and store.search("forty") for store in stores)


def test_what_cannot_be_split_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> Any:
        raise ValueError

    monkeypatch.setattr("edgemoe.tui.raw.read", broken)
    assert split("<think>a</think>b") == Answer("<think>a</think>b")


TURNS = st.lists(st.text(st.characters(codec="utf-8")) | st.sampled_from(["<!-- user -->", "\\<!-- user -->\n---"]))


@given(TURNS, st.text(), st.text(st.characters(codec="utf-8")))
def test_files_give_back_every_conversation(texts: list[str], title: str, system: str) -> None:
    turns = tuple(Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(texts))  # type: ignore[arg-type]
    document = Document(title, "tiny", system, turns)
    assert read(to_markdown(document)) == document
    assert read(to_json(document)) == document


TEXT = st.text(st.characters(codec="utf-8")) | st.sampled_from(
    ["<!-- thinking 1.5 s -->\n<!-- calls -->", "\\<!-- calls -->"]
)
CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT), max_size=2).map(tuple)


@given(TEXT, TEXT.filter(bool), st.none() | st.floats(0, 1e9), CALLS)
def test_files_give_back_thoughts_and_calls(text: str, thought: str, thought_s: float | None, calls: Any) -> None:
    answered = Turn("assistant", text, thought=thought, thought_s=thought_s, calls=calls)
    document = Document("", "tiny", "", (Turn("user", "q"), answered, Turn("user", "more"), Turn("assistant", "a")))
    assert read(to_markdown(document)) == document
    assert read(to_json(document)) == document


def test_raw_answers_in_files_are_split() -> None:
    raw = "<think>why</think>Because."
    document = Document("", "", "", (Turn("user", raw), Turn("assistant", raw)))
    for text in (to_markdown(document), to_json(document)):
        turns = read(text).turns
        assert turns == (Turn("user", raw), Turn("assistant", "Because.", thought="why"))


def test_openai_messages_without_content_are_read() -> None:
    called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [called]}]
    assert read(json.dumps(messages)).turns[1].calls == (ToolCall("look", "{}"),)


@pytest.mark.parametrize(
    "text", ["", "hello", "{}", "[1]", '{"messages": [{"role": "tool", "content": "x"}]}', "{", "---\ntitle: x\n"]
)
def test_files_that_are_no_conversation_say_so(text: str) -> None:
    with pytest.raises(ValueError):
        read(text)
