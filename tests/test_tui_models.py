"""The list of models: missing ones are downloaded from a hub on this machine, paused, opened, removed."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from test_tui import Driver
from test_tui_commands import kept
from textual.app import App
from textual.widgets import OptionList, Static

from edgemoe.cli import pull
from edgemoe.cli.choices import offered
from edgemoe.cli.main import main
from edgemoe.errors import EdgeMoEError
from edgemoe.models.find import find
from edgemoe.tui.fetching import Fetcher
from edgemoe.tui.records import ModelChoice
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.screens.models import ModelsScreen
from tests.hub_server import HubServer, Repository

REPO, NAME = "someone/Tiny-GGUF", "someone/Tiny-GGUF:Q4_K_M"
CONTENT = b"GGUF" + bytes(range(256)) * 4096


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.serve_client(monkeypatch, tmp_path)
        server.repositories[REPO] = Repository({"Tiny-Q4_K_M.gguf": CONTENT})
        yield server


def choices() -> list[ModelChoice]:
    try:
        find(NAME)
    except EdgeMoEError:
        return [ModelChoice("other", "Other", "2 GiB"), ModelChoice(NAME, NAME, "1 MiB to download", here=False)]
    return [ModelChoice("other", "Other", "2 GiB"), ModelChoice(NAME, NAME, "1 MiB", removable=True)]


@asynccontextmanager
async def picker(tmp_path: Path) -> AsyncIterator[Driver]:
    offered = {"choices": choices, "fetcher": Fetcher(pull.fetch), "remove": pull.removed}
    async with kept(tmp_path, services=offered, answers=["a"]) as driver:
        await show(driver)
        yield driver


async def show(driver: Driver) -> None:
    await driver.pilot.press("ctrl+o")
    await driver.until(lambda: isinstance(driver.app.screen, ModelsScreen))
    await driver.until(lambda: driver.app.screen.query_one(OptionList).option_count == 2)
    await driver.pilot.press("down")


def news(driver: Driver) -> str:
    return str(driver.app.screen.query_one("#models-news", Static).content)


async def test_a_model_is_downloaded_and_opened(tmp_path: Path, hub: HubServer) -> None:
    async with picker(tmp_path) as driver:
        await driver.pilot.press("enter")
        await driver.until(lambda: f"Enter again downloads {NAME}" in news(driver))
        await driver.pilot.press("enter")
        await driver.until(lambda: "is here" in news(driver))
        assert find(NAME).read_bytes() == CONTENT
        await driver.until(lambda: choices()[1] in driver.app.screen._models)  # type: ignore[attr-defined]
        await driver.pilot.press("down", "enter")
        await driver.until(lambda: len(driver._engines) == 2)
        assert isinstance(driver.app.screen, ChatScreen)


async def test_a_download_pauses_and_goes_on_while_its_user_chats(tmp_path: Path, hub: HubServer) -> None:
    hub.faults.pause_after = 1 << 18
    async with picker(tmp_path) as driver:
        words: list[str] = []
        driver.app._chat_screen.prompt.show_notice = words.append  # type: ignore[union-attr, method-assign]
        await driver.pilot.press("enter", "enter")
        await driver.until(lambda: hub.faults.paused.is_set() and "%" in news(driver))
        await driver.pilot.press("enter")
        hub.faults.resume.set()
        hub.faults.pause_after = 0
        await driver.until(lambda: "paused" in news(driver))
        assert choices()[1].here is False
        await driver.pilot.press("enter", "escape")  # continues without its list
        await driver.until(lambda: choices()[1].here)
        assert hub.asked("/cdn/")[-1].range.startswith("bytes="), "from where it stopped"
        toasts = driver.app._notifications  # where its list is still open
        await driver.until(lambda: any("is here" in text for text in [*words, *(note.message for note in toasts)]))


async def test_an_error_is_shown_with_a_hint(tmp_path: Path, hub: HubServer) -> None:
    hub.repositories[REPO].gated = True
    async with picker(tmp_path) as driver:
        await driver.pilot.press("enter", "enter")
        await driver.until(lambda: "licence" in news(driver) or "access" in news(driver))
        hub.repositories[REPO].gated = False
        await driver.pilot.press("enter")
        await driver.until(lambda: "is here" in news(driver))


async def test_removing_asks_once_and_frees_the_space(tmp_path: Path, hub: HubServer) -> None:
    pull.fetch(NAME, lambda share, words: True)
    async with picker(tmp_path) as driver:
        await driver.pilot.press("ctrl+d")
        await driver.until(lambda: "again removes" in news(driver))
        assert find(NAME).exists()
        await driver.pilot.press("ctrl+d")
        await driver.until(lambda: "is gone" in news(driver))
        assert choices()[1].here is False
        await driver.pilot.press("up", "up", "ctrl+d")
        await driver.until(lambda: "only what was downloaded" in news(driver))


async def test_an_open_model_is_not_removed(tmp_path: Path, hub: HubServer) -> None:
    pull.fetch(NAME, lambda share, words: True)
    with find(NAME).open("rb"):
        async with picker(tmp_path) as driver:
            await driver.pilot.press("ctrl+d")
            await driver.until(lambda: "again removes" in news(driver))
            await driver.pilot.press("ctrl+d")
            await driver.until(lambda: "in use" in news(driver))
    assert find(NAME).exists()


def test_what_was_downloaded_from_outside_the_catalogue_is_offered_and_listed(
    tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_HOME", str(tmp_path / "home"))
    assert NAME not in [choice.name for choice in offered([])]
    pull.fetch(NAME, lambda share, words: True)
    found = next(choice for choice in offered([]) if choice.name == NAME)
    assert found.here and found.removable and found.size == "1.0 MiB"
    assert NAME not in [choice.name for choice in offered([find(NAME)])], "as a file that was opened before"
    assert main(["list", "--downloaded", "--names"]) == 0
    assert capsys.readouterr().out.split() == [NAME]
    assert main(["list", "tiny"]) == 0
    assert REPO in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["others"] == [
        {"name": NAME, "bytes": len(CONTENT), "path": str(find(NAME))}
    ]


async def test_a_list_that_is_closed_while_models_are_looked_for_is_no_error() -> None:
    found = threading.Event()

    def slow() -> list[ModelChoice]:
        found.wait(10)
        return choices()

    app: App[None] = App()
    async with app.run_test() as pilot:
        screen = ModelsScreen(slow, "")
        await app.push_screen(screen)
        await screen.query_one(OptionList).remove()  # a closing screen does this before its worker stops
        found.set()
        await app.workers.wait_for_complete()
        await pilot.pause()
    assert not any(worker.error for worker in app.workers)
