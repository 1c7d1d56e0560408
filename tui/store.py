"""Conversations on disk: SQLite with migrations and full-text search. A damaged file is set aside, never lost.

A conversation is a tree of turns, so that an edited question or a second answer stands beside the first; ``head``
names the last turn of the branch that is shown. One thread owns a ``Store``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemoe.answer import calls
from edgemoe.answer.record import Answer

from . import raw
from .records import Key, Role, Turn

# Each entry brings a database of its index to the next version; never change one that was released.
MIGRATIONS = (
    """
    create table chats (id integer primary key, title text not null, model text not null, system text not null,
                        head integer, created real not null, changed real not null);
    create index chats_changed on chats (changed desc);
    create table turns (id integer primary key, chat integer not null references chats on delete cascade,
                        parent integer, role text not null, text text not null, note text not null default '');
    create index turns_chat on turns (chat, parent);
    create table drafts (turn integer primary key references turns on delete cascade, text text not null);
    create virtual table words using fts5 (text, content='turns', content_rowid='id', tokenize='unicode61');
    create trigger turns_added after insert on turns begin
        insert into words (rowid, text) values (new.id, new.text);
    end;
    create trigger turns_changed after update of text on turns begin
        insert into words (words, rowid, text) values ('delete', old.id, old.text);
        insert into words (rowid, text) values (new.id, new.text);
    end;
    create trigger turns_deleted after delete on turns begin
        insert into words (words, rowid, text) values ('delete', old.id, old.text);
    end;
    """,
    # Version 1 kept the raw text of a model; :func:`_split_raw_answers` takes it apart.
    """
    alter table turns add column thought text not null default '';
    alter table turns add column thought_s real;
    alter table turns add column calls text not null default '';
    alter table drafts add column thought text not null default '';
    alter table drafts add column thought_s real;
    alter table drafts add column calls text not null default '';
    """,
    "create table prompts (id integer primary key, text text not null);",
)
RAW_UP_TO = 1  # the last version with raw text as answers
SHORT_WORD = 2  # letters
PROMPTS_KEPT = 500
BROKE_OFF = "broke off"  # the receipt of an answer that has no other
BUSY_SECONDS = 1.0  # another chat on the same database writes for milliseconds only
_UNSPACED = "\u2e80"  # the first sign of the scripts of East Asia
_MARKS = re.compile(r"[*`#>|]+")
_ROWS = 500  # that are split at a time
_BESIDE = ("-wal", "-shm")  # SQLite's own files next to a database


@dataclass(frozen=True)
class Summary:
    """A conversation in a list; ``changed`` is seconds since the epoch, ``excerpt`` the words around a search's hit."""

    id: int
    title: str
    model: str
    changed: float
    excerpt: str = ""


@dataclass(frozen=True)
class Saved:
    """A conversation as it was left, ``turns`` along its shown branch."""

    id: int
    title: str
    model: str
    system: str
    turns: tuple[Turn, ...]


class NewerVersion(Exception):
    """The database was written by a later program."""


class Store:
    """The database of all conversations. Every change is durable against a killed program when the call returns.

    Attributes:
        notes: sentences for the user, such as where a damaged database was put.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``, made when missing.

        Raises:
            OSError, sqlite3.Error: it can neither be opened nor replaced.
        """
        self.notes: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _open(path)
        except (sqlite3.DatabaseError, NewerVersion) as error:
            if isinstance(error, sqlite3.OperationalError):  # busy, full, read-only: nothing is wrong with the file
                raise
            why = str(error) if isinstance(error, NewerVersion) else f"it is damaged ({error})"
            self.notes.append(f"The database of conversations was not used: {why}; it was kept as {_set_aside(path)}.")
            self._db = _open(path)

    def close(self) -> None:
        """Finish."""
        self._db.close()

    def create(self, title: str, model: str, system: str) -> int:
        """A new conversation without turns; returns its id."""
        now = time.time()
        with self._db as db:
            row = (title, model, system, now, now)
            made = db.execute("insert into chats (title, model, system, created, changed) values (?,?,?,?,?)", row)
        assert made.lastrowid is not None
        return made.lastrowid

    def add(self, chat: int, parent: int | None, turn: Turn) -> int:
        """Append ``turn`` below ``parent`` and make it the head; returns its id."""
        with self._db as db:
            row = (chat, parent, turn.role, turn.note, *_columns(turn.answer))
            into = "insert into turns (chat, parent, role, note, text, thought, thought_s, calls)"
            made = db.execute(f"{into} values (?,?,?,?,?,?,?,?)", row)
            db.execute("update chats set head=?, changed=? where id=?", (made.lastrowid, time.time(), chat))
        assert made.lastrowid is not None
        return made.lastrowid

    def draft(self, turn: int, answer: Answer) -> None:
        """Keep an answer as it streams: not indexed yet, which would cost more with every piece."""
        with self._db as db:
            db.execute(
                "insert or replace into drafts (turn, text, thought, thought_s, calls) values (?,?,?,?,?)",
                (turn, *_columns(answer)),
            )

    def write(self, turn: int, answer: Answer, note: str = "") -> None:
        """Replace an answer that is complete; ``note`` is its receipt."""
        with self._db as db:
            db.execute("delete from drafts where turn=?", (turn,))
            _update(db, turn, answer, note)

    def point(self, chat: int, head: int | None) -> None:
        """Show the branch that ends in ``head``."""
        with self._db as db:
            db.execute("update chats set head=?, changed=? where id=?", (head, time.time(), chat))

    def rename(self, chat: int, title: str) -> None:
        """Give a conversation another title."""
        with self._db as db:
            db.execute("update chats set title=? where id=?", (title, chat))

    def set_system(self, chat: int, system: str) -> None:
        """Keep another system prompt with the conversation."""
        with self._db as db:
            db.execute("update chats set system=? where id=?", (system, chat))

    def delete(self, chat: int) -> None:
        """Forget a conversation with all its branches."""
        with self._db as db:
            db.execute("delete from chats where id=?", (chat,))

    def recent(self, limit: int = 100) -> list[Summary]:
        """The conversations used last, newest first."""
        rows = self._db.execute(
            "select id, title, model, changed from chats where exists (select 1 from turns where chat=chats.id)"
            " order by changed desc limit ?",
            (limit,),
        )
        return [Summary(*row) for row in rows]

    def search(self, text: str, limit: int = 100) -> list[Summary]:
        """Conversations with all words of ``text`` in one turn or in the title.

        Each is a beginning of a word; in scripts that write no spaces it may be anywhere.
        """
        words = text.split()
        if not words:
            return self.recent(limit)
        hits, arguments = _hits(words)
        titles = " and ".join("title like ? escape '!'" for _ in words)
        rows = self._db.execute(
            f"""
            with hits as ({hits} limit 1000),
            best as (select turns.chat as chat, turns.id as turn, min(score) as score
                     from hits join turns on turns.id = hits.rowid group by turns.chat)
            select chats.id, title, model, changed, coalesce(substr(turns.text, 1, 4000), '') from chats
            left join best on best.chat = chats.id left join turns on turns.id = best.turn
            where best.chat is not null or {titles}
            order by best.score is null, best.score, changed desc limit ?
            """,
            (*arguments, *map(_like, words), limit),
        )
        return [Summary(id, title, model, at, _excerpt(found, words)) for id, title, model, at, found in rows]

    def read(self, chat: int) -> Saved | None:
        """A conversation along its shown branch; None when there is no such."""
        # Without a head, as older versions left a conversation that was edited from its first question: the newest.
        newest = "(select max(id) from turns where chat=chats.id)"
        row = self._db.execute(
            f"select title, model, system, coalesce(head, {newest}) from chats where id=?", (chat,)
        ).fetchone()
        if row is None:
            return None
        turns = self._db.execute(
            """
            with recursive line (id, parent, depth) as (
                select id, parent, 0 from turns where id=?
                union all
                select turns.id, turns.parent, depth + 1 from turns join line on turns.id = line.parent)
            select role, note, turns.id, text, thought, thought_s, calls from line join turns on turns.id = line.id
            order by depth desc
            """,
            (row[3],),
        )
        return Saved(chat, row[0], row[1], row[2], tuple(_turn(*turn) for turn in turns))

    def sent(self, text: str) -> None:
        """Keep a prompt as it was sent, and forget the oldest beyond ``PROMPTS_KEPT``."""
        with self._db as db:
            made = db.execute("insert into prompts (text) values (?)", (text,))
            db.execute("delete from prompts where id<=?", ((made.lastrowid or 0) - PROMPTS_KEPT,))

    def prompts(self) -> list[str]:
        """The prompts that were sent, oldest first."""
        return [row[0] for row in self._db.execute("select text from prompts order by id")]

    def siblings(self, turn: int) -> list[int]:
        """Turns that stand where ``turn`` stands, itself included, oldest first."""
        rows = self._db.execute(
            "select b.id from turns a join turns b on b.chat = a.chat and b.parent is a.parent where a.id=? order by 1",
            (turn,),
        )
        return [row[0] for row in rows]

    def leaf(self, turn: int) -> int:
        """The end of the newest branch through ``turn``."""
        while row := self._db.execute("select max(id) from turns where parent=?", (turn,)).fetchone():
            if row[0] is None:
                break
            turn = row[0]
        return turn


def _open(path: Path) -> sqlite3.Connection:
    # Opened in autocommit, so that migrations decide themselves where a transaction begins.
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        version = db.execute("pragma user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise NewerVersion(f"a newer version of the program wrote it (format {version})")
        _check(db, version)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=normal")
        db.execute("pragma foreign_keys=on")
        if version < len(MIGRATIONS):
            _migrate(db)
        _recover(db)
    except sqlite3.OperationalError as error:
        db.close()
        if "no such" in str(error):  # a table or column is missing
            raise sqlite3.DatabaseError(str(error)) from error
        raise
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection) -> None:
    """Bring the database to the newest version, in one transaction: a killed program leaves the old version."""
    with db:
        db.execute("begin immediate")
        version = db.execute("pragma user_version").fetchone()[0]  # another program may have been faster
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                db.execute(statement)
        if 0 < version <= RAW_UP_TO:
            _recover_drafts(db)
            _split_raw_answers(db)
        db.execute(f"pragma user_version={len(MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";")[:-1]:
        statement += f"{part};"
        if sqlite3.complete_statement(statement):  # not inside a trigger
            yield statement
            statement = ""


def _split_raw_answers(db: sqlite3.Connection) -> None:
    """Take thinking and tool calls out of the text of all answers, some rows at a time."""
    last = -1
    while rows := db.execute(
        "select id, text, note from turns where role='assistant' and id>? order by id limit ?", (last, _ROWS)
    ).fetchall():
        for turn, text, note in rows:
            if (answer := raw.split(text)) != Answer(text):
                _update(db, turn, answer, note)
        last = rows[-1][0]


def _recover(db: sqlite3.Connection) -> None:
    """Complete the answers that broke off with the program from their drafts."""
    with db:
        _recover_drafts(db)


def _recover_drafts(db: sqlite3.Connection) -> None:
    drafts = db.execute("select turn, text, thought, thought_s, calls from drafts").fetchall()
    for turn, *columns in drafts:
        _update(db, turn, _answer(*columns), BROKE_OFF)
        db.execute("delete from drafts where turn=?", (turn,))


def _columns(answer: Answer) -> tuple[str, str, float | None, str]:
    """An answer as the columns text, thought, thought_s, calls."""
    return answer.text, answer.thought, answer.thought_s, calls.to_json(answer.calls)


def _answer(text: str, thought: str, thought_s: float | None, called: str) -> Answer:
    """Read the columns that :func:`_columns` gives."""
    try:
        return Answer(text, thought, thought_s, calls.of_json(called))
    except ValueError:  # somebody has edited the row
        return Answer(text, thought, thought_s)


def _turn(role: Role, note: str, id: int, *columns: Any) -> Turn:
    return Turn(role, "", Key(id), note).with_answer(_answer(*columns))


def _update(db: sqlite3.Connection, turn: int, answer: Answer, note: str) -> None:
    columns = (*_columns(answer), note, turn)
    db.execute("update turns set text=?, thought=?, thought_s=?, calls=?, note=? where id=?", columns)


def _check(db: sqlite3.Connection, version: int) -> None:
    """Before anything is written: whether this is a database of ours."""
    if version == 0:
        if db.execute("select count(*) from sqlite_master").fetchone()[0]:
            raise sqlite3.DatabaseError("it belongs to another program")
        return
    db.execute("select id, title, model, system, head, created, changed from chats limit 1").fetchone()
    db.execute("select id, chat, parent, role, text, note from turns limit 1").fetchone()
    if version > RAW_UP_TO:
        db.execute("select thought, thought_s, calls from turns limit 1").fetchone()


def _set_aside(path: Path) -> str:
    number = 1
    while (bad := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    os.rename(path, bad)
    for end in _BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{end}", f"{bad}{end}")
    return bad.name


def _hits(words: list[str]) -> tuple[str, list[str]]:
    """A query for turns with all ``words``, best first, and its arguments.

    The index has words between spaces: it does not find a word inside a Chinese sentence, so there all turns are read.
    """
    inside = [word for word in words if any(mark >= _UNSPACED for mark in word)]
    indexed = [word.replace('"', '""') for word in words if word not in inside]
    likes = " and ".join("text like ? escape '!'" for _ in inside)
    arguments = list(map(_like, inside))
    if not indexed:
        return f"select id as rowid, -id as score from turns where {likes} order by id desc", arguments
    # A letter or two are in nearly every turn: the newest come first there, which costs a fraction of ranking all.
    score = "rank" if max(map(len, indexed)) > SHORT_WORD else "-rowid"
    also = f"and rowid in (select id from turns where {likes})" if inside else ""
    match = " ".join(f'"{word}"*' for word in indexed)
    query = f"select rowid, {score} as score from words where words match ? {also} order by {score}"
    return query, [match, *arguments]


def _like(word: str) -> str:
    return f"%{word.replace('!', '!!').replace('%', '!%').replace('_', '!_')}%"


def _excerpt(text: str, words: list[str], width: int = 80) -> str:
    """The surroundings of the first of ``words`` in ``text``, on one line and without marks of Markdown."""
    line = " ".join(_MARKS.sub("", text).split())
    low = line.lower()
    places = [place for place in _places(low, words) if place >= 0]
    start = max(0, min(places, default=0) - width // 3)
    return ("…" if start else "") + line[start : start + width]


def _places(text: str, words: list[str]) -> Iterator[int]:
    return (text.find(word.lower()) for word in words)
