"""Attachments that are seen and removed, pastes as they were copied, and completion of commands, paths and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import Gate
from test_tui import Driver, chat, shown
from test_tui_commands import ask, kept
from test_tui_messages import hint
from textual import events

from edgemoe.tui.attachments import load
from edgemoe.tui.completion import path_begun
from edgemoe.tui.screens.help import HelpScreen
from edgemoe.tui.widgets.attachment_bar import Chip
from edgemoe.tui.widgets.completion_menu import CompletionMenu


def menu(driver: Driver) -> list[str]:
    return [candidate.label for candidate in driver.screen.query_one(CompletionMenu).candidates]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working directory with some files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("The word is heron.")
    (tmp_path / "notes" / "other.txt").write_text("two")
    (tmp_path / "report.md").write_text("x" * 2000)
    return tmp_path


async def test_a_paste_keeps_its_lines_in_any_form_of_the_terminal(tmp_path: Path) -> None:
    async with kept(tmp_path, n_ctx=200_000) as driver:
        lines = [f"line {number}" for number in range(900)]
        driver.prompt.post_message(events.Paste("\r".join(lines)))
        await driver.until(lambda: bool(driver.all(Chip)))
        assert "900 lines" in shown(driver)
        driver.prompt.post_message(events.Paste("a\r\nb\rc"))
        await driver.until(lambda: driver.prompt.text == "a\nb\nc")
        await driver.pilot.press("enter")
        await driver.until(lambda: bool(driver.engine.asked))
        sent = driver.engine.asked[0][-1]["content"]
        assert "\r" not in sent and "\n".join(lines) in sent and sent.endswith("a\nb\nc")
        await driver.ready()
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb\r\n")
    assert load(str(tmp_path / "dos.txt")).text == "a\nb\n"


async def test_a_short_paste_is_there_once() -> None:
    async with chat() as driver:
        driver.app.post_message(events.Paste("once"))
        await driver.until(lambda: bool(driver.prompt.text))
        await driver.pilot.pause()
        assert driver.prompt.text == "once"


async def test_attachments_are_seen_and_removed_by_key_command_and_click(folder: Path) -> None:
    async with kept(folder) as driver:
        for name in ("one", "other"):
            await driver.send(f"/file notes/{name}.txt")
        await driver.send("/file report.md")
        await driver.until(lambda: len(driver.all(Chip)) == 3)
        assert "one.txt" in shown(driver)
        await driver.pilot.press("backspace")
        await driver.until(lambda: len(driver.all(Chip)) == 2 and "report.md" not in shown(driver))
        await driver.send("/detach 1")
        await driver.until(lambda: len(driver.all(Chip)) == 1 and "one.txt" not in shown(driver))
        await driver.pilot.click(Chip)
        await driver.until(lambda: not driver.all(Chip))
        await ask(driver, "hi")
        assert driver.engine.asked[0][-1]["content"] == "hi"


async def test_an_attachment_that_is_too_long_says_so_and_can_go(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        driver.prompt.post_message(events.Paste("word " * (1 << 18)))
        await driver.until(lambda: "pasted text · too long" in shown(driver))
        await driver.send("read this")
        await driver.until(lambda: "/detach removes" in driver.notes())
        await driver.send("/detach")
        await driver.until(lambda: not driver.all(Chip))
        driver.prompt.clear()
        await ask(driver, "read this")
        assert len(driver.engine.asked) == 1


async def test_attachments_come_back_with_a_question_that_got_no_answer(folder: Path) -> None:
    gate = Gate()
    async with kept(folder, gate=gate) as driver:
        await driver.send("/file notes/one.txt")
        await driver.until(lambda: bool(driver.all(Chip)))
        await driver.send("what is it?")
        await driver.until(lambda: driver.status.state == "reading")
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.prompt.text == "what is it?" and bool(driver.all(Chip)))


async def test_a_slash_opens_a_menu_with_descriptions() -> None:
    async with chat(size=(100, 30)) as driver:
        await driver.pilot.press("/")
        await driver.until(lambda: "/help" in menu(driver) and "keys and commands" in shown(driver))
        await driver.pilot.press("down", "down", "up")
        assert driver.screen.query_one(CompletionMenu).highlighted == 1
        await driver.pilot.press("escape")
        await driver.until(lambda: not menu(driver))
        assert driver.prompt.text == "/"
        await driver.pilot.press("v", "r", "backspace")
        await driver.until(lambda: menu(driver) == ["/vram SIZE", "/editor"], "an alias of it is vi")
        await driver.pilot.press("enter")
        await driver.until(lambda: driver.prompt.text == "/vram ", "a needed value is asked for")
        assert "/vram SIZE" in hint(driver)
        driver.prompt.clear()
        await driver.pilot.press("/", "down", "down", "escape", "backspace")
        for key in (*"/stats", "enter"):  # in a burst: the menu of before does not count
            driver.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await driver.until(lambda: "nothing has been counted" in driver.notes() or "uploads" in driver.notes())
        await driver.pilot.press(*"/he", "enter")
        await driver.until(lambda: isinstance(driver.app.screen, HelpScreen), "Enter runs what is highlighted")


async def test_a_recalled_command_is_no_menu() -> None:
    async with chat() as driver:
        await driver.send("/stats")
        await driver.send("hello")
        await driver.until(lambda: bool(driver.engine.asked))
        await driver.ready()
        await driver.pilot.press("up", "up")
        assert driver.prompt.text == "/stats"
        await driver.pilot.pause()
        assert not menu(driver)
        await driver.pilot.press("down")
        assert driver.prompt.text == "hello"


async def test_tab_completes_paths_of_commands(folder: Path) -> None:
    async with kept(folder) as driver:
        for key in (*"/file no", "tab"):  # in a burst
            driver.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await driver.until(lambda: driver.prompt.text == "/file notes/")
        await driver.until(lambda: menu(driver) == ["one.txt", "other.txt"])
        await driver.pilot.press("tab")
        await driver.until(lambda: driver.prompt.text == "/file notes/o")
        await driver.until(lambda: len(menu(driver)) == 2)
        await driver.pilot.press("down", "tab")
        await driver.until(lambda: driver.prompt.text == "/file notes/other.txt")
        await driver.pilot.press("enter")
        await driver.until(lambda: "other.txt" in shown(driver) and len(driver.all(Chip)) == 1)


async def test_at_completes_a_file_and_attaches_it(folder: Path) -> None:
    async with kept(folder) as driver:
        await driver.pilot.press(*"read @no")
        await driver.until(lambda: menu(driver) == ["notes/"])
        await driver.pilot.press("enter")
        await driver.until(lambda: menu(driver) == ["one.txt", "other.txt"])
        await driver.pilot.press("enter")
        await driver.until(lambda: len(driver.all(Chip)) == 1)
        assert driver.prompt.text == "read one.txt "
        await driver.pilot.press(*"now", "enter")
        await driver.until(lambda: bool(driver.engine.asked))
        assert "heron" in driver.engine.asked[0][-1]["content"]
        await driver.ready()
        await ask(driver, "and @notes/other.txt or me@example.org?")
        assert driver.engine.asked[1][-1]["content"].startswith("other.txt:\n```\ntwo")


def test_where_a_path_begins() -> None:
    assert [path_begun(line) is not None for line in ("/file a", "/file ", "hi @a", "@", "a@b", "/set x", "hi")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


async def test_a_title_is_the_question_and_not_the_file(folder: Path) -> None:
    async with kept(folder) as driver:
        await driver.send("/file notes/one.txt")
        await driver.until(lambda: bool(driver.all(Chip)))
        await ask(driver, "what is the word?")
        assert driver.screen.conversation.title == "what is the word?"


async def test_prompts_are_at_hand_after_a_new_start(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        await ask(driver, "first")
        await driver.send("/stats")
    async with kept(tmp_path) as driver:
        seen = []
        await driver.until(lambda: bool(driver.prompt._sent))
        for _ in range(2):
            await driver.pilot.press("up")
            seen.append(driver.prompt.text)
        assert seen == ["/stats", "first"]
