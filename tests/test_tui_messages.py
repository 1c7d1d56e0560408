"""A message of the conversation: chosen by key, copied, edited, answered again, continued."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from test_tui import Driver, shown
from test_tui_commands import answers, ask, kept

from edgemoe.text.display import flow
from edgemoe.tui.keys import Keys
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.tui.widgets.user_turn import UserTurn


def copied(driver: Driver) -> list[str]:
    """Collect the texts that go to the clipboard."""
    texts: list[str] = []
    driver.app.copy_to_clipboard = texts.append  # type: ignore[method-assign]
    return texts


async def talk(driver: Driver) -> None:
    for question in ("one?", "two?", "three?"):
        await ask(driver, question)


def hint(driver: Driver) -> str:
    return str(driver.prompt.border_subtitle)


async def choose(driver: Driver, number: int, many: int) -> None:
    await driver.pilot.press("ctrl+up", *["up"] * (many - number))
    await driver.until(lambda: f"message {number}/{many}:" in hint(driver), hint(driver))


async def test_messages_are_walked_through_and_copied(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["First.", "Second.", "Third."]) as driver:
        await driver.pilot.press("ctrl+up")
        await driver.until(lambda: "no message" in str(driver.prompt.border_title))
        await talk(driver)
        texts = copied(driver)
        await choose(driver, 1, 6)
        await driver.pilot.press("up", "down", "c")
        await driver.until(lambda: texts == ["First."])
        assert driver.prompt.has_focus and "send" in hint(driver)
        await choose(driver, 6, 6)
        await driver.pilot.press("down")
        await driver.until(lambda: driver.prompt.has_focus)
        await choose(driver, 3, 6)
        await driver.pilot.press("escape", "x")
        await driver.until(lambda: driver.prompt.text == "x")
        assert texts == ["First."]


async def test_an_earlier_question_is_edited_and_the_rest_stays_as_a_branch(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["First.", "Second.", "Third.", "Other."]) as driver:
        await talk(driver)
        await choose(driver, 3, 6)
        await driver.pilot.press("e")
        await driver.until(lambda: driver.prompt.text == "two?" and answers(driver) == ["First."])
        await driver.pilot.press("!", "enter")
        await driver.until(lambda: answers(driver) == ["First.", "Other."])
        await driver.ready()
        assert [turn.text for turn in driver.screen.conversation.turns] == ["one?", "First.", "two?!", "Other."]
        await driver.send("/branch")
        await driver.until(lambda: answers(driver) == ["First.", "Second.", "Third."])


async def test_an_earlier_answer_is_made_again(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["First.", "Second.", "Third.", "Other."]) as driver:
        await talk(driver)
        await choose(driver, 4, 6)
        await driver.pilot.press("r")
        await driver.until(lambda: answers(driver) == ["First.", "Other."])
        await driver.ready()
        assert driver.engine.asked[-1][-1]["content"] == "two?"


async def test_only_the_last_answer_goes_on_and_nothing_while_one_is_under_way(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["First.", "Second.", "Third.", " More."]) as driver:
        await talk(driver)
        await choose(driver, 2, 6)
        await driver.pilot.press("n")
        await driver.until(lambda: "only the last answer" in driver.notes())
        await choose(driver, 6, 6)
        await driver.pilot.press("n")
        await driver.until(lambda: answers(driver)[-1] == "Third. More.")
        await driver.ready()
        await choose(driver, 6, 6)
        driver.screen.enter("answering")
        await driver.pilot.press("r")
        await driver.until(lambda: "Esc stops the answer first" in driver.notes())
        driver.screen.enter("idle")


async def test_a_click_selects_text_and_chooses_nothing_and_keys_can_be_others(tmp_path: Path) -> None:
    async with kept(tmp_path, Keys({"choose": ("f6",), "copy_message": ("y",)}), answers=["First."]) as driver:
        await ask(driver, "one?")
        texts = copied(driver)
        await driver.pilot.click(UserTurn)
        assert driver.screen.query_one(Prompt).has_focus
        await driver.pilot.press("f6")
        await driver.until(lambda: "Y copy" in hint(driver))
        await driver.pilot.press("y")
        await driver.until(lambda: texts == ["First."])
        assert "one?" in shown(driver)


@given(st.lists(st.text("abc ", min_size=1, max_size=9), min_size=1), st.integers(1, 40))
def test_figures_break_between_two(parts: list[str], width: int) -> None:
    lines = flow(" · ".join(parts), width).split("\n")
    assert [part for line in lines for part in line.split(" · ")] == parts
    assert all(len(line) <= width or " · " not in line for line in lines)
