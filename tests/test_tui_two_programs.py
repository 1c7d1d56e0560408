"""Several chats on one database of conversations: nobody waits for long, nothing is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_tui_commands import answers, ask, kept

from edgemoe.answer.record import Answer
from edgemoe.tui import store as store_module
from edgemoe.tui.archive import Archive
from edgemoe.tui.conversation import Conversation
from edgemoe.tui.store import Store

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = 50
CHAT = """
import sys
from pathlib import Path
from edgemoe.answer.record import Answer
from edgemoe.tui.archive import Archive
from edgemoe.tui.conversation import Conversation
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
archive = Archive(path, print)
chat = Conversation(archive, "model")
for number in range(count):
    chat.add("user", f"{name} asks {number}")
    chat.end(Answer(text=f"{name} answers {number}"))
archive.close()
"""


def sound(path: Path) -> bool:
    with sqlite3.connect(path) as db:
        return bool(db.execute("pragma integrity_check").fetchone() == ("ok",))


def texts(path: Path) -> list[list[str]]:
    store = Store(path)
    try:
        saved = [store.read(summary.id) for summary in store.recent()]
    finally:
        store.close()
    return [[turn.text for turn in chat.turns] for chat in saved if chat is not None]


def expected(name: str, count: int) -> list[str]:
    return [f"{name} {verb} {number}" for number in range(count) for verb in ("asks", "answers")]


def test_four_chats_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    names = ["ada", "bob", "cyd", "dee"]
    command = [sys.executable, "-c", CHAT, str(path)]
    chats = [
        subprocess.Popen([*command, name, str(MESSAGES)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for name in names
    ]
    said = [chat.communicate(timeout=300)[0] for chat in chats]
    assert [chat.returncode for chat in chats] == [0] * 4
    assert not any("not" in text and "again" not in text.splitlines()[-1] for text in said), said
    assert sorted(texts(path)) == [expected(name, MESSAGES) for name in names] and sound(path)


def test_a_database_that_another_program_locks_is_said_and_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    path, told = tmp_path / "chats.db", []
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("pragma locking_mode=exclusive")
    other.execute("begin exclusive")
    archive = Archive(path, told.append)
    chat = Conversation(archive, "model")
    for number in range(2):
        chat.add("user", f"eve asks {number}")
        chat.end(Answer(text=f"eve answers {number}"))
    archive.save(lambda store: None).result()
    assert archive.is_failing and told == ["Conversations are not kept: database is locked."]
    other.rollback()
    other.close()
    chat.add("user", "eve asks 2")
    chat.end(Answer(text="eve answers 2"))
    archive.close()
    assert told[1:] == ["Everything is saved again."]
    assert texts(path) == [expected("eve", 3)] and sound(path)


def test_a_file_system_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(sqlite3.Connection):
        """A file system that refuses SQLite's write-ahead log."""

        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("journal_mode=wal", "journal_mode=delete"), *rest)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Plain, **k))
    path, told = tmp_path / "chats.db", []
    archive = Archive(path, told.append)
    chat = Conversation(archive, "model")
    for number in range(5):
        chat.add("user", f"fay asks {number}")
        chat.end(Answer(text=f"fay answers {number}"))
    archive.close()
    assert not told and texts(path) == [expected("fay", 5)]
    assert not path.with_name("chats.db-wal").exists()


async def test_a_chat_answers_while_another_program_locks_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 600.0)
    path = tmp_path / "chats.db"
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("pragma locking_mode=exclusive")
    other.execute("begin exclusive")
    async with kept(tmp_path, answers=["fine"]) as driver:
        await ask(driver, "go")
        assert answers(driver) == ["fine"]
        other.rollback()
        other.close()
    assert texts(path) == [["go", "fine"]]
