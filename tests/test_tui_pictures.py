"""The main screens as pictures: the text rows of their SVG must equal the rows in tests/pictures.

EDGEMOE_PICTURES=write pytest tests/test_tui_pictures.py writes them anew: check the difference then

Only rows of text are compared: colours and their order in the file come from Textual, and change with its version.
"""

from __future__ import annotations

import html
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeLlama, Gate, Script
from test_tui import Driver
from textual import events
from textual.widgets import OptionList

from edgemoe.tui.app import ChatApp
from edgemoe.tui.forecasts import Forecasts
from edgemoe.tui.records import ChatSettings, ModelChoice
from edgemoe.tui.screens.chat import ChatScreen, Services
from edgemoe.tui.screens.help import HelpScreen
from edgemoe.tui.screens.history import HistoryScreen
from edgemoe.tui.screens.models import ModelsScreen
from edgemoe.tui.screens.settings import SettingsScreen
from edgemoe.tui.session import ChatSession, InThisProcess
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.attachment_bar import Chip
from edgemoe.tui.widgets.code_block import CodeBlock
from edgemoe.tui.widgets.completion_menu import CompletionMenu
from edgemoe.tui.widgets.expert_map import ExpertMap
from edgemoe.tui.widgets.expert_panel import ExpertPanel
from edgemoe.types import ModelShape, Thinking

PICTURES = Path(__file__).with_name("pictures")
SIZES = [(80, 24), (160, 50)]
THOUGHT = "The user wants code.\nLet me see."
ANSWER = """Here is a **small** function, with `code` in a line:

```python
def add(first: int, second: int) -> int:
    return first + second
```

| name | is |
|---|---|
| first | a number |

1. one
2. two
"""
_TEXT = re.compile(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', re.DOTALL)
_CELL = 12.2  # width of a character in Textual's SVG


def rows(svg: str) -> list[str]:
    """Read the lines of text of a picture, without scroll bars and the frame of the terminal.

    Textual may draw a scroll bar one layout later than the text beside it.
    """
    lines: dict[float, dict[int, str]] = defaultdict(dict)
    for x, y, text in _TEXT.findall(svg.partition("-matrix")[2]):
        lines[float(y)][round(float(x) / _CELL)] = html.unescape(text).replace("\xa0", " ")
    drawn = []
    for _, parts in sorted(lines.items()):
        line = ""
        for at, text in sorted(parts.items()):
            line = line.ljust(at)[:at] + text
        drawn.append(line.replace("▐", " ").rstrip())
    return drawn


class Steady(FakeLlama):
    """The figures of this engine are the same on every machine."""

    def _figures(self, messages: Any, done: int, before: Any, elapsed_s: float) -> dict[str, Any]:
        return super()._figures(messages, done, before, done / 38.2)


async def empty(driver: Driver) -> None:
    """Begin without a question."""


async def conversation(driver: Driver) -> None:
    await driver.send("Write a function that adds.")
    await driver.until(lambda: len(driver.screen.conversation.turns) == 2)
    await driver.ready()
    await driver.until(lambda: any(block.coloured for block in driver.screen.query(CodeBlock)))
    await driver.pilot.pause()


async def thinking(driver: Driver) -> None:
    await conversation(driver)
    await driver.pilot.press("ctrl+t")
    driver.screen.transcript.scroll_to(y=0, animate=False, immediate=True)


async def experts(driver: Driver) -> None:
    await conversation(driver)
    panel, engine = driver.screen.query_one(ExpertPanel), driver.engine.experts
    if not panel.display:
        await driver.pilot.press("ctrl+e")
    panel.show(engine.stats(), SimpleNamespace(residency=engine.residency(), heat=engine.heat(), last=engine.last()))
    await driver.pilot.press("f3", "right", "right", "down")
    await driver.until(lambda: (spot := driver.screen.query_one(ExpertMap).spot) is not None and spot.expert == 2)


async def history(driver: Driver) -> None:
    await conversation(driver)
    await driver.pilot.press("ctrl+n", "ctrl+r", *"number")
    await driver.until(
        lambda: isinstance(driver.app.screen, HistoryScreen) and bool(driver.app.screen.query_one(OptionList).options)
    )
    await driver.until(lambda: "adds" in str(driver.app.screen.query_one(OptionList).get_option_at_index(0).prompt))


async def palette(driver: Driver) -> None:
    await driver.pilot.press("ctrl+p", *"exp")
    await driver.until(lambda: any("Experts" in row for row in rows(driver.app.export_screenshot())))


async def help(driver: Driver) -> None:
    await driver.pilot.press("f1")
    await driver.until(lambda: isinstance(driver.app.screen, HelpScreen))


async def settings(driver: Driver) -> None:
    await driver.send("/set")
    await driver.until(lambda: isinstance(driver.app.screen, SettingsScreen))


async def slash(driver: Driver) -> None:
    await driver.pilot.press("/", "e", "down")
    await driver.until(lambda: bool(driver.screen.query_one(CompletionMenu).candidates))


async def attached(driver: Driver) -> None:
    await conversation(driver)
    for text in ("line\n" * 1200, "word " * 9000):
        driver.app.post_message(events.Paste(text))
    await driver.until(lambda: len(driver.all(Chip)) == 2)


async def finding(driver: Driver) -> None:
    await conversation(driver)
    await driver.pilot.press("ctrl+f", *"small")
    await driver.until(lambda: any("1 of 1" in row for row in rows(driver.app.export_screenshot())))


async def chosen(driver: Driver) -> None:
    await conversation(driver)
    await driver.pilot.press("ctrl+up")
    await driver.until(lambda: "message 2/2" in str(driver.prompt.border_subtitle))


async def models(driver: Driver) -> None:
    await driver.pilot.press("ctrl+o")
    await driver.until(
        lambda: isinstance(driver.app.screen, ModelsScreen) and bool(driver.app.screen.query_one(OptionList).options)
    )


SCENES: list[Callable[[Driver], Awaitable[None]]] = [
    empty,
    conversation,
    thinking,
    experts,
    history,
    palette,
    help,
    settings,
    slash,
    attached,
    finding,
    chosen,
    models,
]


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore clocks: the experts are not sampled in between."""
    ticks = itertools.count()
    monkeypatch.setattr(
        "edgemoe.tui.session.time", SimpleNamespace(perf_counter=lambda: next(ticks) * 0.4, monotonic=lambda: 7.0)
    )
    for module in ("answer_turn", "expert_panel", "thought"):
        monkeypatch.setattr(f"edgemoe.tui.widgets.{module}.time", SimpleNamespace(monotonic=lambda: 7.0))
    monkeypatch.setattr(ChatSession, "watch", lambda self, what: None)


class Known(Forecasts):
    """Give fixed forecasts without any work."""

    def __init__(self) -> None:
        super().__init__(lambda: (), lambda record: "")
        self._known = {
            "/models/gpt-oss-20b.gguf": "fits: 38 % of the experts on CUDA0, 21.4 tokens/s (+-25%)",
            "large": "does not fit: 131 GiB of weights are more than the 31 GiB of free memory can hold at once",
        }

    def look(self, names: object) -> None:
        """Begin without forecasts."""


CHOICES = [
    ModelChoice("/models/gpt-oss-20b.gguf", "gpt-oss-20b", "/models/gpt-oss-20b.gguf", size="11.27 GiB"),
    ModelChoice("large", "large:Q4_K_M", "downloaded", True, True, "131.00 GiB", "235.0B, 22.0B active"),
    ModelChoice("demo", "demo", "a small model to try, built in some seconds from SmolLM2"),
    ModelChoice(
        "olmoe:Q4_K_M", "olmoe:Q4_K_M", "fits in memory, to download", False, False, "3.92 GiB", "6.9B, 1.3B active"
    ),
]
OFFERED = Services(choices=lambda: CHOICES, forecasts=lambda card: Known())


def check(name: str, app: ChatApp, folder: Path) -> None:
    svg, kept = app.export_screenshot(), PICTURES / f"{name}.txt"
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    drawn = "\n".join(rows(svg)) + "\n"
    if os.environ.get("EDGEMOE_PICTURES") == "write":
        PICTURES.mkdir(exist_ok=True)
        kept.write_text(drawn, encoding="utf-8")
        return
    assert drawn == kept.read_text(encoding="utf-8"), f"the picture is {folder / name}.svg"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_picture(scene: Callable[[Driver], Awaitable[None]], size: tuple[int, int], tmp_path: Path) -> None:
    engines: list[FakeLlama] = []

    def opened() -> FakeLlama:
        engines.append(Steady(answers=[Script(ANSWER, THOUGHT)], shape=ModelShape(30, 8, 2, (1 << 20,) * 30)))
        return engines[0]

    app = ChatApp(InThisProcess(opened), ChatSettings("tiny", look="dark"), tmp_path / "chats.db", OFFERED)
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, engines)
        await driver.until(lambda: isinstance(app.screen, ChatScreen))
        await driver.ready()
        await scene(driver)
        await driver.settled()
        check(f"{scene.__name__}-{size[0]}x{size[1]}", app, tmp_path)


LONG_THOUGHT = (
    f"{THOUGHT}\n\nThe function needs two numbers, and it should say what it gives back, because they may ask."
)
CALLS = (("get_weather", '{"city": "Oslo", "days": 2}'), ("list_files", '{"folder": "/home/me", "hidden": true}'))


async def under_way(driver: Driver) -> None:
    """Wait until the first piece is drawn, then the whole thought."""
    await driver.send("Write a function that adds.")
    gate = driver.engine._gate
    assert gate is not None
    gate.allow(1)
    await driver.until(lambda: driver.status.state == "thinking")
    gate.allow(len(LONG_THOUGHT.split(" ")) - 1)
    await driver.until(lambda: "may ask." in driver.all(AnswerTurn)[0].thought)


async def ended(driver: Driver) -> None:
    await driver.send("Write a function that adds.")
    await driver.until(lambda: len(driver.screen.conversation.turns) == 2)
    await driver.ready()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    ("name", "script", "scene"),
    [
        ("thinks", Script("held back", LONG_THOUGHT), under_way),
        ("cut", Script("", LONG_THOUGHT, reason="length"), ended),
        ("calls", Script("Let me look.", THOUGHT, CALLS), ended),
    ],
)
async def test_picture_of_an_answer(
    name: str, script: Script, scene: Callable[[Driver], Awaitable[None]], size: tuple[int, int], tmp_path: Path
) -> None:
    engines: list[FakeLlama] = []
    gate = Gate() if scene is under_way else None

    def opened() -> FakeLlama:
        engines.append(Steady(answers=[script], shape=None, device="none", gate=gate, thinking=Thinking(True)))
        return engines[0]

    app = ChatApp(InThisProcess(opened), ChatSettings("tiny", look="dark"))
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, engines)
        await driver.until(lambda: isinstance(app.screen, ChatScreen))
        await driver.ready()
        await scene(driver)
        await driver.settled()
        check(f"{name}-{size[0]}x{size[1]}", app, tmp_path)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_picture_of_a_model_that_does_not_load(size: tuple[int, int], tmp_path: Path) -> None:
    def opened() -> FakeLlama:
        from edgemoe.errors import ModelNotFound

        raise ModelNotFound("there is no file tiny.gguf", "edgemoe list shows the models, edgemoe demo needs none")

    app = ChatApp(InThisProcess(opened), ChatSettings("tiny", look="dark"))
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and driver.status.state == "failed")
        await pilot.pause()
        check(f"failed-{size[0]}x{size[1]}", app, tmp_path)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_picture_of_a_first_start(size: tuple[int, int], tmp_path: Path) -> None:
    app = ChatApp(None, ChatSettings("", look="dark"), services=Services())
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and driver.status.state == "no model")
        await driver.until(lambda: bool(driver.prompt.border_title))
        driver.prompt._end_notice()
        await pilot.pause()
        check(f"first-{size[0]}x{size[1]}", app, tmp_path)
