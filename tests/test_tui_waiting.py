"""Messages that wait, the editor outside, the end of an answer, totals, and chats of other programs."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import pytest
from fake_engine import FakeLlama, Gate
from test_tui import SECONDS, Driver, chat, shown
from test_tui_commands import ask, kept

from edgemoe.errors import ModelNotFound
from edgemoe.tui import foreign_chats, interchange
from edgemoe.tui.app import ChatApp
from edgemoe.tui.records import ChatSettings, Turn
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.widgets.queue_line import QueueLine


async def test_a_message_waits_for_the_answer_and_is_then_sent() -> None:
    gate = Gate()
    async with chat(answers=["One.", "Two."], gate=gate) as driver:
        await driver.send("first?")
        await driver.until(lambda: driver.status.state == "reading")
        await driver.send("second?")
        await driver.until(lambda: "next  second?" in shown(driver))
        assert driver.prompt.text == ""
        gate.allow(9)
        await driver.until(lambda: len(driver.screen.conversation.turns) == 4, "both answers")
        await driver.ready()
        assert [turn.text for turn in driver.screen.conversation.turns] == ["first?", "One.", "second?", "Two."]
        assert not driver.screen.query_one(QueueLine).display


async def test_a_message_waits_for_the_model_to_load() -> None:
    hold = threading.Event()

    def slow() -> FakeLlama:
        assert hold.wait(SECONDS)
        return FakeLlama(answers=["One."])

    app = ChatApp(InThisProcess(slow), ChatSettings(title="tiny"))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and driver.status.state == "loading")
        await driver.send("early")
        await driver.until(lambda: "next  early" in shown(driver))
        hold.set()
        await driver.until(lambda: [turn.text for turn in driver.screen.conversation.turns] == ["early", "One."])
        await driver.ready()


async def test_a_message_that_waits_for_a_model_that_does_not_load_comes_back() -> None:
    hold = threading.Event()

    def missing() -> FakeLlama:
        assert hold.wait(SECONDS)
        raise ModelNotFound("there is no file", "")

    app = ChatApp(InThisProcess(missing), ChatSettings(title="tiny"))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and driver.status.state == "loading")
        await driver.send("early")
        hold.set()
        await driver.until(lambda: driver.status.state == "failed" and driver.prompt.text == "early")


async def test_backspace_takes_a_waiting_message_back_and_a_stop_all() -> None:
    gate = Gate()
    async with chat(answers=["One word after another."], gate=gate) as driver:
        await driver.send("first?")
        await driver.until(lambda: driver.status.state == "reading")
        for text in ("second?", "third?"):
            await driver.send(text)
        queue = driver.screen.query_one(QueueLine)
        await driver.until(lambda: len(queue) == 2)
        await driver.pilot.press("backspace")
        await driver.until(lambda: driver.prompt.text == "third?" and len(queue) == 1)
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.status.state == "stopped")
        await driver.until(lambda: driver.prompt.text == "second?\nthird?" and not len(queue))


async def test_the_prompt_is_edited_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "my editor"
    script.write_text('#!/bin/sh\nprintf " and more\\n\\n" >> "$1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", f'"{script}"')
    async with chat() as driver:
        driver.prompt.text = "words"
        await driver.pilot.press("ctrl+g")
        await driver.until(lambda: "no editor here" in str(driver.prompt.border_title), "headless")
        monkeypatch.setattr(driver.app, "suspend", contextlib.nullcontext)
        await driver.pilot.press("ctrl+g")
        await driver.until(lambda: driver.prompt.text == "words and more")
        monkeypatch.setenv("VISUAL", str(tmp_path / "gone"))
        await driver.pilot.press("ctrl+g")
        await driver.until(lambda: "the editor did not start" in str(driver.prompt.border_title))
        monkeypatch.setenv("VISUAL", "false")
        await driver.pilot.press("ctrl+g")
        await driver.pilot.pause()
        assert driver.prompt.text == "words and more"


async def test_the_bell_rings_where_the_user_looks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    async with chat(answers=["One.", "Two."], gate=gate) as driver:
        rung: list[int] = []
        monkeypatch.setattr(driver.app, "bell", lambda: rung.append(1))
        gate.allow(9)
        await ask(driver, "first?")
        assert not rung
        await driver.until(lambda: gate._permits.acquire(blocking=False) is False)
        await driver.send("second?")
        await driver.until(lambda: driver.status.state == "reading")
        driver.app.app_focus = False
        gate.allow(9)
        await driver.until(lambda: rung == [1])
        await driver.ready()
        await driver.send("/stats")
        await driver.until(lambda: "since the start: 2 answers" in driver.notes())


CHATGPT = [
    {
        "title": "Trip",
        "current_node": "d",
        "mapping": {
            "a": {"message": {"author": {"role": "system"}, "content": {"parts": [""]}}, "parent": None},
            "b": {"message": {"author": {"role": "user"}, "content": {"parts": ["Where?"]}}, "parent": "a"},
            "c": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["Old."]}}, "parent": "b"},
            "t": {"message": {"author": {"role": "tool"}, "content": {"parts": ["data"]}}, "parent": "b"},
            "d": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["Lisbon.", {}]}}, "parent": "t"},
        },
    },
    {"title": "Empty", "current_node": "x", "mapping": {}},
    {
        "title": None,
        "current_node": "a",
        "mapping": {"a": {"message": {"author": {"role": "user"}, "content": {"parts": ["Hi"]}}, "parent": "a"}},
    },
]
LM_STUDIO = {
    "name": "Numbers",
    "messages": [
        {"versions": [{"role": "user", "content": [{"type": "text", "text": "One?"}]}], "currentlySelected": 0},
        {
            "versions": [
                {"role": "assistant", "steps": [{"content": [{"type": "text", "text": "No."}]}]},
                {"role": "assistant", "steps": [{"content": [{"text": "Yes"}]}, {}, {"content": [{"text": "Two."}]}]},
            ],
            "currentlySelected": 1,
        },
    ],
}


def test_exports_of_other_programs() -> None:
    trip, short = interchange.read(json.dumps(CHATGPT))
    assert trip.title == "Trip" and trip.turns == (Turn("user", "Where?"), Turn("assistant", "Lisbon."))
    assert short.title == "" and short.turns == (Turn("user", "Hi"),)
    (numbers,) = interchange.read(json.dumps(LM_STUDIO))
    assert numbers.title == "Numbers" and [turn.text for turn in numbers.turns] == ["One?", "Yes\n\nTwo."]
    assert foreign_chats.read({"messages": [{"role": "user"}]}) is None and foreign_chats.read([]) is None
    with pytest.raises(ValueError, match="no messages"):
        interchange.read(json.dumps(CHATGPT[1:2]))


async def test_all_chats_of_an_export_come_into_the_history(tmp_path: Path) -> None:
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(CHATGPT))
    async with kept(tmp_path) as driver:
        await driver.send(f"/import {file}")
        await driver.until(lambda: "2 chats were imported" in driver.notes())
        archive = driver.screen.archive
        assert archive is not None
        found = archive.do(lambda store: [summary.title for summary in store.recent()]).result()
        assert sorted(found) == ["Hi", "Trip"]
