"""Long conversations: only near parts exist as widgets, and scrolling reaches every part."""

from __future__ import annotations

from test_tui import Driver, chat, shown
from textual.geometry import Size

from edgemoe.answer.record import Answer
from edgemoe.tui.conversation import Conversation
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.code_block import CodeBlock
from edgemoe.tui.widgets.markdown import SECTION_BLOCKS, sections
from edgemoe.tui.widgets.transcript import MOST_SCREENS, Transcript
from edgemoe.tui.widgets.user_turn import UserTurn

BLOCKS = 100
LONG = "\n\n".join(f"Paragraph number {index}." for index in range(BLOCKS)) + "\n\n```python\nx = 1\n```"


def transcript(driver: Driver) -> Transcript:
    return driver.screen.query_one(Transcript)


def settled(driver: Driver) -> bool:
    there = transcript(driver)
    return not there._fitting and not there._is_short and not there._is_long


async def ask(driver: Driver, question: str, answers: int) -> None:
    await driver.send(question)
    await driver.until(lambda: driver.engine.experts.stats().tokens > 0 and len(driver.engine.asked) == answers)
    await driver.ready()


async def up_to(driver: Driver, words: str) -> None:
    """Drag the bar to the top, again and again."""
    there = transcript(driver)
    for _ in range(100):
        await driver.until(lambda: settled(driver))
        if words in shown(driver).partition("\n")[2]:
            return
        there.scroll_to(y=0, animate=False, immediate=True)
        await driver.pilot.pause()
    raise AssertionError(f"{words} was never seen")


def test_sections_are_the_text_and_cut_no_block() -> None:
    text = "# A\n\n- one\n\n  more\n- two\n\n```\n\n# no title\n\n```\n\n" * 20
    parts = sections(text)
    assert "".join(parts) == text and len(parts) == 60 // SECTION_BLOCKS + 1
    assert all(part.count("```") % 2 == 0 for part in parts)
    assert sections("") == []


async def test_many_answers_leave_few_widgets_and_can_all_be_read() -> None:
    async with chat(answers=[f"Answer {index}.\n\nIts end." for index in range(24)]) as driver:
        for index in range(24):
            await ask(driver, f"question {index}", index + 1)
        await driver.until(lambda: settled(driver))
        assert len(driver.all(UserTurn)) < MOST_SCREENS * 24 / 6
        assert len(driver.screen.conversation.turns) == 48
        await up_to(driver, "question 0")
        assert "Answer 0." in shown(driver) and len(driver.all(UserTurn)) == 24
        await driver.send("/stats")  # goes to the end, and the far parts above are removed again
        await driver.until(lambda: settled(driver) and len(driver.all(UserTurn)) < MOST_SCREENS * 24 / 6)


async def test_one_long_answer_leaves_few_widgets_and_can_be_read_to_its_begin() -> None:
    async with chat(answers=[LONG]) as driver:
        await ask(driver, "go", 1)
        await driver.until(lambda: settled(driver))
        answer = driver.all(AnswerTurn)[0]
        assert 0 < len(answer.query("MarkdownParagraph")) < MOST_SCREENS * 24 / 2 + 2 * SECTION_BLOCKS
        assert all(block.coloured for block in answer.query(CodeBlock))
        await up_to(driver, "Paragraph number 0.")
        assert len(answer.query("MarkdownParagraph")) == BLOCKS


async def test_what_is_read_stays_where_it_is_when_more_comes_above() -> None:
    async with chat() as driver:
        conversation = Conversation(None)
        for index in range(24):
            conversation.add("user", f"question {index}")
            conversation.add("assistant", f"Answer {index}.")
        await driver.screen.library.open(conversation)
        await driver.until(lambda: settled(driver))
        there = transcript(driver)
        assert "Answer 23." in shown(driver) and len(driver.all(UserTurn)) < 30
        there.scroll_to(y=driver.all(UserTurn)[1].virtual_region.y, animate=False, immediate=True)
        first, words = driver.all(UserTurn)[0], str(driver.all(UserTurn)[1].visual)
        line = driver.all(UserTurn)[1].virtual_region.y - int(there.scroll_y) + there.gutter.top + there.region.y
        await driver.until(lambda: driver.all(UserTurn)[0] is not first and settled(driver))
        assert words in shown(driver).split("\n")[line]


async def test_a_turn_that_is_not_composed_yet_can_be_asked_for_all_it_has() -> None:
    async with chat(answers=[LONG]) as driver:
        there, turn = transcript(driver), AnswerTurn(1, Answer(LONG))
        mounted = there.mount(turn, before=0)
        assert not turn.children
        there.virtual_size = Size(80, 1000)  # as a layout between mounting and composing does
        await driver.pilot.press("ctrl+t")
        await mounted
        await up_to(driver, "Paragraph number 0.")


async def test_thinking_that_comes_back_is_folded_as_the_others_are() -> None:
    async with chat() as driver:
        conversation = Conversation(None)
        for index in range(24):
            conversation.add("user", f"question {index}")
            conversation.end(Answer(f"Answer {index}.", f"secret {index}"))
        await driver.screen.library.open(conversation)
        await driver.pilot.press("ctrl+t")
        await driver.until(lambda: settled(driver) and "secret 23" in shown(driver))
        await up_to(driver, "question 0")
        assert "secret 0" in shown(driver)


async def test_streaming_does_not_move_a_reader_above() -> None:
    async with chat(answers=[LONG]) as driver:
        await ask(driver, "go", 1)
        await driver.until(lambda: settled(driver))
        await driver.pilot.press("pageup")
        await driver.until(
            lambda: settled(driver) and transcript(driver).scroll_y == transcript(driver).scroll_target_y
        )
        before = [line[:70] for line in shown(driver).split("\n")[:10]]
        await driver.all(AnswerTurn)[0].grow(Answer(LONG + "\n\nand more" * 30))
        await driver.until(lambda: settled(driver))
        assert [line[:70] for line in shown(driver).split("\n")[:10]] == before
