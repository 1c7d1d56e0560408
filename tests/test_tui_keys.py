"""Keys that people press without reading: Tab, Ctrl+C, Ctrl+D, Ctrl+Z, and commands by other programs' names."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import Gate
from test_tui import chat
from test_tui_commands import answers, ask, kept
from test_tui_messages import copied, hint
from textual.widgets import OptionList

from edgemoe.tui.commands import Call, Unknown, parse
from edgemoe.tui.keys import Keys
from edgemoe.tui.screens.history import HistoryScreen


async def test_tab_never_leaves_the_prompt(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["one", "two"]) as driver:
        await ask(driver, "first")
        await ask(driver, "second")
        for text, key in (("/file /nowhere/at/all", "tab"), ("tell me a", "tab"), ("tell me a", "shift+tab")):
            driver.prompt.text = text
            driver.prompt.move_cursor(driver.prompt.document.end)
            await driver.pilot.press(key, *"rest")
            assert driver.prompt.has_focus and driver.prompt.text == text + "rest"
        await driver.pilot.press("ctrl+up", "tab")
        await driver.until(lambda: driver.prompt.has_focus, "Tab comes back from the messages")
        assert answers(driver) == ["one", "two"] and len(driver.engine.asked) == 2


async def test_ctrl_c_stops_an_answer_then_asks_then_quits(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=["one two three"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        await driver.pilot.press("ctrl+c")
        await driver.until(lambda: driver.status.state == "stopped")
        assert answers(driver) == ["one"] and "again" not in hint(driver)
        await driver.pilot.press("ctrl+c")
        await driver.until(lambda: "Ctrl+C again quits" in hint(driver))
        await driver.pilot.press("x")
        assert "again" not in hint(driver), "another key takes the question back"
        await driver.pilot.press("ctrl+c")
        await driver.until(lambda: driver.prompt.text == "" and driver.app.is_running, "it clears what was typed")
        await driver.pilot.press("ctrl+c", "ctrl+c")
        await driver.until(lambda: not driver.app.is_running)


async def test_ctrl_c_copies_the_selected_text_of_the_prompt() -> None:
    async with chat() as driver:
        texts = copied(driver)
        await driver.pilot.press(*"word", "shift+home", "ctrl+c")
        await driver.until(lambda: texts == ["word"])
        assert driver.prompt.text == "word" and driver.app.is_running


async def test_ctrl_d_deletes_in_a_text_and_quits_without_one() -> None:
    async with chat() as driver:
        await driver.pilot.press(*"ab", "home", "ctrl+d")
        assert driver.prompt.text == "b"
        await driver.pilot.press("ctrl+d")
        assert driver.prompt.text == "" and driver.app.is_running
        await driver.pilot.press("ctrl+d")
        await driver.until(lambda: not driver.app.is_running)


async def test_ctrl_z_suspends_and_ctrl_underscore_takes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with chat() as driver:
        suspended: list[bool] = []
        monkeypatch.setattr(driver.app, "action_suspend_process", lambda: suspended.append(True))
        await driver.pilot.press(*"ab", "ctrl+z")
        assert suspended and driver.prompt.text == "ab"
        await driver.pilot.press("ctrl+underscore")
        assert driver.prompt.text != "ab"


async def test_a_chosen_key_works_where_the_text_area_has_it_too(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, Keys({"stop": ("ctrl+x",)}), answers=["one two three"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        assert "Ctrl+X stop" in hint(driver)
        await driver.pilot.press("ctrl+x")
        await driver.until(lambda: driver.status.state == "stopped")


def test_commands_have_the_names_of_other_programs() -> None:
    for line, name in (
        ("/exit", "quit"), ("/q", "quit"), ("/clear", "new"), ("/retry", "regen"), ("/save", "export"),
        ("/?", "help"), ("/search", "history"), ("/resume", "history"), ("/info", "stats"), ("/find x", "find"),
        ("/theme", "theme"), ("/models", "model"), ("/attach a", "file"),
    ):  # fmt: skip
        call = parse(line)
        assert isinstance(call, Call) and call.name == name, line
    assert parse("/temperature 0.7") == Call("set", "temperature 0.7")
    for line in ("/exti", "/finf", "/undp", "/edt"):
        unknown = parse(line)
        assert isinstance(unknown, Unknown) and "/undo" not in unknown.hint and "/edit" not in unknown.hint, line


async def test_delete_in_the_history_asks_once_and_spares_the_open_chat(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["one", "two"]) as driver:
        await ask(driver, "first")
        await driver.pilot.press("ctrl+n")
        await ask(driver, "second")
        await driver.pilot.press("ctrl+r")
        await driver.until(lambda: isinstance(driver.app.screen, HistoryScreen))
        found = driver.app.screen.query_one(OptionList)
        await driver.until(lambda: found.option_count == 2)
        screen = driver.app.screen
        assert isinstance(screen, HistoryScreen)
        await driver.pilot.press("ctrl+d", "ctrl+d")
        await driver.until(lambda: "is open" in screen.news)
        assert found.option_count == 2
        await driver.pilot.press("down", "ctrl+d")
        await driver.until(lambda: "Ctrl+D again" in screen.news)
        assert found.option_count == 2
        await driver.pilot.press("ctrl+d")
        await driver.until(lambda: found.option_count == 1)
