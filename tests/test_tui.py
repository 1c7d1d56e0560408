"""The terminal chat, driven by Pilot with a scripted model. Everything waits on conditions."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from fake_engine import SHAPE, FakeLlama, Gate, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from textual import events
from textual.pilot import Pilot
from textual.widgets import Static

from edgemoe.answer.receipt import Receipt
from edgemoe.errors import ModelNotFound
from edgemoe.text.display import percent, visible
from edgemoe.text.failures import in_words
from edgemoe.tui.app import ChatApp
from edgemoe.tui.braille import area, bar, pair_of_bars
from edgemoe.tui.commands import Call, Unknown, matches, parse
from edgemoe.tui.expert_map import BAR, GLOWS, SHARES, Layout, cells, draw, fit
from edgemoe.tui.records import ChatSettings, ExpertMaps
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.screens.choice import ChoiceScreen
from edgemoe.tui.screens.help import HelpScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.widgets import answer_turn
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.expert_map import ExpertMap
from edgemoe.tui.widgets.expert_panel import ExpertPanel
from edgemoe.tui.widgets.markdown import GrowingMarkdown
from edgemoe.tui.widgets.note import Note
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.tui.widgets.status_line import StatusLine
from edgemoe.tui.widgets.user_turn import UserTurn
from edgemoe.tui.widgets.welcome import Welcome
from edgemoe.types import FloatArray, ModelShape

SECONDS = 10.0
Kind = TypeVar("Kind")


class Driver:
    """Run a chat, and read its screen."""

    def __init__(self, app: ChatApp, pilot: Pilot[None], engines: list[FakeLlama]) -> None:
        self.app, self.pilot, self._engines = app, pilot, engines

    @property
    def engine(self) -> FakeLlama:
        return self._engines[0]

    @property
    def screen(self) -> ChatScreen:
        screen = self.app.screen
        assert isinstance(screen, ChatScreen)
        return screen

    @property
    def status(self) -> StatusLine:
        return self.screen.query_one(StatusLine)

    @property
    def prompt(self) -> Prompt:
        return self.screen.query_one(Prompt)

    def all(self, kind: type[Kind]) -> list[Kind]:
        return list(self.screen.query(kind))  # type: ignore[type-var]

    def notes(self) -> str:
        return "\n".join(plain(note) for note in self.all(Note))

    async def until(self, condition: Callable[[], bool], what: str = "") -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"waited in vain: {what}"
            await self.pilot.pause(0.005)

    async def settled(self) -> None:
        """Wait until nothing moves any more."""
        before = ""
        while before != (before := shown(self)):
            await self.pilot.pause()

    async def ready(self) -> None:
        await self.until(lambda: self.status.state == "idle", "idle")

    async def send(self, text: str) -> None:
        self.prompt.text = text
        await self.pilot.press("enter")


@asynccontextmanager
async def chat(
    size: tuple[int, int] = (80, 24), chat_settings: ChatSettings | None = None, **keywords: Any
) -> AsyncIterator[Driver]:
    engines: list[FakeLlama] = []

    def opened() -> FakeLlama:
        engines.append(FakeLlama(**keywords))
        return engines[0]

    app = ChatApp(InThisProcess(opened), chat_settings or ChatSettings(title="tiny", look="dark"))
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, engines)
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(StatusLine)))
        await driver.ready()
        yield driver


def plain(widget: Static) -> str:
    return str(widget.visual)


def shown(driver: Driver) -> str:
    """Give the screen as text, line by line."""
    width, height = driver.app.size
    lines = driver.app.screen._compositor.render_strips()
    assert len(lines) == height and width
    return "\n".join(line.text for line in lines)


# The conversation.


async def test_answer_streams_and_carries_a_receipt() -> None:
    gate = Gate()
    async with chat(answers=["One **two** three."], gate=gate) as driver:
        await driver.send("count")
        await driver.until(lambda: driver.status.state == "reading")
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        answer = driver.all(AnswerTurn)[0]
        assert answer.text == "One"
        gate.allow(9)
        await driver.ready()
        assert answer.query_one(GrowingMarkdown).source == "One **two** three."
        receipt = plain(answer.query_one(".answer-receipt", Static))
        assert "tokens · " in receipt and "tok/s" in receipt and "hit " in receipt and "MiB moved" in receipt
        assert "one two three" in " ".join(shown(driver).lower().split())


async def test_the_next_question_carries_the_conversation() -> None:
    settings = ChatSettings(system="Be brief.", sampling={"max_tokens": 7})
    async with chat(chat_settings=settings, answers=["first", "second"]) as driver:
        for question, answers in (("a", 1), ("b", 2)):
            await driver.send(question)
            await driver.until(lambda count=answers: len(driver.all(AnswerTurn)) == count)  # type: ignore[misc]
            await driver.ready()
        assert driver.engine.asked[1] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "first"},
            {"role": "user", "content": "b"},
        ]
        assert driver.engine.sampling[0] == {"max_tokens": 7}


async def test_escape_stops_and_keeps_the_partial_text() -> None:
    gate = Gate()
    async with chat(answers=["one two three four", "more"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(2)
        await driver.until(lambda: driver.all(AnswerTurn)[0].text == "one two")
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.status.state == "stopped")
        answer = driver.all(AnswerTurn)[0]
        assert answer.query_one(GrowingMarkdown).source == "one two"
        assert plain(answer.query_one(".answer-receipt", Static)).startswith("stopped")
        gate.allow(9)
        await driver.send("and?")
        await driver.ready()
        assert driver.engine.asked[1][1] == {"role": "assistant", "content": "one two"}


async def test_a_long_prompt_says_how_far_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_turn, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(answer_turn, "TICK_SECONDS", 0.01)
    gate = Gate()
    async with chat(size=(100, 30), gate=gate, answers=["done"]) as driver:
        await driver.send("word " * 400)
        await driver.until(lambda: "reading the prompt · about 576 tokens · " in shown(driver))
        for _ in range(512):
            driver.engine.experts.route()
        await driver.until(lambda: "reading the prompt · 512 of about 576 tokens" in shown(driver))
        gate.allow(9)
        await driver.ready()
        assert "reading" not in shown(driver)


async def test_new_chat_forgets_and_drops_the_answer_under_way() -> None:
    gate = Gate()
    async with chat(answers=["old words", "new"], gate=gate) as driver:
        await driver.send("first")
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        await driver.pilot.press("ctrl+n")
        await driver.ready()
        assert not driver.all(AnswerTurn) and driver.all(Welcome)
        gate.allow(9)
        await driver.send("second")
        await driver.until(lambda: bool(driver.all(AnswerTurn)))
        await driver.ready()
        assert driver.engine.asked[1] == [{"role": "user", "content": "second"}]
        assert [answer.text for answer in driver.all(AnswerTurn)] == ["new"]


async def test_a_failing_answer_says_why_and_the_chat_goes_on() -> None:
    fails = ValueError("Requested tokens (9) exceed context window of 8")
    async with chat(answers=[""], fails=fails) as driver:
        await driver.send("long")
        await driver.until(lambda: "longer than the context" in driver.notes())
        assert "--ctx" in driver.notes()
        await driver.ready()
        driver.engine._fails = None
        await driver.send("short")
        await driver.until(lambda: len(driver.engine.asked) == 2)
        assert driver.engine.asked[1] == [{"role": "user", "content": "short"}]


# Check that the screen shows the model's whole answer.


async def test_markup_and_control_characters_are_text() -> None:
    evil = "[bold red]x[/] [@click=app.quit]y[/] \x1b[31mz\x07 <b>tag</b> &#27;[2J"
    async with chat(size=(120, 30), answers=[evil], shape=None) as driver:
        await driver.send(evil)
        await driver.until(lambda: bool(driver.all(AnswerTurn)))
        await driver.ready()
        screen = shown(driver)
        assert screen.count("[bold red]x[/] [@click=app.quit]y[/] [31mz <b>tag</b>") == 3, "title, question, answer"
        assert not any(ord(mark) < 32 and mark != "\n" for mark in screen)
        assert plain(driver.all(UserTurn)[0]) == evil.replace("\x1b", "").replace("\x07", "")
        # The model gets the user's own text, not the text that the screen can show.
        assert driver.engine.asked[0][-1]["content"] == evil


@given(st.text(), st.text())
def test_cleaning_pieces_and_their_sum_give_the_same(left: str, right: str) -> None:
    assert visible(left) + visible(right) == visible(left + right)
    assert all(mark in "\n\t" or not (ord(mark) < 32 or 0x7F <= ord(mark) < 0xA0) for mark in visible(left))


def test_cleaning_keeps_words_and_joins() -> None:
    assert visible("a\tb\nc é 漢字 👩‍🚀") == "a\tb\nc é 漢字 👩‍🚀"
    assert visible("x\u202ey\u2028z\r\n\x9b1m") == "xy\nz\n1m"
    assert (percent(1.0), percent(0.999), percent(0.0)) == ("100 %", "99 %", "0 %")


# The prompt.


async def test_prompt_keys() -> None:
    async with chat() as driver:
        await driver.pilot.press("h", "i", "ctrl+j", "y", "o")
        assert driver.prompt.text == "hi\nyo" and driver.prompt.size.height >= 2
        await driver.pilot.press("shift+enter")
        assert driver.prompt.text == "hi\nyo\n"
        await driver.pilot.press("enter")
        await driver.until(lambda: bool(driver.engine.asked))
        assert driver.engine.asked[0][-1]["content"] == "hi\nyo"
        assert driver.prompt.text == ""
        await driver.ready()
        await driver.pilot.press("up")
        assert driver.prompt.text == "hi\nyo\n"


async def test_enter_does_not_overtake_letters_of_the_same_burst() -> None:
    async with chat() as driver:
        for key in ("h", "i", "enter", "x"):
            driver.app.post_message(events.Key(key, key if len(key) == 1 else "\r"))
        await driver.until(lambda: bool(driver.engine.asked) and driver.prompt.text == "x")
        assert driver.engine.asked[0][-1]["content"] == "hi"


async def test_enter_on_nothing_sends_nothing() -> None:
    async with chat() as driver:
        await driver.pilot.press("space", "enter")
        assert not driver.engine.asked and not driver.all(UserTurn)


async def test_slash_commands() -> None:
    async with chat() as driver:
        await driver.send("/hlep")
        assert "there is no command /hlep" in driver.notes() and "did you mean /help?" in driver.notes()
        assert driver.prompt.text == "/hlep"
        await driver.send("/help")
        await driver.until(lambda: isinstance(driver.app.screen, HelpScreen))
        words = " ".join(plain(part) for part in driver.app.screen.query(Static))
        assert "/vram SIZE" in words and "Ctrl+Q" in words
        await driver.pilot.press("escape")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        await driver.send("/system You are [red]terse[/].")
        assert "You are [red]terse[/]." in driver.notes()
        await driver.send("/vram much")
        assert "is not a size" in driver.notes()
        await driver.send("/vram 25%")
        await driver.until(lambda: "12 experts fit now" in driver.notes())
        assert driver.engine.experts.resized == ["25%"]
        await driver.send("hello")
        await driver.until(lambda: bool(driver.engine.asked))
        assert driver.engine.asked[0][0] == {"role": "system", "content": "You are [red]terse[/]."}
        await driver.ready()
        await driver.send("/stats")
        assert "last answer:" in driver.notes() and "uploads" in driver.notes()
        await driver.send("/new")
        await driver.until(lambda: not driver.all(AnswerTurn))
        await driver.send("/quit")
        await driver.until(lambda: not driver.app.is_running)


def test_command_lines() -> None:
    assert parse("hello") is None and parse(" /etc/passwd") is None
    assert parse("/SYSTEM  be kind ") == Call("system", "be kind")
    assert isinstance(parse("/vram"), Unknown) and isinstance(parse("/"), Unknown)
    assert [command.name for command in matches("/st")] == ["stats"]
    assert not matches("text") and [command.name for command in matches("/vram 4")] == ["vram"]


async def test_palette_has_our_commands() -> None:
    async with chat() as driver:
        await driver.pilot.press("ctrl+p")
        await driver.until(lambda: isinstance(driver.app.screen, ChoiceScreen))
        for label in ("New chat", "Stop", "Experts", "Light or dark", "Theme", "Quit"):
            assert label in shown(driver)
        await driver.pilot.press(*"light", "enter")
        await driver.until(lambda: driver.app.theme == "edgemoe-light")


async def test_a_theme_is_tried_on_and_left_again() -> None:
    async with chat() as driver:
        await driver.send("/theme")
        await driver.until(lambda: isinstance(driver.app.screen, ChoiceScreen))
        await driver.pilot.press("down")
        await driver.until(lambda: driver.app.theme != "edgemoe-dark")
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.app.theme == "edgemoe-dark")


# Loading.


async def test_the_screen_lives_while_the_model_loads() -> None:
    hold = threading.Event()

    def slow() -> FakeLlama:
        assert hold.wait(SECONDS)
        return FakeLlama()

    app = ChatApp(InThisProcess(slow), ChatSettings(title="tiny"))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(Welcome)))
        assert driver.status.state == "loading"
        before = plain(driver.all(Welcome)[0])
        assert "loading tiny" in before
        await driver.until(lambda: plain(driver.all(Welcome)[0]) != before, "a moving spinner")
        hold.set()
        await driver.ready()
        assert "6 layers" in plain(driver.all(Welcome)[0])


async def test_a_model_that_does_not_load_says_why() -> None:
    def missing() -> FakeLlama:
        raise ModelNotFound("there is no file [x].gguf", "give a GGUF file")

    app = ChatApp(InThisProcess(missing))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(Welcome)))
        await driver.until(lambda: driver.status.state == "failed")
        words = plain(driver.all(Welcome)[0])
        assert "there is no file [x].gguf" in words and "hint: give a GGUF file" in words


async def test_quit_closes_the_engine_in_the_middle_of_an_answer() -> None:
    async with chat(gate=Gate()) as driver:
        await driver.send("go")
        await driver.until(lambda: driver.status.state == "reading")
        await driver.pilot.press("ctrl+q")
    assert driver.engine.closed and driver.engine.cancelled.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgemoe-")]


async def test_a_dense_model_says_so() -> None:
    async with chat(shape=None, device="none") as driver:
        words = plain(driver.all(Welcome)[0])
        assert "dense model: runs as in llama_cpp" in words and "all on the CPU" in words
        await driver.pilot.press("ctrl+e")
        assert "no routed experts" in plain(driver.screen.query_one("#expert-figures", Static))
        await driver.send("hi")
        await driver.ready()
        assert driver.status.hit_rate is None


# The experts panel.


async def test_experts_are_sampled_only_while_somebody_looks() -> None:
    async with chat(answers=["a b c"]) as driver:
        panel = driver.screen.query_one(ExpertPanel)
        assert not panel.display
        reads = driver.engine.experts.reads
        await asyncio.sleep(0.3)  # this test is about time itself: for this long, nothing may happen
        assert driver.engine.experts.reads == reads
        await driver.pilot.press("ctrl+e")
        assert panel.display
        chart = driver.screen.query_one(ExpertMap)
        await driver.until(lambda: bool(chart._lines), "a drawn map")
        legend = panel.query_one("#expert-legend", Static)
        await driver.until(lambda: "on device" in plain(legend), "a legend before the first token")
        await driver.send("go")
        await driver.until(lambda: "of 48 · " in plain(panel.query_one("#expert-figures", Static)))
        await driver.until(lambda: panel.stats is not None and panel.stats.uploads == 3)
        await driver.pilot.press("ctrl+e")
        assert not panel.display


@pytest.mark.parametrize(("size", "shape"), [((80, 24), (48, 128)), ((160, 50), (48, 128)), ((40, 12), (30, 8))])
async def test_every_size_draws(size: tuple[int, int], shape: tuple[int, int]) -> None:
    model = ModelShape(shape[0], shape[1], 4, (1 << 20,) * shape[0])
    async with chat(size=size, shape=model, answers=["x " * 30]) as driver:
        if not driver.screen.query_one(ExpertPanel).display:
            await driver.pilot.press("ctrl+e")
        await driver.send("go")
        await driver.until(lambda: bool(driver.all(AnswerTurn)))
        await driver.ready()
        chart = driver.screen.query_one(ExpertMap)
        await driver.until(lambda: bool(chart._lines), "a drawn map")
        assert len(chart._lines) <= chart.size.height
        assert all(sum(len(run.glyphs) for run in line) <= chart.size.width for line in chart._lines)
        assert "idle" in shown(driver)


async def test_without_colour_shapes_tell_residency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with chat(size=(80, 24), shape=ModelShape(40, 64, 4, (1,) * 40)) as driver:
        await driver.pilot.press("ctrl+e")
        chart = driver.screen.query_one(ExpertMap)
        await driver.until(lambda: bool(chart._lines), "a drawn map")
        glyphs = set("".join(run.glyphs for line in chart._lines for run in line if run.upper))
        assert {"▀", "▄"} & glyphs and {"█", "·"} & glyphs


# The map is a pure function.

RESIDENT = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=np.bool_)
HEAT = np.array([[4, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float32)
LAST = np.array([[0, 1], [-1, -1], [3, -1]], dtype=np.int32)
MAPS = ExpertMaps(RESIDENT, HEAT, LAST)


GLOW = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float32)


def texts(maps: ExpertMaps, layout: Layout, shapes_only: bool = False, glow: FloatArray | None = None) -> list[str]:
    lines = draw(maps, GLOW if glow is None else glow, [0.5] * len(maps.heat), layout, shapes_only)
    return ["".join(run.glyphs for run in line) for line in lines]


def test_map_glyphs() -> None:
    assert texts(MAPS, Layout(1, 1, 1, False, 1, 3), True) == ["  0 █□■·", "  1 ··■■", "  2 ■■■█"]
    assert texts(MAPS, Layout(2, 1, 1, False, 1, 3), True)[0] == "  0 █ □ ■ · "
    assert texts(MAPS, Layout(1, 1, 1, True, 1, 2), True) == ["  0 ▀□█▄", "  2 ▀▀▀▀"]
    assert texts(MAPS, Layout(1, 1, 1, False, 2, 2), True) == ["  0 █□■·    2 ■■■█", "  1 ··■■"]
    assert texts(MAPS, Layout(2, 1, 1, False, 1, 3)) == [f"  {layer} ▇ ▇ ▇ ▇ " for layer in range(3)]


def test_map_cells() -> None:
    rows = cells(MAPS, GLOW, Layout(1, 1, 1, False, 1, 3))
    assert rows[0][0] == (SHARES, 5, GLOWS, False) and rows[0][1] == (0, 0, GLOWS, True) and rows[0][2].heat == 2
    halves = cells(MAPS, GLOW, Layout(1, 2, 2, False, 1, 2))
    assert [[cell.share for cell in row] for row in halves] == [[1, 3], [SHARES, SHARES]]
    assert halves[0][0].is_last and not halves[0][1].glow and not halves[1][1].missed


def test_fit_prefers_whole_experts() -> None:
    assert fit(30, 8, 76, 8) == Layout(1, 1, 1, True, 3, 5, bar=BAR, ruled=True)
    assert fit(24, 32, 50, 30) == Layout(1, 1, 1, False, 1, 24, bar=BAR, ruled=True)
    assert fit(48, 128, 140, 30) == Layout(1, 1, 1, True, 1, 24, bar=BAR, ruled=True)
    assert fit(48, 128, 140, 50) == Layout(1, 1, 1, False, 1, 48, bar=BAR, ruled=True)
    assert fit(48, 128, 76, 8) == Layout(1, 4, 2, True, 1, 6, bar=BAR, ruled=True)
    assert fit(6, 8, 60, 30) == Layout(6, 1, 1, False, 1, 12, tall=True, bar=BAR, ruled=True)


def test_a_map_has_a_ruler_and_a_bar_for_each_layer() -> None:
    drawn = texts(MAPS, Layout(4, 1, 1, False, 1, 3, bar=BAR, ruled=True))
    assert drawn == ["    0       2        hit   ", *(f"  {layer} ▇▇▇ ▇▇▇ ▇▇▇ ▇▇▇  ━━━   " for layer in range(3))]
    assert bar(None, 3) == "   " and bar(1, 3) == "━━━" and bar(0.5, 3) == "━╸ "
    assert pair_of_bars(1, 0.5, 2) == "⣒⠒" and pair_of_bars(None, 0.25, 2) == "⡀⠀"


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 260), st.integers(5, 200), st.integers(1, 60), st.booleans())
def test_every_map_fits_its_place(layers: int, experts: int, columns: int, lines: int, plain_shapes: bool) -> None:
    layout = fit(layers, experts, columns, lines)
    seed = np.random.default_rng(random.Random(layers * experts).randrange(99))
    maps = ExpertMaps(
        seed.random((layers, experts)) < 0.5,
        seed.random((layers, experts)).astype(np.float32),
        seed.integers(-1, experts, (layers, 2)).astype(np.int32),
    )
    glow = seed.random((layers, experts)).astype(np.float32)
    drawn = texts(maps, layout, plain_shapes, glow)
    assert len(drawn) <= lines and max(map(len, drawn)) <= columns
    whole = sum(len(row) for row in cells(maps, glow, layout)) * layout.expert_group * layout.layer_group
    assert whole >= layers * experts


def test_graphs_of_braille() -> None:
    assert area([0, 0.5, 1], 2) == ["⢀⣼"] and area([1, 1], 1, 2) == ["⣿", "⣿"] and area([], 2) == ["⠀⠀"]
    assert area([0.5] * 9, 1, 2) == ["⠀", "⣿"]


# Receipts and failures.


def test_receipt_of_a_dense_model_has_no_expert_figures() -> None:
    chunk = {"timings": {"prompt_ms": 500, "predicted_per_second": 12.34, "predicted_n": 3, "prompt_n": 4}}
    receipt = Receipt.of(chunk)
    assert receipt.line() == "3 tokens · 12.3 tok/s · first 500 ms" and receipt.context_tokens == 7
    assert Receipt.of({}).pairs == 0


def test_a_receipt_counts_reused_tokens_of_a_long_prompt() -> None:
    long = Receipt(prompt_tokens=48, cached_tokens=3912, answer_rate=5, first_token_s=0.5)
    assert long.line() == "5.0 tok/s · first 500 ms · 3,912 of 3,960 reused"
    assert "reused" not in Receipt(prompt_tokens=8, cached_tokens=40).line()
    assert "reused" not in Receipt(prompt_tokens=900).line()


def test_a_receipt_names_the_cause_of_a_slow_answer() -> None:
    fast = Receipt(pairs=10, hit_rate=0.9, moe_ms=100, join_ms=5, device="sim", prompt_tokens=9)
    assert fast.remark() == ""
    assert replace(fast, first_token_s=9.0).remark() == "The first token had to wait for 9 prompt tokens."
    assert replace(fast, join_ms=60).remark() == "The CPU waited for sim in 60 % of the expert time."
    read = replace(fast, disk_ms=70, disk_bytes=3 << 30)
    assert read.remark() == "The experts waited for the disk in 70 % of their time: the RAM holds too few of them."
    assert read.parts()[-1] == "3.00 GiB from the disk"
    assert replace(fast, hit_rate=0.25).remark().startswith("75 % of the experts ran on the CPU")
    assert replace(fast, hit_rate=0.25, device="none").remark() == ""


def test_failures_in_words() -> None:
    assert in_words(ModelNotFound("gone\x1b[2J", "look")) == ("gone[2J", "look")
    assert in_words(RuntimeError("two\nlines")).text == "RuntimeError: two lines"


def test_fake_pieces_add_up() -> None:
    assert "".join(pieces("a b  c")) == "a b  c" and SHAPE.used <= SHAPE.experts


async def test_keys_that_come_in_a_burst_keep_their_order() -> None:
    async with chat() as driver:
        for _ in range(20):
            driver.prompt.text = "wrong"
            driver.prompt.move_cursor(driver.prompt.document.end)
            keys = [*["backspace"] * 5, *"abc", "left", "x", "home", "y", "end", "backspace", "z"]
            for key in keys:
                driver.app.post_message(events.Key(key, key if len(key) == 1 else None))
            await driver.until(lambda: "z" in driver.prompt.text)
            await driver.pilot.pause()
            assert driver.prompt.text == "yabxz"
