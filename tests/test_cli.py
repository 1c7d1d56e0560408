"""The command line: the streams that outputs go to, and exit codes. The model is scripted."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLlama, Gate, Script

import edgemoe
from edgemoe import OffloadConfig
from edgemoe.cli.main import main
from edgemoe.errors import BadGguf, DoesNotFit
from edgemoe.types import Thinking

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]


class Opened:
    """Open scripted models and remember them."""

    def __init__(self, **script: Any) -> None:
        self.script = script
        self.engines: list[FakeLlama] = []

    def __call__(self, model_path: str, **keywords: Any) -> FakeLlama:
        self.engines.append(FakeLlama(model_path, **{**self.script, **keywords}))
        return self.engines[-1]


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], None]:
    """Build a demo model at once, on a machine with the named GPUs."""
    module = types.ModuleType("edgemoe.models.demo")
    module.build_demo = lambda target=None, progress=None: tmp_path / "demo.gguf"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgemoe.models.demo", module)

    def with_gpus(names: list[str]) -> None:
        engine = types.ModuleType("edgemoe.engine")
        engine.devices = lambda: names  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "edgemoe.engine", engine)

    return with_gpus


def interpreter(code: str) -> str:
    """Give the stdout of a fresh interpreter."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


# Start-up.


@pytest.mark.parametrize(
    "code",
    [
        "import edgemoe",
        "import edgemoe.cli.main",
        "import edgemoe.cli.main, sys\nsys.stdout, out = open('/dev/null', 'w'), sys.stdout\n"
        "edgemoe.cli.main.main(['--help'])\nsys.stdout = out",
        "import edgemoe.answer.receipt, edgemoe.text.display, edgemoe.text.failures",
    ],
)
def test_importing_loads_no_heavy_modules(code: str) -> None:
    names = "('textual', 'rich', 'llama_cpp', 'torch')"
    assert interpreter(f"{code}\nimport sys\nprint([name for name in {names} if name in sys.modules])") == "[]"


def test_help_does_not_even_load_numpy() -> None:
    code = "import sys, edgemoe.cli.main\nedgemoe.cli.main.main(['--version'])\nprint('numpy' in sys.modules)"
    assert interpreter(code).splitlines() == [f"edgemoe {edgemoe.__version__}", "False"]


def test_help_names_the_commands(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("chat", "demo", "run"))
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    options = "--device --vram --policy --ctx --threads --max-tokens --temperature --seed --system --think --json"
    assert all(option in text for option in options.split())


# Errors have one line, a hint and a code.


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["run", "missing.gguf", "hi"], 3, "there is no file missing.gguf", "demo"),
        (["run", ".", "hi"], 3, "is a folder", "GGUF"),
        (["run"], 2, "MODEL", "--help"),
        (["juggle"], 2, "juggle", "--help"),
        (["run", "MODEL", "hi", "--vram", "much"], 2, "not a size", "6GiB"),
        (["run", "MODEL", "hi", "--policy", "guess"], 2, "policy", "adaptive"),
        (["run", "MODEL", "hi", "--ctx", "0"], 2, "--ctx", "--help"),
        (["run", "MODEL", "  "], 2, "empty", "stdin"),
        (["chat", "MODEL"], 2, "needs a terminal", "edgemoe run"),
        ([], 2, "needs a terminal", "edgemoe run"),
    ],
)
def test_errors(arguments: list[str], code: int, error: str, hint: str, model: str, capsys: Captured) -> None:
    arguments = [model if argument == "MODEL" else argument for argument in arguments]
    opened = Opened()
    assert main(arguments, opened) == code
    out, err = capsys.readouterr()
    assert out == "" and not opened.engines
    first, second = err.splitlines()
    assert first.startswith("error: ") and error in first
    assert second.startswith("hint: ") and hint in second


@pytest.mark.parametrize(
    ("raised", "code"),
    [(DoesNotFit(2 << 30, 1 << 30, "--vram 1GiB"), 4), (BadGguf("cut"), 1), (OSError("disk"), 1)],
)
def test_errors_of_the_engine(raised: Exception, code: int, model: str, capsys: Captured) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> FakeLlama:
        raise raised

    assert main(["run", model, "hi"], refuse) == code
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(type(raised)):
        main(["run", model, "hi", "--verbose"], refuse)


def test_an_answer_that_breaks_off_closes_the_engine(model: str, capsys: Captured) -> None:
    opened = Opened(answers=["half"], fails=RuntimeError("gone"))
    assert main(["run", model, "hi"], opened) == 1
    out, err = capsys.readouterr()
    assert out == "half" and "error: RuntimeError: gone" in err and opened.engines[0].closed


# Answers.


def test_run_prints_the_answer_and_nothing_else_on_stdout(model: str, capsys: Captured) -> None:
    opened = Opened(answers=["Two words.\x1b[0m"])
    options = "--device sim --vram 50% --policy lru --ctx 512 --threads 2 --seed 7 --max-tokens 9 --temperature 0"
    assert main(["run", model, "hi", *options.split(), "--system", "Be."], opened) == 0
    out, err = capsys.readouterr()
    assert out == "Two words.\x1b[0m\n"
    (line,) = err.splitlines()
    assert "tok/s" in line and "hit rate" in line and "MiB moved" in line and line.endswith("sim")
    (engine,) = opened.engines
    assert engine.closed and engine.n_ctx() == 512 and engine.model_path == model
    assert engine.asked == [[{"role": "system", "content": "Be."}, {"role": "user", "content": "hi"}]]
    assert engine.sampling == [{"max_tokens": 9, "temperature": 0.0}]
    offload = OffloadConfig(device="sim", vram="50%", policy="lru")
    assert engine.keywords == {"n_threads": 2, "seed": 7, "offload": offload}
    assert main(["run", model, "hi", "--cache", "off"], opened) == 0
    assert opened.engines[1].keywords["offload"].cache == "off"


THINKING = Script("Yes.", "Let me\x1b[2J see.", (("look", '{"at": "the sky"}'),))


def test_run_keeps_thinking_and_calls_off_stdout(model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert main(["run", model, "hi"], Opened(answers=[THINKING])) == 0
    out, err = capsys.readouterr()
    assert out == "Yes.\n"
    call, figures = err.splitlines()
    assert call == "called look · at: the sky" and "tok/s" in figures
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["run", model, "hi"], Opened(answers=[THINKING])) == 0
    out, err = capsys.readouterr()
    assert out == "Yes.\n" and re.match(
        r"thinking \.\.\.\nLet me\[2J see\.\n\(thought for \d+ ms\)\n\ncalled look", err
    )


def test_run_of_calls_alone_prints_nothing_on_stdout(model: str, capsys: Captured) -> None:
    assert main(["run", model, "hi"], Opened(answers=[Script(calls=THINKING.calls)])) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("called look · at: the sky\n")


def test_run_json_has_thinking_and_calls(model: str, capsys: Captured) -> None:
    assert main(["run", model, "hi", "--json"], Opened(answers=[THINKING])) == 0
    choice = json.loads(capsys.readouterr().out)["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["reasoning_content"] == THINKING.thought
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == THINKING.calls[0][1]


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        (Script("one two", reason="length"), ["--max-tokens", "2"], "cut at the token limit; a larger --max-tokens"),
        (
            Script("", "one two", reason="length"),
            [],
            "cut at the end of the context while it was still thinking; a lar",
        ),
    ],
)
def test_run_names_the_reason_of_a_cut(
    script: Script, options: list[str], said: str, model: str, capsys: Captured
) -> None:
    assert main(["run", model, "hi", *options], Opened(answers=[script], thinking=Thinking(True))) == 0
    assert f"note: the answer was {said}" in capsys.readouterr().err


def test_only_a_model_that_does_not_think_has_a_limit_by_itself(model: str) -> None:
    plain, thinker = Opened(), Opened(thinking=Thinking(True))
    for opened in (plain, thinker):
        assert main(["run", model, "hi"], opened) == 0
        assert main(["run", model, "hi", "--max-tokens", "9"], opened) == 0
    assert [engine.sampling[0]["max_tokens"] for engine in plain.engines] == [1024, 9]
    assert [engine.sampling[0]["max_tokens"] for engine in thinker.engines] == [None, 9]


def test_think_reaches_a_model_that_knows_it(model: str, capsys: Captured) -> None:
    opened = Opened(thinking=Thinking(True, ("off", "on")))
    assert main(["run", model, "hi", "--think", "off"], opened) == 0
    assert main(["run", model, "hi", "--think", "high"], opened) == 0
    assert [engine.sampling[0].get("reasoning_effort") for engine in opened.engines] == ["off", None]
    err = capsys.readouterr().err
    assert "note: this model's thinking can be set to off, on, not to high: --think high is left out" in err
    assert main(["run", model, "hi", "--think", "much"], opened) == 2


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_run_reads_stdin(arguments: list[str], model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("from\na pipe"))
    opened = Opened()
    assert main(["run", model, *arguments], opened) == 0
    assert opened.engines[0].asked[0][0]["content"] == "from\na pipe"


def test_run_json(model: str, capsys: Captured) -> None:
    assert main(["run", model, "hi", "--json"], Opened(answers=["é"])) == 0
    out, err = capsys.readouterr()
    whole = json.loads(out)
    assert whole["choices"][0]["message"]["content"] == "é"
    assert whole["timings"]["predicted_n"] == 1 and whole["edgemoe"]["device"] == "sim"
    assert err == ""


def test_notes_go_to_stderr(model: str, capsys: Captured) -> None:
    assert main(["run", model, "hi"], Opened(shape=None)) == 0
    assert capsys.readouterr().err.startswith("note: dense model")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_ctrl_c_keeps_the_text_so_far(form: list[str], model: str, capsys: Captured) -> None:
    gate = Gate()
    opened = Opened(answers=["one two three"], gate=gate)

    def press() -> None:
        gate.allow(2)
        while not opened.engines or opened.engines[0].experts.stats().tokens < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    before = signal.getsignal(signal.SIGINT)
    assert main(["run", model, "hi", *form], opened) == 130
    finger.join()
    out, _ = capsys.readouterr()
    assert (json.loads(out)["choices"][0]["message"]["content"] if form else out.strip()) == "one two"
    assert opened.engines[0].closed and signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_loading(model: str, capsys: Captured) -> None:
    def pressed(*arguments: Any, **keywords: Any) -> FakeLlama:
        raise KeyboardInterrupt

    assert main(["run", model, "hi"], pressed) == 130


def test_a_reader_that_goes_away_is_no_traceback(model: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from edgemoe.cli.main import main\nfrom fake_engine import FakeLlama\n"
        "opened = lambda path, **keywords: FakeLlama(path, answers=['word ' * 30000], **keywords)\n"
        "raise SystemExit(main(['run', sys.argv[1], 'hi'], opened))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, model, str(ROOT / "tests")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert child.stdout and child.stderr
    child.stdout.read(10)
    child.stdout.close()
    assert b"Traceback" not in child.stderr.read()
    assert child.wait() == 1


# The demo.


def test_demo_without_a_gpu_is_simulated(demo: Callable[[list[str]], None], capsys: Captured) -> None:
    demo([])
    opened = Opened(answers=["An answer."])
    assert main(["demo", "--ask", "why?"], opened) == 0
    assert capsys.readouterr().out == "An answer.\n"
    (engine,) = opened.engines
    offload = engine.keywords["offload"]
    assert (offload.device, offload.vram) == ("sim", "50%") and offload.sim.bandwidth > 0
    assert engine.asked[0][-1]["content"] == "why?"


def test_demo_with_a_gpu_uses_it(demo: Callable[[list[str]], None], capsys: Captured) -> None:
    demo(["CUDA0"])
    opened = Opened()
    assert main(["demo"], opened) == 0  # without a terminal the demo answers its own question
    assert opened.engines[0].keywords["offload"] == OffloadConfig(vram="50%")
    assert "mixture of experts" in opened.engines[0].asked[0][-1]["content"]
    assert main(["run", "demo", "hi", "--device", "none"], opened) == 0
    assert opened.engines[1].keywords["offload"].device == "none"


def test_demo_progress_is_for_terminals_only(
    demo: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    demo([])

    def build(target: Path | None = None, progress: Callable[[float, str], None] | None = None) -> Path:
        if progress:
            progress(0.5, "experts")
        return Path("demo.gguf")

    monkeypatch.setattr(sys.modules["edgemoe.models.demo"], "build_demo", build)
    assert main(["demo", "--ask", "why?"], Opened()) == 0
    assert "experts\x1b" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["demo", "--ask", "why?"], Opened()) == 0
    assert " 50%  experts" in capsys.readouterr().err


# On a terminal.


def test_the_chat_opens_on_a_terminal_and_quits(model: str) -> None:
    """On a real pseudo-terminal, the chat draws, Ctrl+Q leaves, and the exit code is 0."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from edgemoe.cli.main import main\nfrom fake_engine import FakeLlama\n"
        "raise SystemExit(main(['chat', sys.argv[1]], FakeLlama))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, model, str(ROOT / "tests")],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment,
        start_new_session=True,
    )
    os.close(child)
    seen = b""
    end = time.monotonic() + 20
    while b"idle" not in seen and time.monotonic() < end:
        if select.select([parent], [], [], 0.1)[0]:
            seen += os.read(parent, 65536)
    assert b"idle" in seen
    os.write(parent, b"\x11")
    drained = threading.Thread(target=_drain, args=(parent,), daemon=True)
    drained.start()
    assert process.wait(10) == 0


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        pass
