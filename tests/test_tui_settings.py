"""The window of settings, the first questions of an empty chat, and the chats of before."""

from __future__ import annotations

from pathlib import Path

from fake_engine import FakeLlama
from test_tui import Driver, chat, plain, shown
from test_tui_commands import ask, kept
from textual.widgets import Input, Static

from edgemoe.tui.app import ChatApp
from edgemoe.tui.presets import Presets
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.screens.chat import ChatScreen, Services
from edgemoe.tui.screens.settings import SettingsScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.widgets.head_line import HeadLine
from edgemoe.tui.widgets.welcome import STARTERS, Welcome


async def opened(driver: Driver) -> SettingsScreen:
    await driver.send("/set")
    await driver.until(lambda: isinstance(driver.app.screen, SettingsScreen))
    screen = driver.app.screen
    assert isinstance(screen, SettingsScreen)
    return screen


async def test_settings_are_used_and_wrong_ones_are_named() -> None:
    async with chat(answers=["a b"]) as driver:
        screen = await opened(driver)
        assert screen.query_one("#setting-temperature", Input).has_focus
        await driver.pilot.press(*"3", "down", *"0.5", "enter")
        news = screen.query_one("#settings-news", Static)
        await driver.until(lambda: "temperature is a number from 0 to 2" in plain(news))
        await driver.until(lambda: screen.query_one("#setting-temperature", Input).has_focus)
        await driver.pilot.press("backspace", *"0.25", "enter")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        assert driver.screen.sampling == {"temperature": 0.25, "top_p": 0.5}
        assert "temperature 0.25" in driver.screen.query_one(HeadLine).settings
        screen = await opened(driver)
        screen.query_one("#setting-top_p", Input).value = ""
        screen.query_one("#setting-system", Input).value = "Be kind."
        await driver.pilot.press("enter")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        await ask(driver, "hi")
        assert driver.engine.sampling[-1]["temperature"] == 0.25 and "top_p" not in driver.engine.sampling[-1]
        assert driver.engine.asked[-1][0] == {"role": "system", "content": "Be kind."}


async def test_esc_leaves_the_settings_as_they_were() -> None:
    async with chat() as driver:
        driver.screen.conversation.system = "two\nlines"
        screen = await opened(driver)
        await driver.pilot.press(*"1", "escape")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        assert driver.screen.sampling == {}
        screen = await opened(driver)
        assert screen.query_one("#setting-system", Input).value == "two lines"
        await driver.pilot.press("enter")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        assert driver.screen.conversation.system == "two\nlines"


async def test_settings_are_kept_for_the_model(tmp_path: Path) -> None:
    presets, engines = Presets(tmp_path / "presets.json"), [FakeLlama()]
    app = ChatApp(InThisProcess(lambda: engines[0]), ChatSettings("tiny"), services=Services(presets=presets))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, engines)
        await driver.until(lambda: isinstance(app.screen, ChatScreen))
        await driver.ready()
        await opened(driver)
        await pilot.press(*"0.75", "ctrl+s")
        await driver.until(lambda: presets.of("tiny").sampling == {"temperature": 0.75})


async def test_tab_writes_a_first_question_and_never_takes_a_letter() -> None:
    async with chat() as driver:
        await driver.pilot.press("tab")
        await driver.until(lambda: driver.prompt.text == STARTERS[0])
        await driver.pilot.press("tab", "tab", "tab")
        await driver.until(lambda: driver.prompt.text == STARTERS[0])
        await driver.pilot.press("!", "tab")
        await driver.pilot.pause()
        assert driver.prompt.text == f"{STARTERS[0]}!"
        await driver.pilot.press("enter")
        await driver.until(lambda: len(driver.screen.conversation.turns) == 2)
        await driver.ready()
        await driver.pilot.press("tab")
        await driver.pilot.pause()
        assert driver.prompt.text == "", "no first question after the first"


async def test_a_first_question_is_written_by_a_click() -> None:
    async with chat() as driver:
        await driver.until(lambda: STARTERS[1] in shown(driver))
        await driver.settled()
        line = next(at for at, text in enumerate(shown(driver).splitlines()) if STARTERS[1] in text)
        await driver.pilot.click(offset=(shown(driver).splitlines()[line].index(STARTERS[1]) + 3, line))
        await driver.until(lambda: driver.prompt.text == STARTERS[1])


async def test_an_empty_chat_offers_the_chats_of_before(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["One."]) as driver:
        await ask(driver, "What is one?")
    async with kept(tmp_path, size=(100, 40)) as driver:
        await driver.until(lambda: "What is one?" in plain(driver.all(Welcome)[0]))
        await driver.until(lambda: "What is one?" in shown(driver))
        await driver.settled()
        line = next(at for at, text in enumerate(shown(driver).splitlines()) if "What is one?" in text)
        await driver.pilot.click(offset=(shown(driver).splitlines()[line].index("What is") + 3, line))
        await driver.until(lambda: [turn.text for turn in driver.screen.conversation.turns] == ["What is one?", "One."])
