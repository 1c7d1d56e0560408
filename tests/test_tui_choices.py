"""Lasting choices of the user: keys, presets, models, the conversation to resume."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLlama
from test_tui import Driver, plain, shown
from test_tui_commands import answers, ask, kept
from textual.widgets import Input, OptionList

from edgemoe.answer.record import Answer
from edgemoe.answer.sampling import MAX_TOKENS
from edgemoe.errors import ConfigError, ModelNotFound
from edgemoe.tui.app import ChatApp
from edgemoe.tui.archive import Archive
from edgemoe.tui.conversation import Conversation
from edgemoe.tui.keys import ACTIONS, Keys, load
from edgemoe.tui.presets import Preset, Presets, asks_to_save
from edgemoe.tui.recent import Recent
from edgemoe.tui.records import ChatSettings, ModelChoice, Opened
from edgemoe.tui.screens.chat import ChatScreen, Services
from edgemoe.tui.screens.help import HelpScreen
from edgemoe.tui.screens.models import ModelsScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.tui.widgets.welcome import Welcome


def written(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_are_read_and_errors_are_named(tmp_path: Path) -> None:
    assert load(tmp_path / "keys.toml") == Keys()
    keys = load(written(tmp_path, 'stop = "Ctrl+X"\nnewline = ["alt+enter", "f2"]\n'))
    assert keys.of("stop") == ("ctrl+x",) and keys.shown("newline") == "Alt+Enter" and keys.of("new") == ("ctrl+n",)
    assert keys.keymap() == {"chat.stop": "ctrl+x", "prompt.newline": "alt+enter,f2"}
    for text, why in (
        ('histroy = "f3"', "no action histroy"),
        ("stop = 3", "names no key"),
        ('stop = "ctrl+"', "names no key"),
        ("stop = []", "names no key"),
        ('stop = "ctrl+n"', "both stop and new"),
        ("stop =", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=why):
            load(written(tmp_path, text))
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, 'histroy = "f3"'))
    assert caught.value.hint == "did you mean history?"


async def test_every_action_is_a_binding_there_is(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        bound = {binding.id for _, binding in driver.app._bindings} | {b.id for _, b in driver.screen._bindings}
        await ask(driver, "hi")
        for widget in (driver.prompt, driver.all(AnswerTurn)[0]):
            bound |= {binding.id for _, binding in widget._bindings}
        assert {action.binding for action in ACTIONS} <= bound


async def test_chosen_keys_work_the_others_do_not_and_help_knows(tmp_path: Path) -> None:
    keys = Keys({"new": ("f2",), "send": ("ctrl+s",), "newline": ("enter",), "stop": ("f4",)})
    async with kept(tmp_path, keys) as driver:
        assert plain(driver.all(Welcome)[0]).count("F4 stop") == 1
        assert "Ctrl+S send" in str(driver.prompt.border_subtitle)
        await driver.pilot.press("h", "enter", "i", "ctrl+s")
        await driver.until(lambda: bool(driver.engine.asked))
        assert driver.engine.asked[0][-1]["content"] == "h\ni"
        await driver.until(lambda: driver.status.state == "idle")
        await driver.pilot.press("ctrl+n")
        assert answers(driver)
        driver.prompt.text = "/help"
        await driver.pilot.press("ctrl+s")
        await driver.until(lambda: isinstance(driver.app.screen, HelpScreen))
        await driver.until(lambda: "Ctrl+S" in shown(driver) and "Ctrl+N" not in shown(driver))
        await driver.pilot.press("escape")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        await driver.pilot.press("f2")
        await driver.until(lambda: not answers(driver))


def test_presets_come_back_and_damage_is_nothing(tmp_path: Path) -> None:
    presets = Presets(tmp_path / "sub" / "presets.json")
    assert presets.of("tiny") == Preset()
    presets.save("tiny", Preset("Be kind.", {"top_k": 5}))
    presets.save("other", Preset())
    assert Presets(tmp_path / "sub" / "presets.json").of("tiny") == Preset("Be kind.", {"top_k": 5})
    (tmp_path / "sub" / "presets.json").write_text('{"tiny": {"system": 3, "sampling": {"top_k": "x", "seed": 1}}}')
    assert presets.of("tiny") == Preset("", {"seed": 1})
    (tmp_path / "sub" / "presets.json").write_text("{")
    assert presets.of("tiny") == Preset()
    assert asks_to_save("top_k 3 --save") == ("top_k 3", True) and asks_to_save("--saved") == ("--saved", False)


async def test_save_keeps_a_preset_and_another_model_brings_its_own(tmp_path: Path) -> None:
    Presets(tmp_path / "presets.json").save("other", Preset("Rhyme.", {"top_k": 3}))
    async with kept(tmp_path) as driver:
        await driver.send("/set temperature 0.25 --save")
        await driver.until(lambda: "kept for tiny" in driver.notes())
        assert Presets(tmp_path / "presets.json").of("tiny") == Preset("", {"temperature": 0.25})
        await driver.send("/model other")
        await driver.until(lambda: len(driver._engines) == 2)
        await driver.ready()
        await driver.send("hi")
        await driver.until(lambda: bool(driver._engines[1].asked))
        assert driver._engines[1].sampling[0] == {"top_k": 3, "top_p": 0.9, "max_tokens": MAX_TOKENS}, (
            "and not what was kept for tiny"
        )
        assert driver._engines[1].asked[0][0] == {"role": "system", "content": "Rhyme."}


async def test_the_picker_narrows_and_opens_a_model(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["a"]) as driver:
        await ask(driver, "hi")
        await driver.pilot.press("ctrl+o")
        await driver.until(lambda: isinstance(driver.app.screen, ModelsScreen))
        found = driver.app.screen.query_one(OptionList)
        await driver.until(lambda: found.option_count == 2)
        await driver.pilot.press("3", "space", "g", "i", "b")
        await driver.until(lambda: found.option_count == 1 and driver.app.screen.query_one(Input).value == "3 gib")
        await driver.pilot.press("enter")
        await driver.until(lambda: len(driver._engines) == 2)
        await driver.ready()
        assert driver.status.model == "third" and answers(driver) == ["a"]
        await driver.pilot.press("ctrl+o")
        await driver.until(lambda: isinstance(driver.app.screen, ModelsScreen))
        await driver.pilot.press("escape")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen))
        assert len(driver._engines) == 2


def test_recent_files_exist_and_the_newest_is_first(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    recent = Recent(tmp_path / "data" / "recent.json")
    assert recent.files() == []
    for file in [*files, files[0]]:
        file.write_bytes(b"")
        recent.add(file)
    files[1].unlink()
    assert recent.files() == [files[0], files[2]]
    (tmp_path / "data" / "recent.json").write_text("[")
    assert recent.files() == []


async def test_resume_opens_the_last_conversation(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "chats.db", print)
    for question in ("old?", "new?"):
        chat = Conversation(archive, "tiny")
        chat.add("user", question)
        chat.end(Answer(f"answer to {question}"))
    archive.close()
    async with kept(tmp_path, resume=True, answers=["More."]) as driver:
        await driver.until(lambda: answers(driver) == ["answer to new?"])
        await ask(driver, "and?")
        assert [message["content"] for message in driver.engine.asked[0]] == ["new?", "answer to new?", "and?"]
        assert driver.screen.query_one(Prompt).text == ""


async def test_keys_do_not_wait_while_another_model_is_looked_for() -> None:
    found = threading.Event()

    def slow(name: str) -> Opened:
        found.wait(10)
        return Opened(name, InThisProcess(FakeLlama))

    app = ChatApp(InThisProcess(FakeLlama), ChatSettings("tiny"), services=Services(open_model=slow))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(Prompt)))
        await driver.ready()
        await driver.send("/model other")
        await driver.send("/stats")
        await driver.until(lambda: "nothing has been counted yet" in driver.notes() or "decode" in driver.notes())
        found.set()
        await driver.until(lambda: driver.status.model == "other" and driver.status.state == "idle")


async def test_without_a_model_the_list_opens_and_the_first_question_is_answered(tmp_path: Path) -> None:
    choices = [ModelChoice("demo", "demo", "a small model"), ModelChoice("big", "big", "9 GiB to download", here=False)]
    idle = "A card lies idle: edgemoe setup makes it usable."
    offered = Services(lambda name: Opened(name, InThisProcess(FakeLlama)), lambda: choices, advice=idle)
    app = ChatApp(None, ChatSettings(""), tmp_path / "chats.db", offered)
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ModelsScreen) and "big" in shown(driver))
        await pilot.press("escape")
        await driver.until(lambda: "No model is open yet" in shown(driver) and idle in shown(driver))
        await driver.send("hello")
        assert driver.prompt.text == "hello" and driver.status.state == "no model"
        await pilot.press("ctrl+o")
        await driver.until(lambda: isinstance(app.screen, ModelsScreen) and "big" in shown(driver))
        await pilot.press("enter")
        await driver.until(lambda: driver.status.state == "idle")
        await pilot.press("enter")
        await driver.until(lambda: "Hello there." in shown(driver))
        assert driver.screen.conversation.document().model == "demo"


async def test_a_model_that_cannot_be_opened_at_first_leaves_the_choice(tmp_path: Path) -> None:
    def missing(name: str) -> Opened:
        raise ModelNotFound("there is no file x.gguf")

    app = ChatApp(None, ChatSettings(""), services=Services(missing, lambda: [ModelChoice("x", "x")]))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ModelsScreen) and bool(app.screen._models))
        await pilot.press("enter")
        await driver.until(lambda: "there is no file x.gguf" in driver.notes())
        assert driver.status.state == "no model"


async def test_loading_tells_how_much_is_read(tmp_path: Path) -> None:
    loads = threading.Event()

    class Slow(InThisProcess):
        def open(self, died: Callable[[], None], read: Callable[[float], None]) -> Any:
            read(0.42)
            loads.wait(10)
            return super().open(died, read)

    app = ChatApp(Slow(FakeLlama), ChatSettings("tiny"))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and "42 % read from the disk" in shown(driver))
        await driver.until(lambda: "loading 42 %" in shown(driver))
        loads.set()
        await driver.until(lambda: driver.status.state == "idle")


async def test_the_row_where_the_keys_are_is_seen_in_sixteen_colours() -> None:
    choices = [ModelChoice("first", "first"), ModelChoice("second", "second")]
    app = ChatApp(None, ChatSettings("", look="16"), services=Services(choices=lambda: choices))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ModelsScreen) and "second" in shown(driver))
        await pilot.press("down")

        def marked() -> list[str]:
            segments = [segment for strip in app.screen._compositor.render_strips() for segment in strip]
            return [segment.text for segment in segments if segment.style and segment.style.underline]

        await driver.until(lambda: "second" in marked())
        assert "first" not in marked()
