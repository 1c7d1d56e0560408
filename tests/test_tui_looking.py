"""Views of a conversation: pages, top and end, find, themes, short messages, and a terminal that is left unchanged."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_tui import chat, plain, shown
from test_tui_commands import answers, ask, kept
from test_tui_messages import hint
from textual import events
from textual.widgets import Input, OptionList

from edgemoe.answer.record import Answer
from edgemoe.tui import app
from edgemoe.tui.archive import Archive
from edgemoe.tui.conversation import Conversation
from edgemoe.tui.screens.history import HistoryScreen, marked
from edgemoe.tui.theme import LOOKS
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.find_bar import FindBar
from edgemoe.tui.widgets.head_line import HeadLine
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.tui.widgets.status_line import StatusLine
from edgemoe.tui.widgets.user_turn import UserTurn
from edgemoe.tui.widgets.welcome import Welcome

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from fake_engine import FakeLlama
from edgemoe.tui.app import ChatApp
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.session import InThisProcess
app = ChatApp(InThisProcess(FakeLlama), ChatSettings("tiny"))
app.run()
raise SystemExit(app.return_code)
"""


def written(folder: Path, many: int) -> None:
    """Make a conversation of ``many`` questions and answers."""
    archive = Archive(folder / "chats.db", print)
    conversation = Conversation(archive, "tiny")
    for number in range(many):
        conversation.add("user", f"question {number}")
        conversation.end(Answer(f"answer {number}\n\n" + "some words\n\n" * 4 + f"needle {number % 3}"))
    archive.close()


async def test_pages_that_come_fast_are_whole_pages_and_top_and_end_are_a_key_away(tmp_path: Path) -> None:
    written(tmp_path, 40)
    async with kept(tmp_path, resume=True) as driver:
        transcript = driver.screen.transcript
        await driver.until(lambda: "answer 39" in shown(driver))
        await driver.until(lambda: transcript.scroll_target_y > 2 * transcript.size.height)
        before = transcript.scroll_target_y
        driver.screen.action_turn_page(-1)
        driver.screen.action_turn_page(-1)
        assert before - transcript.scroll_target_y >= 2 * (transcript.size.height - 2)
        await driver.pilot.press("ctrl+home")
        await driver.until(lambda: "question 0" in shown(driver) and transcript.scroll_y == 0)
        await driver.pilot.press("ctrl+end")
        await driver.until(lambda: "needle 0" in shown(driver) and "answer 39" in shown(driver))
        await driver.pilot.press("x")
        assert driver.prompt.text == "x"


async def test_find_goes_from_one_message_to_the_next_older(tmp_path: Path) -> None:
    written(tmp_path, 12)
    async with kept(tmp_path, resume=True) as driver:
        await driver.until(lambda: "answer 11" in shown(driver))
        await driver.pilot.press("ctrl+f", *"needle 1")
        await driver.until(lambda: "4 of 4" in shown(driver) and "needle 1" in shown(driver))
        await driver.pilot.press("enter")
        marked_in = lambda: [turn.text[:8] for turn in driver.all(AnswerTurn) if turn.query(".-found")]  # noqa: E731
        await driver.until(lambda: "3 of 4" in shown(driver) and marked_in() == ["answer 7"])
        await driver.pilot.press("down")
        await driver.until(lambda: "4 of 4" in shown(driver))
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.prompt.has_focus and not driver.screen.query_one(FindBar).display)
        for key in ("ctrl+f", *"zebra"):
            driver.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await driver.until(lambda: driver.screen.query_one(Input).value == "zebra", "a burst of keys")
        driver.screen.set_focus(driver.prompt)
        await driver.pilot.press("escape")
        await driver.until(lambda: not driver.screen.query_one(FindBar).display)
        await driver.send("/find question 3")
        await driver.until(lambda: "1 of 1" in shown(driver) and "question 3" in shown(driver))
        await driver.pilot.press("ctrl+c")
        await driver.until(lambda: driver.prompt.has_focus)


async def test_a_search_marks_the_words_and_goes_to_them(tmp_path: Path) -> None:
    written(tmp_path, 12)
    async with kept(tmp_path) as driver:
        await driver.pilot.press("ctrl+r")
        await driver.until(lambda: isinstance(driver.app.screen, HistoryScreen))
        found = driver.app.screen.query_one(OptionList)
        await driver.pilot.press(*"question 2")
        await driver.until(lambda: driver.app.screen.query_one(Input).value == "question 2" and found.option_count == 1)
        await driver.pilot.press("enter")
        await driver.until(lambda: "1 of 1" in shown(driver) and "question 2" in shown(driver))
    assert [marked("The Seine.", ["seine"]).spans[-1].start, marked("The Seine.", ["seine"]).spans[-1].end] == [4, 9]


async def test_a_passing_word_covers_nothing() -> None:
    async with chat() as driver:
        await ask(driver, "hi")
        await driver.pilot.press("ctrl+y")
        await driver.until(lambda: "copied 12 characters" in str(driver.prompt.border_title))
        assert not driver.app._notifications and "copied" in shown(driver)
        assert "send" in hint(driver) and "idle" in shown(driver)


async def test_a_theme_is_kept_and_the_command_line_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "chosen", lambda look, colours: LOOKS["dark"])
    async with kept(tmp_path) as driver:
        await driver.send("/theme nonsense")
        await driver.until(lambda: "there is no theme nonsense" in driver.notes())
        await driver.send("/theme edgemoe-light")
        await driver.until(lambda: driver.app.theme == "edgemoe-light")
    async with kept(tmp_path) as driver:
        assert driver.app.theme == "edgemoe-dark", "the tests ask for dark"
        driver.app._settings = replace(driver.app._settings, look="auto")
        assert driver.app._first_theme() == "edgemoe-light"


async def test_the_head_names_the_chat_and_its_settings() -> None:
    async with chat() as driver:
        assert not driver.screen.query_one(HeadLine).display
        await driver.send("/system You are a pirate.")
        await driver.until(lambda: "system prompt" in shown(driver).splitlines()[0])
        await driver.send("/temperature 0.3")
        await driver.until(lambda: "system prompt · temperature 0.3" in shown(driver).splitlines()[0])
        await ask(driver, "hello there")
        await driver.until(lambda: "hello there" in shown(driver).splitlines()[0])
        await driver.send("/rename Ahoy")
        await driver.until(lambda: "Ahoy" in shown(driver).splitlines()[0])


async def test_formulas_are_shown_in_unicode() -> None:
    formula = r"\( \alpha\,\beta^2 \) and $\gamma\;x$ and $$a\!b$$ for $5 or $6, \*not\* a formula"
    async with chat(size=(120, 30), answers=[formula], shape=None) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: "α β² and γ x and ab for $5 or $6, *not* a formula" in shown(driver))


async def test_words_of_the_program_leave_the_card_of_the_model() -> None:
    async with chat() as driver:
        await driver.screen.say("Conversations are not kept: Read-only file system.", wrong=True)
        assert driver.all(Welcome) and "6 layers" in plain(driver.all(Welcome)[0])


async def test_a_read_only_disk_is_reported_without_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    archive = Archive(tmp_path / "file" / "chats.db", told.append)
    archive.close()
    assert len(told) == 1 and "Errno" not in told[0] and "not kept" in told[0]


@pytest.mark.parametrize("lines", [1, 10])
async def test_a_long_prompt_beside_the_experts_leaves_the_last_line_on_the_screen(lines: int) -> None:
    async with chat() as driver:
        await ask(driver, "hi")
        driver.prompt.text = "\n".join("line" for _ in range(lines))
        await driver.pilot.press("ctrl+e")
        await driver.pilot.pause()
        assert "idle" in shown(driver).splitlines()[-1]
        assert driver.screen.query_one(StatusLine).region.bottom == 24 and driver.screen.max_scroll_y == 0
        assert driver.screen.query_one(Prompt).size.height >= min(lines, 3)


async def test_unsaved_messages_are_shown_until_they_are_saved(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        archive = driver.screen.archive
        assert archive is not None
        archive.do(lambda store: store._db.execute("pragma query_only=on"))
        await ask(driver, "hi")
        await driver.until(lambda: "not saved" in shown(driver))
        await driver.pilot.press("ctrl+q")
        await driver.until(lambda: "The last messages are not saved" in driver.notes())
        assert driver.app.is_running
        archive.do(lambda store: store._db.execute("pragma query_only=off"))
        await ask(driver, "more")
        await driver.until(lambda: "not saved" not in shown(driver).splitlines()[-1])
    async with kept(tmp_path, resume=True) as driver:
        await driver.until(lambda: len(driver.all(UserTurn)) == 2 and len(answers(driver)) == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(number: int) -> None:
    keeper, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = CODE.format(root=str(ROOT), tests=str(ROOT / "tests"))
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as child:
        os.close(terminal)
        seen = b""
        while b"idle" not in seen:
            seen += os.read(keeper, 65536)
        child.send_signal(number)
        end = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < end:
            try:
                seen += os.read(keeper, 65536)
            except OSError:  # the other end is closed
                break
        assert child.wait(60) == 128 + number
    os.close(keeper)
    for mode in (b"1049", b"1000"):  # leave the alternate screen, stop the mouse's reports
        assert seen.rfind(b"\x1b[?" + mode + b"l") > seen.rfind(b"\x1b[?" + mode + b"h")
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l"), "the cursor is there"
