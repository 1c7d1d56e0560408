"""Keys and commands that change a conversation, driven by Pilot with a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLlama, Gate
from test_tui import Driver, plain, shown
from textual import events
from textual.widgets import Input, OptionList, Static

from edgemoe.answer import sampling
from edgemoe.answer.sampling import MAX_TOKENS
from edgemoe.tui import context
from edgemoe.tui.app import ChatApp
from edgemoe.tui.archive import Archive
from edgemoe.tui.attachments import Attachment
from edgemoe.tui.conversation import Conversation
from edgemoe.tui.keys import Keys
from edgemoe.tui.presets import Presets
from edgemoe.tui.records import ChatSettings, ModelChoice, Opened
from edgemoe.tui.screens.chat import ChatScreen, Services
from edgemoe.tui.screens.history import HistoryScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.store import Store
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.attachment_bar import Chip
from edgemoe.tui.widgets.code_block import CodeBlock
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.tui.widgets.status_line import StatusLine
from edgemoe.tui.widgets.user_turn import UserTurn

DEFAULT_KEYS = Keys()


@asynccontextmanager
async def kept(
    folder: Path,
    keys: Keys = DEFAULT_KEYS,
    resume: bool = False,
    services: dict[str, Any] | None = None,
    size: tuple[int, int] = (100, 30),
    **keywords: Any,
) -> AsyncIterator[Driver]:
    """Open a chat that keeps its conversations in ``folder``."""
    engines: list[FakeLlama] = []

    def opened(path: str = "tiny") -> FakeLlama:
        engines.append(FakeLlama(path, **keywords))
        return engines[-1]

    def models(name: str) -> Opened:
        suited = {"top_p": 0.9} if name == "other" else {}
        return Opened(name, InThisProcess(lambda: opened(name)), suited | dict(presets.of(name).sampling))

    presets = Presets(folder / "presets.json")
    choices = [ModelChoice("other", "Other", "2 GiB"), ModelChoice("third", "Third", "3 GiB")]
    offered = Services(
        **({"choices": lambda: choices} | (services or {})), open_model=models, presets=presets, keys=keys
    )
    app = ChatApp(
        InThisProcess(opened), ChatSettings(title="tiny", resume=resume, look="dark"), folder / "chats.db", offered
    )
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, engines)
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(StatusLine)))
        await driver.ready()
        yield driver


async def ask(driver: Driver, text: str) -> None:
    asked = len(driver.engine.asked)
    await driver.send(text)
    await driver.until(lambda: len(driver.engine.asked) > asked, "asked")
    await driver.until(lambda: driver.status.state in ("idle", "stopped"), "answered")


def answers(driver: Driver) -> list[str]:
    return [answer.text for answer in driver.all(AnswerTurn)]


async def test_history_opens_an_earlier_chat_and_it_goes_on(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["Paris.", "Rye bread."]) as driver:
        await ask(driver, "capital of France?")
        await driver.pilot.press("ctrl+n")
        await ask(driver, "what to bake?")
    async with kept(tmp_path, answers=["Lyon."]) as driver:
        await driver.pilot.press("ctrl+r")
        await driver.until(lambda: isinstance(driver.app.screen, HistoryScreen))
        found = driver.app.screen.query_one(OptionList)
        assert found.option_count == 2
        driver.app.screen.query_one(Input).value = "pari"
        await driver.until(lambda: found.option_count == 1)
        await driver.pilot.press("enter")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen) and answers(driver) == ["Paris."])
        assert "tok/s" in plain(driver.all(AnswerTurn)[0].query_one(".answer-receipt", Static))
        await ask(driver, "and the next largest?")
        assert [message["content"] for message in driver.engine.asked[0]] == [
            "capital of France?",
            "Paris.",
            "and the next largest?",
        ]


async def test_regenerate_edit_undo_and_branches(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["one", "two", "three"]) as driver:
        await ask(driver, "q")
        await ask(driver, "/regen")
        assert answers(driver) == ["two"] and driver.engine.asked[1] == [{"role": "user", "content": "q"}]
        await driver.send("/branch")
        await driver.until(lambda: answers(driver) == ["one"])
        await driver.send("/edit")
        await driver.until(lambda: driver.prompt.text == "q" and not answers(driver))
        driver.prompt.clear()
        await ask(driver, "Q2")
        assert answers(driver) == ["three"] and len(driver.all(UserTurn)) == 1
        await driver.send("/undo")
        await driver.until(lambda: driver.prompt.text == "Q2" and not driver.all(UserTurn))
        await driver.send("/regen")
        await driver.until(lambda: "no question" in driver.notes())


async def test_continue_goes_on_in_the_same_answer(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["Once upon", " a time."]) as driver:
        await ask(driver, "story")
        await ask(driver, "/continue")
        assert answers(driver) == ["Once upon a time."]
        assert driver.engine.asked[1][-2] == {"role": "assistant", "content": "Once upon"}
        assert [turn.text for turn in driver.screen.conversation.turns] == ["story", "Once upon a time."]


async def test_what_streams_is_saved_before_it_is_complete(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=["half whole"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(1)
        await driver.until(lambda: bool(answers(driver)) and answers(driver)[0] == "half")
        other = Store(tmp_path / "chats.db")
        saved = lambda: other.read(other.recent()[0].id)  # noqa: E731
        await driver.until(lambda: saved() is not None and saved().turns[-1].text == "half", "saved")
        gate.allow(9)
        await driver.ready()


async def test_export_and_import_and_existing_files_are_spared(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["<!-- user -->\nhello"]) as driver:
        await ask(driver, "hi")
        for name in ("a.md", "a.json"):
            await driver.send(f"/export {tmp_path / name}")
            await driver.until(lambda name=name: (tmp_path / name).exists())  # type: ignore[misc]
        before = (tmp_path / "a.md").read_text()
        await driver.send(f"/export {tmp_path / 'a.md'}")
        await driver.until(lambda: "was not written" in driver.notes())
        assert (tmp_path / "a.md").read_text() == before
        for name in ("a.md", "a.json"):
            await driver.pilot.press("ctrl+n")
            await driver.until(lambda: not driver.all(AnswerTurn))
            await driver.send(f"/import {tmp_path / name}")
            await driver.until(lambda: answers(driver) == ["<!-- user -->\nhello"])
        await driver.send(f"/import {tmp_path / 'chats.db'}")
        await driver.until(lambda: "not a text file" in driver.notes())


async def test_files_and_long_pastes_go_along_with_the_question(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("print(1)\n```\n")
    async with kept(tmp_path, n_ctx=200_000) as driver:
        await driver.send("/file nowhere.txt")
        await driver.until(lambda: "there is no file" in driver.notes())
        await driver.send(f"/file {tmp_path / 'code.py'}")
        await driver.until(lambda: len(driver.all(Chip)) == 1)
        driver.prompt.post_message(events.Paste("x" * 5000))
        await driver.until(lambda: "5,000 characters" in shown(driver))
        assert driver.prompt.text == ""
        await ask(driver, "what is it?")
        sent = driver.engine.asked[0][-1]["content"]
        assert sent.startswith("code.py:\n````\nprint(1)\n```\n````") and sent.endswith("what is it?")
        assert "x" * 5000 in sent
        await ask(driver, "and now?")
        assert driver.engine.asked[1][-1]["content"] == "and now?"


async def test_a_paste_of_5_mb_does_not_freeze_and_is_refused_in_words(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        driver.prompt.post_message(events.Paste("word " * (1 << 20)))
        await driver.until(lambda: bool(driver.all(Chip)))
        await driver.send("read this")
        await driver.until(lambda: "this question alone" in driver.notes())
        assert driver.prompt.text == "read this" and not driver.engine.asked


async def test_settings(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        await driver.send("/set temperature 0.3")
        await driver.send("/set top_k many")
        await driver.until(lambda: "top_k is a whole number" in driver.notes())
        await ask(driver, "hi")
        assert driver.engine.sampling[0] == {"temperature": 0.3, "max_tokens": MAX_TOKENS}
        await driver.send("/profile")
        await driver.until(lambda: "waiting for the device" in driver.notes())


async def test_another_model_brings_its_sampling_and_the_user_s_settings_stay(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        await driver.send("/set temperature 0.3")
        for name, suited in (("other", {"top_p": 0.9}), ("third", {})):
            await driver.send(f"/model {name}")
            await driver.until(lambda name=name: driver.status.model == name and driver.status.state == "idle")
            await driver.send("hi")
            await driver.until(lambda: bool(driver._engines[-1].sampling))
            assert driver._engines[-1].sampling[0] == {"temperature": 0.3, "max_tokens": MAX_TOKENS} | suited
            await driver.ready()


async def test_another_model_takes_over_the_conversation(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["a"]) as driver:
        await ask(driver, "hi")
        await driver.send("/model other")
        await driver.until(lambda: len(driver._engines) == 2)
        await driver.ready()
        assert driver.engine.closed and driver.status.model == "other"
        await driver.send("more")
        await driver.until(lambda: bool(driver._engines[1].asked))
        assert [message["content"] for message in driver._engines[1].asked[0]] == ["hi", "a", "more"]
        await driver.ready()


async def test_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    async with kept(tmp_path, answers=["Look:\n\n```python\nx = 1\n```\n\nand\n\n```\ny\n```\n"]) as driver:
        monkeypatch.setattr(driver.app, "copy_to_clipboard", copied.append)
        await ask(driver, "hi")
        await driver.pilot.press("ctrl+y")
        for number in ("1", "2", "3"):
            await driver.send(f"/copy {number}")
        assert copied[0].startswith("Look:") and copied[1:] == ["x = 1\n", "y\n"]


async def test_code_is_highlighted_once_and_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[str] = []
    finish = CodeBlock.finish
    monkeypatch.setattr(CodeBlock, "finish", lambda block: (finished.append(block.code), finish(block))[1])
    gate = Gate()
    async with kept(tmp_path, answers=["```python\nx = 1\ny = 2\n```\n\nand more words"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(4)
        await driver.until(lambda: "y =" in "".join(answers(driver)) and bool(driver.all(CodeBlock)))
        assert not finished and not driver.all(CodeBlock)[0].coloured
        gate.allow(9)
        await driver.ready()
        await driver.until(lambda: driver.all(CodeBlock)[0].coloured)
        assert [code.strip() for code in finished] == ["x = 1\ny = 2"]


async def test_a_full_context_names_the_hidden_messages(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["word " * 30], n_ctx=400) as driver:
        for question in ["first", *"bcdefghijkl"]:
            await ask(driver, question)
        assert "full" in driver.notes() and "no longer fit the context" in driver.notes()
        assert driver.engine.asked[-1][0]["content"] != "first"
        assert driver.screen.conversation.turns[0].text == "first"


async def test_prompt_history_walks_both_ways(tmp_path: Path) -> None:
    async with kept(tmp_path) as driver:
        for text in ("one", "two"):
            await ask(driver, text)
        seen = []
        for key in ("up", "up", "up", "down", "down"):
            await driver.pilot.press(key)
            seen.append(driver.screen.query_one(Prompt).text)
        assert seen == ["two", "one", "one", "two", ""]


async def test_ctrl_n_during_an_answer_keeps_its_text(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=["one two three"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(2)
        await driver.until(lambda: bool(answers(driver)) and answers(driver)[0] == "one two")
        await driver.pilot.press("ctrl+n")
        await driver.ready()
        store = Store(tmp_path / "chats.db")
        saved = store.read(store.recent()[0].id)
        assert saved is not None and saved.turns[-1].text == "one two"


async def test_leaving_a_continued_answer_keeps_it_once(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["Once upon", " a time there was"], gate=(gate := Gate())) as driver:
        gate.allow(2)
        await ask(driver, "story")
        await driver.send("/continue")
        gate.allow(2)
        await driver.until(lambda: answers(driver) == ["Once upon a"])
        await driver.pilot.press("ctrl+n")
        await driver.ready()
        store = Store(tmp_path / "chats.db")
        saved = store.read(store.recent()[0].id)
        assert saved is not None and saved.turns[-1].text.startswith("Once upon a") and len(saved.turns) == 2
        assert saved.turns[-1].text.count("Once") == 1


async def test_an_unanswered_question_stands_in_the_prompt_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "chats.db", print)
    Conversation(archive, "tiny").add("user", "was I heard?")
    archive.close()
    async with kept(tmp_path) as driver:
        await driver.pilot.press("ctrl+r")
        await driver.until(lambda: isinstance(driver.app.screen, HistoryScreen))
        await driver.pilot.press("enter")
        await driver.until(lambda: isinstance(driver.app.screen, ChatScreen) and driver.prompt.text == "was I heard?")
        await ask(driver, "hello?")
        assert [message["role"] for message in driver.engine.asked[0]] == ["user"]


async def test_a_resize_while_streaming_keeps_everything_on_the_screen(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["word " * 200], delay_s=0.002) as driver:
        await driver.send("go")
        for size in ((40, 12), (160, 50), (20, 6), (80, 24)):
            await driver.pilot.resize_terminal(*size)
        await driver.until(lambda: driver.status.state == "idle")
        assert answers(driver)[0].split() == ["word"] * 200 and "idle" in shown(driver)


# Pure parts.


def test_fit_leaves_out_pairs_and_keeps_the_system_prompt() -> None:
    pairs = [{"role": role, "content": "x" * 350} for _ in range(4) for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "s"}, *pairs, {"role": "user", "content": "last"}]
    fitting = context.fit(messages, 500, 100, 3.5)
    assert fitting.left_out == 6 and fitting.fits
    assert fitting.messages[0]["role"] == "system" and fitting.messages[1]["role"] == "user"
    assert not context.fit([{"role": "user", "content": "x" * 9999}], 500, None, 3.5).fits
    for text, least in (("漢字" * 2000, 4000), ("🙂" * 500, 1000), ("QmFzZTY0" * 500, 2000), ("Ж" * 900, 900)):
        assert context.tokens([{"role": "user", "content": text}]) >= least, "said before it is sent"
    assert context.tokens([{"role": "user", "content": "Grüße aus Köln " * 100}]) < 600


def test_settings_in_words() -> None:
    assert sampling.change({}, "max_tokens=5") == {"max_tokens": 5}
    assert sampling.change({"seed": 1}, "seed default") == {}
    for wrong in ("nonsense 1", "top_p 2", "temperature nan", "seed 1.5", ""):
        with pytest.raises(ValueError):
            sampling.change({}, wrong)


def test_a_fence_is_longer_than_any_inside() -> None:
    assert Attachment("a", "````\n").fenced() == "a:\n`````\n````\n`````"


async def test_quitting_during_an_answer_keeps_the_drawn_text(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["one two three"], gate=(gate := Gate())) as driver:
        await driver.send("go")
        gate.allow(2)
        await driver.until(lambda: bool(answers(driver)) and answers(driver)[0] == "one two")
        await driver.pilot.press("ctrl+q")
    store = Store(tmp_path / "chats.db")
    saved = store.read(store.recent()[0].id)
    assert saved is not None and saved.turns[-1].role == "assistant" and saved.turns[-1].text.startswith("one")
