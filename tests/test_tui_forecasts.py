"""Forecasts in the list of models: real headers, in separate processes."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_tui_commands import kept
from textual.widgets import OptionList

from edgemoe.cli.fit import in_short
from edgemoe.tui.forecasts import Forecasts
from edgemoe.tui.records import ModelCard, ModelChoice
from edgemoe.tui.screens.models import ModelsScreen
from tests.zoo import build


def settled(forecasts: Forecasts) -> dict[str, str]:
    """Give the forecasts after all requests are answered."""
    if (thread := forecasts._thread) is not None:
        thread.join(60)
    return forecasts.known


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_HOME", str(tmp_path))


@contextmanager
def forecasting(*options: str) -> Iterator[Forecasts]:
    forecasts = Forecasts(lambda: ("--device=none", *options), in_short)
    yield forecasts
    forecasts.close()


def test_a_look_says_whether_it_fits_and_a_run_how_fast(tmp_path: Path) -> None:
    name = str(build("llama", tmp_path))
    with forecasting() as forecasts:
        forecasts.look([name, str(tmp_path / "missing.gguf")])
        known = settled(forecasts)
        assert known[name] == "fits: in RAM"
        assert known[str(tmp_path / "missing.gguf")].startswith("there is no file")
        forecasts.measure(name)
        assert forecasts.known[name] == "forecasting …"
        assert "tokens/s (+-25%)" in settled(forecasts)[name]


def test_memory_that_the_open_model_leaves_is_planned_with(tmp_path: Path) -> None:
    name = str(build("llama", tmp_path))
    with forecasting("--ram-free=100KiB") as forecasts:
        forecasts.look([name])
        assert settled(forecasts)[name].startswith("does not fit: ")


def test_what_is_under_way_ends_with_the_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, started, runs = str(build("llama", tmp_path)), threading.Event(), subprocess.Popen

    def start(*arguments: Any, **keywords: Any) -> Any:
        process = runs(*arguments, **keywords)
        started.set()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    with forecasting() as forecasts:
        forecasts.measure(name)
        assert started.wait(10)
        forecasts.close()
        settled(forecasts)
        assert forecasts._process is not None and forecasts._process.wait(10) < 0
        forecasts.look([name + "x"])
        assert name + "x" not in forecasts.known


async def test_the_list_shows_them_and_a_key_asks_for_one(tmp_path: Path) -> None:
    asked: list[str] = []

    class Known(Forecasts):
        def look(self, names: object) -> None:
            self._known["other"] = "fits: in RAM"

        def measure(self, name: str) -> None:
            asked.append(name)
            self._known[name] = "fits: in RAM, 21 tokens/s (+-25%)"

        def close(self) -> None:
            asked.append("closed")

    cards: list[Callable[[], ModelCard | None]] = []

    def forecasts(card: Callable[[], ModelCard | None]) -> Forecasts:
        cards.append(card)
        return Known(lambda: (), in_short)

    choices = [ModelChoice("other", "Other", "2 GiB"), ModelChoice("far", "Far", "3 GiB to download", here=False)]
    async with kept(tmp_path, services={"choices": lambda: choices, "forecasts": forecasts}) as driver:
        await driver.pilot.press("ctrl+o")
        await driver.until(lambda: isinstance(driver.app.screen, ModelsScreen))
        listed = driver.app.screen.query_one(OptionList)
        lines = lambda: [str(option.prompt) for option in listed.options]  # noqa: E731
        await driver.until(lambda: len(lines()) == 2 and "fits: in RAM" in lines()[0], "a look")
        await driver.pilot.press("down", "ctrl+f")
        await driver.until(lambda: "21 tokens/s" in lines()[1], "a forecast")
        assert asked == ["far"] and listed.highlighted == 1
        card = cards[0]()
        assert card is not None and card.free_before == (6 << 30, 30 << 30)
    assert asked[-1] == "closed"
