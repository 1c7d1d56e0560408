"""The engine in a child process: stops, deaths and ends. The engine is scripted; the processes are real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeLlama, Script
from test_tui import Driver, plain

from edgemoe.errors import DoesNotFit, EdgeMoEError, ModelNotFound
from edgemoe.tui.app import ChatApp
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.status_line import StatusLine
from edgemoe.types import Thinking
from edgemoe.worker import EngineDied, RemoteEngine, Worker
from edgemoe.worker.parent import _cause

ROOT = Path(__file__).resolve().parent.parent
QUESTION = [{"role": "user", "content": "go"}]
LONG = "word " * 5000


def fails(error: Exception) -> FakeLlama:
    raise error


def fails_to_fit() -> FakeLlama:
    raise DoesNotFit(10 << 20, 5 << 20, "--vram 5MiB")


def aborts() -> FakeLlama:
    print("ggml.c:7: GGML_ASSERT(false) failed", file=sys.stderr, flush=True)
    os.abort()


def sleeps() -> FakeLlama:
    time.sleep(600)
    return FakeLlama()


class Deaf(FakeLlama):
    """Forget a cancel that comes before the computation, as an engine may."""

    def create_chat_completion(self, messages: Any, stream: bool = False, **sampling: Any) -> Any:
        time.sleep(0.1)
        return super().create_chat_completion(messages, stream, **sampling)


class Loud(FakeLlama):
    """Print by Python and by the file descriptor, as libraries do."""

    def create_chat_completion(self, messages: Any, stream: bool = False, **sampling: Any) -> Any:
        print("said aloud", flush=True)
        os.write(1, b"written to the standard output")
        assert os.read(0, 1) == b"", "the standard input is the engine's own"
        return super().create_chat_completion(messages, stream, **sampling)


@pytest.fixture
def engine() -> Iterator[RemoteEngine]:
    engine = Worker(partial(FakeLlama, answers=[LONG], delay_s=0.005)).open(lambda: None)
    yield engine
    engine.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_an_answer_crosses_with_its_figures_and_experts_can_be_read() -> None:
    engine = Worker(partial(FakeLlama, answers=["a b c"], n_ctx=99)).open(lambda: None)
    chunks = list(engine.create_chat_completion(QUESTION, stream=True, max_tokens=5))
    assert text_of(chunks) == "a b c" and chunks[-1]["timings"]["predicted_n"] == 3
    assert engine.thinking == Thinking()
    assert engine.n_ctx() == 99 and engine.experts.device == "sim" and engine.experts.shape is not None
    assert engine.experts.stats().tokens == 3
    assert engine.experts.residency().shape == engine.experts.heat().shape == (6, 8)
    engine.experts.resize("25%")
    assert engine.experts.stats().slots == 12
    engine.close()
    assert gone(engine.pid)


def test_how_a_model_thinks_crosses_with_its_thinking_and_calls() -> None:
    thinking, script = Thinking(True, ("off", "on")), Script("Yes.", "Let me see.", (("look", "{}"),))
    engine = Worker(partial(FakeLlama, answers=[script], thinking=thinking)).open(lambda: None)
    assert engine.thinking == thinking
    deltas = [chunk["choices"][0]["delta"] for chunk in engine.create_chat_completion(QUESTION, reasoning_effort="on")]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me see."
    assert [delta["tool_calls"][0]["function"]["name"] for delta in deltas if "tool_calls" in delta] == ["look"]
    engine.close()


def test_pinning_crosses_where_the_engine_can(engine: RemoteEngine) -> None:
    assert not engine.experts.can_pin
    able = Worker(partial(FakeLlama, pins=True)).open(lambda: None)
    assert able.experts.can_pin
    layer, expert = np.argwhere(~able.experts.residency())[0]
    able.experts.pin(int(layer), int(expert))
    assert able.experts.residency()[layer, expert]
    able.close()


def test_cancel_ends_an_answer_at_once_and_the_next_one_is_whole(engine: RemoteEngine) -> None:
    for _ in range(3):
        chunks: list[Any] = []
        for chunk in engine.create_chat_completion(QUESTION, stream=True):
            chunks.append(chunk)
            if len(chunks) == 4:
                began = time.monotonic()
                engine.cancel()
        assert time.monotonic() - began < 0.2
        assert text_of(chunks).startswith("word word")


def test_a_cancel_before_the_engine_begins_is_not_forgotten() -> None:
    engine = Worker(partial(Deaf, answers=[LONG], delay_s=0.005)).open(lambda: None)
    chunks = engine.create_chat_completion(QUESTION, stream=True)
    threading.Timer(0.05, engine.cancel).start()
    began = time.monotonic()
    assert len(text_of(list(chunks))) < 1000 and time.monotonic() - began < 1
    engine.close()


def test_a_killed_engine_fails_the_answer_and_calls_back() -> None:
    deaths: list[int] = []
    engine = Worker(partial(FakeLlama, answers=[LONG], delay_s=0.005)).open(lambda: deaths.append(1))
    chunks = engine.create_chat_completion(QUESTION, stream=True)
    next(chunks)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match="killed"):
        list(chunks)
    with pytest.raises(EngineDied):
        engine.experts.stats()
    engine.close()
    assert deaths == [1]


def test_errors_of_loading_arrive_with_their_hint() -> None:
    with pytest.raises(ModelNotFound, match="no file x") as caught:
        Worker(partial(fails, ModelNotFound("no file x", "look"))).open(lambda: None)
    assert caught.value.hint == "look"
    with pytest.raises(EdgeMoEError, match="needs 10 MiB") as unfit:
        Worker(fails_to_fit).open(lambda: None)
    assert unfit.value.hint == "--vram 5MiB"


def test_an_abort_while_loading_names_the_failure() -> None:
    with pytest.raises(EngineDied, match=r"aborted.*GGML_ASSERT"):
        Worker(aborts).open(lambda: None)


def test_what_is_printed_in_the_child_never_reaches_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello from somebody')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    engine = Worker(partial(Loud, answers=["a b"])).open(lambda: None)
    assert text_of(list(engine.create_chat_completion(QUESTION))) == "a b"
    engine.close()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (-9, "was killed"),
        (-7, "the file was cut or replaced"),
        (-11, r"crashed \(SIGSEGV\)"),
        (0xC0000005, r"crashed \(0xC0000005\)"),
        (3, r"exit code 3"),
    ],
)
def test_every_end_has_a_name_on_windows_too(status: int, said: str) -> None:
    assert re.search(said, _cause(status, "", False)[0])


def test_the_child_does_not_outlive_a_killed_parent() -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from functools import partial; from fake_engine import FakeLlama; from edgemoe.worker import Worker\n"
        "engine = Worker(partial(FakeLlama, answers=['x ' * 9999], delay_s=0.01)).open(lambda: None)\n"
        "print(engine.pid, flush=True)\n"
        "list(engine.create_chat_completion([], stream=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert gone(pid)


async def test_a_killed_engine_keeps_the_text_and_answers_the_next_question() -> None:
    worker = Worker(partial(FakeLlama, answers=[LONG, "fine"], delay_s=0.005))
    app = ChatApp(worker, ChatSettings(title="tiny"))
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(StatusLine)))
        await driver.ready()
        first = worker._engine
        assert first is not None
        await driver.send("go")
        await driver.until(lambda: bool(driver.all(AnswerTurn)) and "word" in driver.all(AnswerTurn)[0].text)
        os.kill(first.pid, signal.SIGKILL)
        await driver.until(lambda: "the engine was killed" in driver.notes())
        await driver.until(lambda: worker._engine is not first and driver.status.state == "idle")
        assert "word" in driver.all(AnswerTurn)[0].text
        await driver.send("again")
        await driver.until(lambda: len(driver.all(AnswerTurn)) == 2 and "word" in driver.all(AnswerTurn)[1].text)
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.status.state == "stopped")
        assert plain(driver.all(AnswerTurn)[1].query_one(".answer-receipt")).startswith("stopped")  # type: ignore[arg-type]
        second = worker._engine
    assert second is not None and gone(first.pid) and gone(second.pid)


async def test_quitting_while_the_model_loads_leaves_no_process() -> None:
    worker = Worker(sleeps)
    app = ChatApp(worker, ChatSettings(title="tiny"))
    began = time.monotonic()
    async with app.run_test() as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: worker._engine is not None)
        await driver.pilot.press("ctrl+q")
    assert worker._engine is not None and gone(worker._engine.pid)
    assert time.monotonic() - began < 4


def test_what_opens_the_model_has_a_name_in_the_child_and_costs_the_parent_nothing() -> None:
    code = (
        "import pickle, sys, edgemoe.worker as w\n"
        "assert pickle.loads(pickle.dumps(w.open_llama)) is w.open_llama and w.open_llama.__module__ != '__main__'\n"
        "print([name for name in ('llama_cpp', 'textual', 'torch') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
