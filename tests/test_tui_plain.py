"""The chat line by line, and the themes for terminals with few colours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLlama, Script
from test_tui import chat, shown
from textual.color import Color

from edgemoe.answer.sampling import MAX_TOKENS
from edgemoe.cli.main import main
from edgemoe.tui.archive import Archive
from edgemoe.tui.plain import MORE, PROMPT, PlainChat
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.theme import LOOKS, chosen
from edgemoe.tui.widgets.expert_map import ExpertMap
from edgemoe.types import ModelShape, Thinking
from edgemoe.worker import EngineDied

ROOT = Path(__file__).resolve().parent.parent


def talk(*lines: str | type[BaseException], archive: Archive | None = None, **keywords: Any) -> tuple[str, FakeLlama]:
    """Run a plain chat over ``lines``. Give its whole output with prompts, and its last engine."""
    settings = keywords.pop("settings", ChatSettings("tiny"))
    waiting, written, engines = list(lines), [], []

    def read(prompt: str) -> str:
        written.append(prompt)
        if not waiting:
            raise EOFError
        line = waiting.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    def opened() -> FakeLlama:
        engines.append(FakeLlama(**keywords))
        return engines[-1]

    PlainChat(InThisProcess(opened), settings, archive, read, written.append).run()
    return "".join(written), engines[-1]


def test_a_question_is_answered_in_plain_lines_with_a_receipt() -> None:
    said, engine = talk("hello \\", "there", "and?", answers=["One\x1b[2J **two**.", "Three."])
    assert "ready: device sim, context 4096 tokens" in said
    assert f"{PROMPT}{MORE}One[2J **two**.\n[" in said and "tok/s" in said and "\x1b" not in said
    assert engine.asked[0][-1]["content"] == "hello \nthere"
    assert [message["content"] for message in engine.asked[1]] == ["hello \nthere", "One\x1b[2J **two**.", "and?"]
    assert engine.closed


def test_plain_commands(tmp_path: Path) -> None:
    lines = (
        "/help",
        "/system Be brief.",
        "/set top_k 7",
        "/set nonsense 1",
        "hi",
        "/stats",
        f"/export {tmp_path}/a.md",
    )
    said, engine = talk(*lines, f"/export {tmp_path}/a.md", "/regen", "/hlep", "/new", "again", "/quit", "never")
    assert "/export [FILE]" in said and "there is no setting nonsense" in said and "last answer:" in said
    assert "a.md was not written: File exists" in said and "no /regen in the plain chat" in said
    assert "did you mean /help?" in said and "hi" in (tmp_path / "a.md").read_text()
    assert engine.sampling[0] == {"top_k": 7, "max_tokens": MAX_TOKENS} and len(engine.asked) == 2
    assert [message["content"] for message in engine.asked[1]] == ["Be brief.", "again"]


def test_a_plain_chat_is_kept_and_resumed(tmp_path: Path) -> None:
    for question, count in (("first?", 1), ("second?", 3)):
        archive = Archive(tmp_path / "chats.db", print)
        _, engine = talk(question, archive=archive, settings=ChatSettings("tiny", resume=count > 1), answers=["Yes."])
        archive.close()
        assert len(engine.asked[0]) == count


def test_a_plain_answer_that_fails_says_why_and_the_chat_goes_on() -> None:
    said, engine = talk(KeyboardInterrupt, "long", answers=[""], fails=ValueError("Requested exceed context window"))
    assert "longer than the context" in said and "hint: a new chat" in said and "leaves" in said
    said, engine = talk("go", answers=["half"], fails=EngineDied("the engine was killed"))
    assert "half" in said and "the engine was killed; the conversation is kept" in said
    assert said.count("ready:") == 2 and not engine.asked


def test_plain_thinking_is_one_line_with_its_seconds() -> None:
    script = Script("Yes.", "Let me\nsee. \x1b[2J", (("look", '{"at": "the sky"}'),))
    said, engine = talk("hi", "/think show", "and?", "/think hide", answers=[script])
    first, _, second = said.partition("the thinking is written out")
    assert re.search(rf"{PROMPT}thinking \.\.\. \d+ ms\nYes\.\ncalled look · at: the sky\n\[", first), first
    assert "see" not in first
    assert re.search(r"thinking:\nLet me\nsee\. \[2J\n\(thought for \d+ ms\)\nYes\.\ncalled look", second), second
    assert engine.asked[1][1] == {"role": "assistant", "content": "Yes.", "reasoning_content": script.thought}


def test_plain_thinking_again_begins_a_line() -> None:
    said, _ = talk("hi", answers=[Script("Yes.", "one", again="two")])
    assert re.search(r"thinking \.\.\. \d+ ms\nYes\.\nthinking \.\.\. \d+ ms\n\n\[", said), said


def test_plain_levels_and_limits() -> None:
    thinker = Thinking(True, ("off", "on"))
    cut = Script("", "one two", reason="length")
    lines = ("/think", "/think low", "/think off", "/set", "hi", "/set max_tokens 2", "hi", "/think default", "hi")
    said, engine = talk(*lines, thinking=thinker, answers=[cut])
    assert (
        "thinking: default (/think off, on, default)" in said and "error: this model's thinking can be set to" in said
    )
    assert "default: the rest of the context" in said and "off (/think)" in said
    assert "[cut at the end of the context while it was still thinking · a larger --ctx makes room" in said
    assert "[cut at the token limit while it was still thinking · /set max_tokens, or --max-tokens" in said
    assert engine.sampling == [
        {"max_tokens": None, "reasoning_effort": "off"},
        {"max_tokens": 2, "reasoning_effort": "off"},
        {"max_tokens": 2},
    ]
    said, engine = talk("hi", settings=ChatSettings("tiny", think="off"))
    assert "note: this model never thinks before it answers and cannot be switched: thinking off is dropped" in said
    assert engine.sampling == [{"max_tokens": MAX_TOKENS}]


def test_plain_export_leaves_thoughts_out_unless_asked(tmp_path: Path) -> None:
    talk("hi", f"/export {tmp_path}/a.md", f"/export {tmp_path}/b.md --thoughts", answers=[Script("Yes.", "secret")])
    assert "secret" not in (tmp_path / "a.md").read_text() and "secret" in (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(("term", "options"), [("dumb", []), ("xterm", ["--plain"])])
def test_the_command_line_chooses_the_plain_chat(tmp_path: Path, term: str, options: list[str]) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from fake_engine import FakeLlama; from edgemoe.cli.main import main\n"
        "sys.exit(main(sys.argv[1:], FakeLlama))"
    )
    command = [sys.executable, "-c", code, "chat", str(tmp_path / "m.gguf"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": term, "EDGEMOE_HOME": str(tmp_path)}
    done = subprocess.run(
        command, input="hi\n", capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60, check=True
    )
    assert "Hello there." in done.stdout and "tok/s" in done.stdout and "\x1b" not in done.stdout


# Few colours.


def test_the_terminal_decides_unless_the_user_did() -> None:
    assert chosen("auto", "standard").ansi and not chosen("auto", "truecolor").ansi and not chosen("auto", None).ansi
    assert chosen("light", "standard").name == "edgemoe-light"


@pytest.mark.parametrize("look", LOOKS)
async def test_every_look_draws_the_map_and_has_a_counterpart(look: str) -> None:
    shape = ModelShape(40, 64, 4, (1,) * 40)
    async with chat(size=(80, 24), chat_settings=ChatSettings("tiny", look=look), shape=shape) as driver:
        assert driver.app.theme == LOOKS[look].name
        await driver.pilot.press("ctrl+e")
        chart = driver.screen.query_one(ExpertMap)
        await driver.until(lambda: bool(chart._lines), "a drawn map")
        glyphs = set("".join(run.glyphs for line in chart._lines for run in line if run.upper))
        # Two layers share a line here. Without shades, only the glyph tells which layer is on the device.
        assert ({"▄", "█"} & glyphs != set()) == look.startswith("16")
        assert "idle" in shown(driver)
        dark = driver.app.current_theme.dark
        driver.app.action_toggle_look()
        assert driver.app.current_theme.dark != dark and driver.app.current_theme.ansi == look.startswith("16")


def test_looks_of_16_colours_use_no_others() -> None:
    def is_of_the_terminal(name: Callable[[], str] | str) -> bool:
        return Color.parse(str(name)).ansi is not None

    for theme in (LOOKS["16"], LOOKS["16-light"]):
        inks = [theme.primary, theme.secondary, theme.warning, theme.error, theme.success, theme.accent]
        inks += [ink for name, ink in theme.variables.items() if not name.endswith("style")]
        assert all(is_of_the_terminal(ink) for ink in inks if ink)


def test_serve_without_its_package_names_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    monkeypatch.delitem(sys.modules, "edgemoe.cli.web", raising=False)  # another test may have loaded it
    assert main(["chat", "demo", "--serve"]) == 2
    assert "hint: pip install textual-serve" in capsys.readouterr().err
