"""Commands on a conversation: every question and answer can be reached afterwards."""

from __future__ import annotations

from pathlib import Path

from fake_engine import Gate
from test_tui import Driver
from test_tui_commands import answers, ask, kept
from textual.widgets import OptionList

from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.screens.history import HistoryScreen
from edgemoe.tui.store import Store
from edgemoe.tui.widgets.user_turn import UserTurn


async def reopen(driver: Driver) -> None:
    """Open the newest conversation of the list."""
    await driver.pilot.press("ctrl+r")
    await driver.until(lambda: isinstance(driver.app.screen, HistoryScreen))
    found = driver.app.screen.query_one(OptionList)
    await driver.until(lambda: found.option_count > 0 and found.highlighted is not None)
    await driver.pilot.press("enter")
    await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))


async def test_an_edit_of_the_first_question_hides_nothing(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["Paris."]) as driver:
        await ask(driver, "capital of France?")
        await driver.send("/edit")
        await driver.until(lambda: driver.prompt.text == "capital of France?")
    assert [found.title for found in Store(tmp_path / "chats.db").recent()] == ["capital of France?"]
    async with kept(tmp_path, resume=True) as driver:
        await driver.until(lambda: answers(driver) == ["Paris."], "the answer is there again")


async def test_escape_takes_an_edit_back(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["First.", "Second."]) as driver:
        await ask(driver, "one?")
        await ask(driver, "two?")
        await driver.send("/edit")
        await driver.until(lambda: driver.prompt.text == "two?" and answers(driver) == ["First."])
        await driver.pilot.press("!", "escape")
        await driver.until(lambda: answers(driver) == ["First.", "Second."])
        assert driver.prompt.text == "" and len(driver.screen.conversation.turns) == 4
        await ask(driver, "three?")
        assert [message["content"] for message in driver.engine.asked[-1]] == [
            "one?", "First.", "two?", "Second.", "three?",
        ]  # fmt: skip


async def test_a_chat_that_lost_its_branch_is_listed_and_opens(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["Paris."]) as driver:
        await ask(driver, "capital of France?")
    store = Store(tmp_path / "chats.db")
    store.point(store.recent()[0].id, None)
    store.close()
    async with kept(tmp_path) as driver:
        await reopen(driver)
        await driver.until(lambda: answers(driver) == ["Paris."])


async def test_an_undo_stays_undone_and_the_first_question_comes_back(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["First.", "Second."]) as driver:
        await ask(driver, "one?")
        await ask(driver, "two?")
        await driver.send("/undo")
        await driver.until(lambda: driver.prompt.text == "two?")
    async with kept(tmp_path, resume=True) as driver:
        await driver.until(lambda: answers(driver) == ["First."])
        await driver.send("/undo")
        await driver.until(lambda: driver.prompt.text == "one?")
    assert len(Store(tmp_path / "chats.db").recent()) == 1


async def test_the_open_chat_chosen_in_the_history_goes_on_answering(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=["one two three four"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(2)
        await driver.until(lambda: answers(driver) == ["one two"])
        await reopen(driver)
        gate.allow(9)
        await driver.ready()
        assert answers(driver) == ["one two three four"]
        assert driver.screen.conversation.turns[-1].text == "one two three four"


async def test_a_question_that_failed_stands_in_the_prompt_again(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=[""], fails=ValueError("no")) as driver:
        await driver.send("long")
        await driver.until(lambda: driver.prompt.text == "long")
        await driver.ready()
        assert not driver.all(UserTurn), "it stands in one place"


async def test_figures_belong_to_the_shown_conversation(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["word " * 200, "short"]) as driver:
        await ask(driver, "first")
        long = driver.status.context_used
        await ask(driver, "/regen")
        await driver.send("/branch")
        await driver.until(lambda: driver.screen.conversation.turns[-1].text.startswith("word"))
        assert driver.status.context_used > long // 2, "of the branch that is shown"
        await driver.pilot.press("ctrl+n")
        status = driver.status
        assert (status.context_used, status.answer_rate, status.first_token_s, status.hit_rate) == (0, 0.0, 0.0, None)
        await reopen(driver)
        await driver.until(lambda: driver.status.context_used > long // 2)


async def test_the_context_fills_while_the_model_answers(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=["word " * 40], gate=gate) as driver:
        await driver.send("a question of some words")
        gate.allow(2)
        await driver.until(lambda: driver.status.state == "answering")
        assert driver.status.context_used > 5
        gate.allow(38)
        await driver.until(lambda: driver.status.context_used > 30)
        gate.allow(9)
        await driver.ready()
