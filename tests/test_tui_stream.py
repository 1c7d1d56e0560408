"""Streams: pieces are handed over once per reading, Markdown in sections, code line by line."""

from __future__ import annotations

import pytest
from fake_engine import Gate, pieces
from test_tui import chat, shown
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import Selection

from edgemoe.answer.calls import Delta
from edgemoe.answer.growth import Growing
from edgemoe.answer.record import Answer, ToolCall
from edgemoe.tui.widgets.code_block import CodeBlock
from edgemoe.tui.widgets.code_lines import CodeLines
from edgemoe.tui.widgets.markdown import SECTION_BLOCKS, GrowingMarkdown, Section

BLOCKS = "# Title\n\nSome **bold** words.\n\n- one\n\n  still one\n- two\n\n```python\nx = 1\n\ny = 2\n```\n\n"
TEXT = BLOCKS * (SECTION_BLOCKS + 1) + "````\n```\nnot the end\n\n````\n\nThe end."


class Page(App[None]):
    def compose(self) -> ComposeResult:
        yield GrowingMarkdown()


def blocks(page: Page) -> list[tuple[str | None, str]]:
    sections = page.query(Section)
    return [(block.name, block.source.strip()) for section in sections for block in section.children]  # type: ignore[attr-defined]


def test_growth_notifies_once_until_it_is_taken() -> None:
    growing = Growing(1)
    assert [growing.add(Delta(text=piece), 0.1) for piece in ("a", "b", "c")] == [True, False, False]
    assert growing.take() == (Answer("abc"), False, 3, 0.1, 0.1)
    assert growing.add(Delta(text="d"), 0.2) and growing.take().answer.text == "abcd" and growing.take().tokens == 4


def test_growth_keeps_thinking_apart_and_counts_its_seconds() -> None:
    growing, call = Growing(1), ToolCall("look", "{}")
    growing.add(Delta(thought="Let me "), 1.0)
    growing.add(Delta(thought="see."), 3.0)
    assert growing.take() == (Answer("", "Let me see.", 2.0), True, 2, 1.0, 3.0)
    growing.add(Delta(text="Yes."), 4.5)
    growing.add(Delta(text=" No."), 6.0)
    assert growing.take() == (Answer("Yes. No.", "Let me see.", 3.5), False, 4, 1.0, 6.0)
    growing.add(Delta(thought=" Again."), 7.0)  # once more, and the count continues
    growing.add(Delta(calls=(call,)), 7.5)
    assert growing.take().answer == Answer("Yes. No.", "Let me see. Again.", 4.0, (call,))


@pytest.mark.parametrize("step", [1, 7, 60])
async def test_sections_never_cut_a_block(step: int) -> None:
    async with Page().run_test(size=(60, 20)) as pilot:
        page, text = pilot.app, TEXT[-(250 if step == 1 else 1100) :]
        text = text[text.index("# Title") :]
        assert isinstance(page, Page)
        document = page.query_one(GrowingMarkdown)
        for start in range(0, len(text), step):
            await document.grow(text[start : start + step])
        document.finish()
        grown, sections = blocks(page), list(page.query(Section))
        assert all(len(section.children) <= SECTION_BLOCKS + 4 for section in sections)
        assert len(sections) > 1 or step == 1
        await document.remove()
        await page.mount(whole := GrowingMarkdown())
        await whole.grow(text)
        assert grown == blocks(page) and document.source == text


async def test_all_code_of_an_answer_is_coloured_when_it_ends() -> None:
    async with chat(answers=[BLOCKS * 12]) as driver:
        await driver.send("go")
        await driver.until(lambda: driver.status.answer_rate > 0 and driver.status.state == "idle", "answered")
        code = driver.all(CodeBlock)
        assert len(code) > 2 and all(block.coloured for block in code)
        assert "y = 2" in shown(driver)


class Listing(App[None]):
    CSS = "CodeLines { height: auto; }"

    def compose(self) -> ComposeResult:
        yield CodeLines("a\tb\n\nlast")


async def test_code_lines_show_grow_and_are_selected() -> None:
    async with Listing().run_test(size=(20, 6)) as pilot:
        lines = pilot.app.query_one(CodeLines)
        assert [lines.render_line(y).text.rstrip() for y in range(3)] == ["a       b", "", "last"]
        lines.show("a\tb\n\nlast one\nmore\n")
        await pilot.pause()
        assert lines.size.height == 4 and lines.render_line(2).text.rstrip() == "last one"
        picked = lines.get_selection(Selection(Offset(0, 2), Offset(4, 3)))
        assert picked is not None and picked[0] == "last one\nmore"


async def test_every_line_of_code_is_drawn_anew_when_it_grows_and_when_it_has_colours() -> None:
    gate = Gate()
    code = "```python\ndef first(): # and words that make this the widest\n  return a b\n```\n"
    async with chat(answers=[code], gate=gate) as driver:
        await driver.send("go")
        for piece in pieces(code)[:-1]:
            gate.allow()
            word = piece.split("\n")[-1].strip() or "first():"
            await driver.until(lambda word=word: word in shown(driver), word)
        gate.allow(9)
        await driver.ready()

        def plain_lines() -> list[str]:
            lines = [strip for strip in driver.app.screen._compositor.render_strips() if "first()" in strip.text]
            return [segment.text for strip in lines for segment in strip if "def first" in segment.text]

        await driver.until(lambda: driver.screen.query_one(CodeBlock).coloured)
        await driver.until(lambda: not plain_lines(), "colours in the first line")
