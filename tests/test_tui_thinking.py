"""Thinking and tool calls in the chat: apart from the answer on screen, in the database and in the next prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import FakeLlama, Gate, Script
from hypothesis import given
from hypothesis import strategies as st
from test_tui import Driver, chat, plain, shown
from test_tui_commands import answers, ask, kept
from textual.app import App, ComposeResult
from textual.widgets import Static

from edgemoe.answer.calls import in_words
from edgemoe.answer.effort import complaint, refusal
from edgemoe.answer.record import Answer, ToolCall
from edgemoe.answer.sampling import MAX_TOKENS, keywords, limit, listing
from edgemoe.tui.attachments import load
from edgemoe.tui.presets import Preset, Presets
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.store import Store
from edgemoe.tui.widgets import thought as thought_widget
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.thought import Thought, ThoughtLines, wrapped
from edgemoe.types import Thinking

THINKER = Thinking(True, ("off", "on", "high"))
ALWAYS = Thinking(True)
CALL = ("get_weather", '{"city": "Oslo", "days": 2}')


class Clock:
    """Give the session and the fold a clock that stands still between two steps of a test."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    time = SimpleNamespace(perf_counter=clock.read, monotonic=clock.read)
    monkeypatch.setattr("edgemoe.tui.session.time", time)
    monkeypatch.setattr(thought_widget, "time", time)
    yield clock


def receipt(driver: Driver) -> str:
    return plain(driver.all(AnswerTurn)[-1].query_one(".answer-receipt", Static))


def saved(folder: Path) -> list[Answer]:
    """Read the answers of the newest conversation in the database."""
    store = Store(folder / "chats.db")
    found = store.read(store.recent()[0].id)
    store.close()
    assert found is not None
    return [turn.answer for turn in found.turns if turn.role == "assistant"]


# On the screen.


async def test_the_state_and_the_fold_show_the_model_s_activity(clock: Clock) -> None:
    gate = Gate()
    async with chat(answers=[Script("Forty two.", "Let me see.\nSix times seven.")], gate=gate) as driver:
        await driver.send("hi")
        await driver.until(lambda: driver.status.state == "reading")
        clock.now = 3.0
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "thinking" and "▸ thinking · Let" in shown(driver))
        clock.now = 15.4
        gate.allow(4)
        await driver.until(lambda: "▸ thinking 12 s · Six times seven." in shown(driver))
        assert "see" not in shown(driver), "only its last line"
        clock.now = 16.0
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        assert "▸ thought for 13 s  (Ctrl+T shows it)" in shown(driver) and answers(driver) == ["Forty"]
        gate.allow(9)
        await driver.ready()
        assert "first 3.0 s" in receipt(driver), "the thinking is the first text"


async def test_the_seconds_go_on_while_nothing_comes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.tui.widgets.answer_turn.TICK_SECONDS", 0.01)
    gate = Gate()
    async with chat(answers=[Script("x", "slow thought")], gate=gate) as driver:
        await driver.send("hi")
        gate.allow(1)
        await driver.until(lambda: "▸ thinking · slow" in shown(driver))
        clock.now = 100.0
        await driver.until(lambda: "▸ thinking 1 min 40 s · slow" in shown(driver))
        gate.allow(9)
        await driver.ready()


async def test_ctrl_t_and_a_click_unfold_while_it_thinks_and_afterwards() -> None:
    gate = Gate()
    async with chat(answers=[Script("Yes.", "first\n\n[red]two[/] \x1b[31mthree")], gate=gate) as driver:
        await driver.send("hi")
        gate.allow(1)
        await driver.until(lambda: "▸ thinking · [red]two[/]" in shown(driver) and "first" not in shown(driver))
        await driver.pilot.press("ctrl+t")
        await driver.until(lambda: "▾ thinking" in shown(driver) and "first" in shown(driver))
        gate.allow(1)
        await driver.until(lambda: "[red]two[/] [31mthree" in shown(driver))
        gate.allow(9)
        await driver.ready()
        assert "(Ctrl+T hides it)" in shown(driver)
        await driver.pilot.click(".answer-fold")
        await driver.until(lambda: "▸ thought for" in shown(driver) and "[red]two" not in shown(driver))
        await driver.pilot.click(".answer-fold")
        await driver.until(lambda: "[red]two" in shown(driver))


async def test_an_answer_that_thinks_again_counts_its_seconds_on(clock: Clock) -> None:
    gate = Gate()
    async with chat(answers=[Script("Yes.", "first", again="second third")], gate=gate) as driver:
        await driver.send("hi")
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "thinking")
        clock.now = 4.0
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "answering")
        gate.allow(1)
        await driver.until(lambda: "▸ thinking 4 s · firstsecond" in shown(driver))
        assert driver.status.state == "thinking"
        gate.allow(1)
        await driver.ready()
        assert "▸ thought for 4 s" in shown(driver) and answers(driver) == ["Yes."]


async def test_a_stop_while_it_thinks_keeps_the_thought(tmp_path: Path) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=[Script("never", "one two three"), "fine"], gate=gate) as driver:
        await driver.send("go")
        gate.allow(2)
        await driver.until(lambda: driver.status.state == "thinking" and "one two" in shown(driver))
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.status.state == "stopped")
        assert receipt(driver).startswith("stopped while it was still thinking")
        gate.allow(9)
        await ask(driver, "and?")
        assert driver.engine.asked[1][1] == {"role": "assistant", "content": "", "reasoning_content": "one two"}
    assert [(answer.text, answer.thought) for answer in saved(tmp_path)] == [("", "one two"), ("fine", "")]


async def test_leaving_and_quitting_while_it_thinks_keep_the_thought(tmp_path: Path) -> None:
    for key in ("ctrl+n", "ctrl+q"):
        gate = Gate()
        async with kept(tmp_path, answers=[Script("never", f"{key} two three")], gate=gate) as driver:
            await driver.send("go")
            gate.allow(2)
            await driver.until(lambda key=key: f"{key} two" in shown(driver))  # type: ignore[misc]
            await driver.pilot.press(key)
            if key == "ctrl+n":
                await driver.ready()
        assert saved(tmp_path)[0].thought.startswith(key)


async def test_resume_shows_the_seconds_of_a_thought(tmp_path: Path, clock: Clock) -> None:
    gate = Gate()
    async with kept(tmp_path, answers=[Script("Yes.", "a secret")], gate=gate) as driver:
        await driver.send("hi")
        gate.allow(1)
        await driver.until(lambda: driver.status.state == "thinking")
        clock.now = 75.0
        gate.allow(9)
        await driver.ready()
    async with kept(tmp_path, resume=True) as driver:
        await driver.until(lambda: "▸ thought for 1 min 15 s" in shown(driver))
        assert answers(driver) == ["Yes."] and "secret" not in shown(driver)
        await driver.pilot.press("ctrl+t")
        await driver.until(lambda: "a secret" in shown(driver))


async def test_regenerate_undo_and_branches_keep_each_thought(tmp_path: Path) -> None:
    scripts = [Script("one", "thought one"), Script("two", "thought two"), "three"]
    async with kept(tmp_path, answers=scripts) as driver:
        await ask(driver, "q")
        await ask(driver, "/regen")
        await driver.send("/branch")
        await driver.until(lambda: answers(driver) == ["one"])
        assert driver.all(AnswerTurn)[0].thought == "thought one"
        await ask(driver, "more")
        sent = driver.engine.asked[-1]
        assert sent[1] == {"role": "assistant", "content": "one", "reasoning_content": "thought one"}
        await driver.send("/undo")
        await driver.until(lambda: driver.prompt.text == "more")
        assert [answer.thought for answer in driver.all(AnswerTurn)] == ["thought one"]


# A long thought.

LONG = "\n".join(f"Line {number} of a thought that goes on and on, {'word ' * 12}" for number in range(400))


class Page(App[None]):
    CSS = "ThoughtLines { height: auto; } Thought { height: auto; } .answer-fold { text-wrap: nowrap; height: 1; }"

    def __init__(self, thought: Thought | ThoughtLines) -> None:
        super().__init__()
        self.thought = thought

    def compose(self) -> ComposeResult:
        yield self.thought


async def test_an_unfolded_thought_wraps_and_draws_only_new_text(monkeypatch: pytest.MonkeyPatch) -> None:
    wraps: list[int] = []

    def counted(text: str, width: int) -> Iterator[str]:
        wraps.append(len(text))
        return wrapped(text, width)

    monkeypatch.setattr(thought_widget, "wrapped", counted)
    lines = ThoughtLines()
    lines.show(LONG)
    async with Page(lines).run_test(size=(60, 20)) as pilot:
        height = lines.size.height
        assert height == len(list(wrapped(LONG, lines.size.width))) == 800 and len(lines._strips) <= 60
        wraps.clear()
        for number in range(20):
            lines.show(LONG + " more words" * number)
            await pilot.pause()
        assert wraps and sum(wraps) < 20 * 200, "the last line, not the thought"
        assert lines.size.height > height
        await pilot.resize_terminal(40, 20)
        await pilot.pause()
        assert lines.size.height == len(list(wrapped(lines._whole, lines.size.width)))


async def test_a_folded_thought_reads_its_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    wraps: list[int] = []

    def counted(text: str, width: int) -> Iterator[str]:
        wraps.append(len(text))
        return wrapped(text, width)

    monkeypatch.setattr(thought_widget, "wrapped", counted)
    thought = Thought()
    async with Page(thought).run_test(size=(40, 10)) as pilot:
        thought.show("L", 3.0, live=True)
        await pilot.pause()
        for end in range(100, len(LONG), 100):
            thought.show(LONG[:end], 3.0, live=True)
        assert max(wraps) <= thought_widget.TAIL_CHARACTERS and sum(wraps) < 1.5 * len(LONG)
        shows = {
            "\n\nAnd so the last": "And so the last",
            " line of it is longer": "it is longer",
            " than the": "it is longer than the",
            " screen.\n": "screen.",
            "\n": "screen.",
        }
        text = LONG
        for more, seen in shows.items():
            thought.show(text := text + more, 3.0, live=True)
            await pilot.pause()
            line = pilot.app.screen._compositor.render_strips()[0].text
            assert line.rstrip() == f"▸ thinking 3 s · {seen}"


@given(st.text("ab  \n-専é", max_size=60), st.text("ab \n専", max_size=9), st.integers(2, 9))
def test_wrapping_new_text_equals_wrapping_all(text: str, more: str, width: int) -> None:
    lines, whole = list(wrapped(text, width)), list(wrapped(text + more, width))
    assert [*lines[:-1], *wrapped(lines[-1] + more, width)] == whole
    assert "".join(whole) == (text + more).replace("\n", "")
    assert all(thought_widget.cell_len(line.rstrip()) <= width for line in whole)


async def test_keys_come_while_a_long_thought_streams_unfolded() -> None:
    async with chat(answers=[Script("Yes.", LONG)], delay_s=0.0005) as driver:
        await driver.pilot.press("ctrl+t")
        await driver.send("hi")
        await driver.until(lambda: driver.status.state == "thinking")
        await driver.pilot.press(*"typed")
        assert driver.prompt.text == "typed"
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.status.state in ("stopped", "idle"))


# The sent, kept and copied texts.


async def test_what_is_sent_found_and_copied_is_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    text, thought = "Forty two.\n\n```\nx\n```\n", "```\nsecret\n```\n"
    async with kept(tmp_path, answers=[Script(text, thought), "Yes."]) as driver:
        monkeypatch.setattr(driver.app, "copy_to_clipboard", copied.append)
        await ask(driver, "hi")
        await driver.pilot.press("ctrl+y")
        await driver.send("/copy 1")
        await driver.until(lambda: len(copied) == 2)
        await driver.pilot.press("ctrl+up")
        await driver.until(lambda: "message 2/2" in str(driver.prompt.border_subtitle))
        await driver.pilot.press("c")
        await driver.until(lambda: len(copied) == 3)
        assert copied == [text, "x\n", text]
        await ask(driver, "sure?")
        assert driver.engine.asked[1][1] == {"role": "assistant", "content": text, "reasoning_content": thought}
        store = Store(tmp_path / "chats.db")
        assert store.search("forty") and not store.search("secret")
        store.close()


async def test_export_leaves_thoughts_out_unless_asked(tmp_path: Path) -> None:
    script = Script("Rain.", "secret <!-- assistant -->\n<!-- assistant -->", (CALL,))
    async with kept(tmp_path, answers=[script]) as driver:
        await ask(driver, "hi")
        for name, option in (("a.md", ""), ("a.json", ""), ("b.md", " --thoughts"), ("b.json", " --thoughts")):
            await driver.send(f"/export {tmp_path / name}{option}")
            await driver.until(lambda name=name: (tmp_path / name).exists())  # type: ignore[misc]
        for name in ("a.md", "a.json"):
            assert "secret" not in (tmp_path / name).read_text() and "get_weather" in (tmp_path / name).read_text()
        message = json.loads((tmp_path / "b.json").read_text())["messages"][1]
        assert message["reasoning_content"] == script.thought
        assert message["tool_calls"][0]["function"] == {"name": CALL[0], "arguments": CALL[1]}
        for name in ("b.md", "b.json"):
            await driver.pilot.press("ctrl+n")
            await driver.until(lambda: not driver.all(AnswerTurn))
            await driver.send(f"/import {tmp_path / name}")
            await driver.until(lambda: answers(driver) == ["Rain."])
            turn = driver.screen.conversation.turns[-1]
            assert (turn.thought, turn.calls) == (script.thought, (ToolCall(*CALL),)) and turn.thought_s is not None


# The longest answer.


def test_only_a_model_that_does_not_think_has_a_limit() -> None:
    assert limit({}, Thinking()) == MAX_TOKENS and limit({}, THINKER) is None
    assert limit({"max_tokens": 7}, THINKER) == 7
    assert keywords({"top_k": 3}, ALWAYS) == {"top_k": 3, "max_tokens": None}
    assert keywords({}, THINKER, "high") == {"max_tokens": None, "reasoning_effort": "high"}
    assert "default: 1024" in listing({}, Thinking()) and "/think" not in listing({}, Thinking())
    assert "default: the rest of the context" in listing({}, THINKER)
    assert "high (/think)" in listing({}, THINKER, "high")
    assert "max_tokens      7" in listing({"max_tokens": 7}, THINKER)


async def test_a_thinker_may_use_the_rest_of_the_context(tmp_path: Path) -> None:
    async with kept(tmp_path, thinking=THINKER) as driver:
        await ask(driver, "hi")
        await driver.send("/set max_tokens 9")
        await ask(driver, "hi")
        assert driver.engine.sampling == [{"max_tokens": None}, {"max_tokens": 9}]
        await driver.send("/set max_tokens default")
        await driver.until(lambda: "default: the rest of the context" in driver.notes())


@pytest.mark.parametrize(
    ("script", "settings", "said", "help"),
    [
        (Script("one two", reason="length"), {"max_tokens": 2}, "cut at the token limit · ", "/continue"),
        (Script("", "one two", reason="length"), {"max_tokens": 2}, "token limit while it was still thinking", "/set"),
        (Script("one two", reason="length"), {"max_tokens": 900}, "cut at the end of the context · ", "/ctx"),
        (Script("", "one two", reason="length"), {}, "end of the context while it was still thinking", "/ctx"),
    ],
)
async def test_the_reason_of_a_cut_is_shown(script: Script, settings: dict[str, int], said: str, help: str) -> None:
    asked = ChatSettings(title="tiny", sampling=settings, look="dark")
    async with chat(chat_settings=asked, answers=[script], thinking=ALWAYS) as driver:
        await driver.send("hi")
        await driver.until(lambda: bool(driver.all(AnswerTurn)))
        await driver.ready()
        assert said in receipt(driver) and help in receipt(driver)


async def test_continue_goes_on_with_thought_and_answer_apart(tmp_path: Path) -> None:
    scripts = [Script("Once upon", "a plan"), Script(" a time.", "more plan")]
    async with kept(tmp_path, answers=scripts) as driver:
        await ask(driver, "story")
        await ask(driver, "/continue")
        assert answers(driver) == ["Once upon a time."]
        assert driver.engine.asked[1][-2] == {
            "role": "assistant",
            "content": "Once upon",
            "reasoning_content": "a plan",
        }
        assert driver.all(AnswerTurn)[0].thought == "a plan\n\nmore plan"
    (answer,) = saved(tmp_path)
    assert (answer.text, answer.thought) == ("Once upon a time.", "a plan\n\nmore plan")


async def test_continue_of_a_cut_thought_sends_the_thought_with_the_question(tmp_path: Path) -> None:
    scripts = [Script("", "a long plan", reason="length"), Script("Done.", "its end")]
    async with kept(tmp_path, answers=scripts, thinking=ALWAYS) as driver:
        await ask(driver, "story")
        await ask(driver, "/continue")
        (message,) = driver.engine.asked[1]
        assert message["role"] == "user" and message["content"].startswith("story\n")
        assert message["content"].endswith("a long plan")
    (answer,) = saved(tmp_path)
    assert (answer.text, answer.thought) == ("Done.", "a long plan\n\nits end")


async def test_continue_says_when_the_context_has_no_room(tmp_path: Path) -> None:
    async with kept(tmp_path, answers=["word " * 300], n_ctx=200) as driver:
        await ask(driver, "story")
        await driver.send("/continue")
        await driver.until(lambda: "no room in the context to go on" in driver.notes())
        assert len(driver.engine.asked) == 1 and len(driver.all(AnswerTurn)) == 1


# The levels of thinking.


def test_levels_are_refused_in_one_sentence() -> None:
    assert refusal("off", THINKER) == "" == complaint("default", THINKER)
    assert refusal("off", ALWAYS) == "this model always thinks before it answers and cannot be switched"
    assert refusal("on", Thinking()) == "this model never thinks before it answers and cannot be switched"
    assert "can be set to off, on, high, not to low" in refusal("low", THINKER)
    assert "no level much; there are: on, off, low, medium, high, default" in complaint("much", THINKER)


async def test_think_switches_levels_of_the_template(tmp_path: Path) -> None:
    async with kept(tmp_path, thinking=THINKER) as driver:
        await driver.send("/think")
        await driver.until(lambda: "thinking: default (/think off, on, high, default)" in driver.notes())
        await driver.send("/think low")
        await driver.until(lambda: "not to low" in driver.notes())
        await driver.send("/think HIGH")
        await driver.send("/set seed 3")
        await driver.until(lambda: "high (/think)" in driver.notes())
        await ask(driver, "hi")
        await driver.send("/think default")
        await ask(driver, "hi")
        assert [given.get("reasoning_effort") for given in driver.engine.sampling] == ["high", None]
        await driver.send("/think show")
        await driver.until(lambda: driver.screen.transcript.thinking_open)


@pytest.mark.parametrize(("thinking", "word"), [(ALWAYS, "always"), (Thinking(), "never")])
async def test_think_says_that_a_model_cannot_be_switched(thinking: Thinking, word: str) -> None:
    asked = ChatSettings(title="tiny", think="off", look="dark")
    async with chat(chat_settings=asked, thinking=thinking) as driver:
        said = f"this model {word} thinks before it answers and cannot be switched"
        await driver.until(lambda: f"{said}: thinking off is dropped" in driver.notes())
        await driver.send("/think")
        await driver.until(lambda: driver.notes().endswith(said))
        await driver.send("hi")
        await driver.until(lambda: bool(driver.engine.sampling))
        assert "reasoning_effort" not in driver.engine.sampling[0]
        await driver.ready()


async def test_another_model_that_does_not_know_the_level_drops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, thinking=THINKER) as driver:
        await driver.send("/think high")
        await driver.send("/model other")
        await driver.until(lambda: driver.status.model == "other" and driver.status.state == "idle")
        assert driver.screen.think == "high", "this one knows it"
        opened = FakeLlama.__init__
        monkeypatch.setattr(
            FakeLlama, "__init__", lambda self, *given, **named: opened(self, *given, **(named | {"thinking": ALWAYS}))
        )
        await driver.send("/model third")
        await driver.until(lambda: "cannot be switched: thinking high is dropped" in driver.notes())
        engine = driver._engines[-1]
        await driver.send("hi")
        await driver.until(lambda: bool(engine.sampling))
        assert "reasoning_effort" not in engine.sampling[0]
        await driver.ready()


async def test_a_level_is_kept_with_the_preset(tmp_path: Path) -> None:
    Presets(tmp_path / "presets.json").save("other", Preset(think="high"))
    async with kept(tmp_path, thinking=THINKER) as driver:
        await driver.send("/think off")
        await driver.send("/set --save")
        await driver.until(lambda: "kept for tiny" in driver.notes())
        assert driver.screen.presets is not None and driver.screen.presets.of("tiny").think == "off"
        await driver.send("/model other")
        await driver.until(lambda: driver.status.model == "other" and driver.status.state == "idle")
        assert driver.screen.think == "high", "its own: off was kept for the other"


# Tool calls.


def test_calls_in_words() -> None:
    assert in_words(ToolCall(*CALL)) == "called get_weather · city: Oslo · days: 2"
    assert in_words(ToolCall("now", "")) == "called now" and in_words(ToolCall("x", "{half")) == "called x · {half"
    assert in_words(ToolCall("f\x1b", '{"a": "\\u001b[2J\\nb", "b": [1]}')) == "called f · a: [2J b · b: [1]"


async def test_what_is_copied_of_calls_and_thoughts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    async with kept(tmp_path, answers=[Script(calls=(CALL,)), Script("", "only a thought")]) as driver:
        monkeypatch.setattr(driver.app, "copy_to_clipboard", copied.append)
        await ask(driver, "weather?")
        await driver.pilot.press("ctrl+y")
        await ask(driver, "and?")
        await driver.pilot.press("ctrl+y", "ctrl+up")
        await driver.until(lambda: "message 4/4" in str(driver.prompt.border_subtitle))
        await driver.pilot.press("c")
        await driver.until(lambda: "no answer to copy" in str(driver.prompt.border_title))
        assert copied == ["called get_weather · city: Oslo · days: 2"]


async def test_calls_are_shown_and_kept_and_not_sent(tmp_path: Path) -> None:
    scripts = [Script(calls=(CALL, ("now", "{}"))), Script("Rain.", "so", (CALL,)), "fine"]
    async with kept(tmp_path, answers=scripts) as driver:
        await ask(driver, "weather?")
        assert "called get_weather · city: Oslo · days: 2" in shown(driver) and "called now" in shown(driver)
        assert len(driver.screen.conversation.turns) == 2, "a call is an answer"
        await ask(driver, "and?")
        await ask(driver, "so?")
        assert driver.engine.asked[2] == [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "Rain.", "reasoning_content": "so"},
            {"role": "user", "content": "so?"},
        ]
    call = ToolCall(*CALL)
    assert [answer.calls for answer in saved(tmp_path)] == [(call, ToolCall("now", "{}")), (call,), ()]
    async with kept(tmp_path, resume=True) as driver:
        await driver.until(lambda: "called get_weather · city: Oslo" in shown(driver))


# Pictures.


@pytest.mark.parametrize("name", ["cat.png", "cat.JPG", "cat", "cat.webp"])
def test_a_picture_is_refused_by_name(tmp_path: Path, name: str) -> None:
    beginnings = {"cat.webp": b"RIFF\1\0\0\0WEBPVP8 ", "cat.JPG": b"\xff\xd8\xff\xe0\0\x10JFIF"}
    (tmp_path / name).write_bytes(beginnings.get(name, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"))
    with pytest.raises(ValueError, match=f"{name} is a picture: this chat sends text only.*projector"):
        load(str(tmp_path / name))


def test_what_only_begins_like_a_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "sound.riff").write_bytes(b"RIFF\1\0\0\0WAVE")
    with pytest.raises(ValueError, match="not a text file"):
        load(str(tmp_path / "sound.riff"))
    (tmp_path / "note.bmp").write_text("BM is not a picture by itself")
    assert load(str(tmp_path / "note.bmp")).text.startswith("BM")
