"""Conversations on disk: a later process may use them, and no damage may give a wrong answer."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeLlama
from test_prefix import asked, logits_after, resumed

from edgemoe import Llama, OffloadConfig
from edgemoe.cli.main import main
from edgemoe.config import home
from edgemoe.engine.kept import MOST_BYTES, SUFFIX, UNFINISHED, Folder, Header, Kept, Mark, common, key_of
from edgemoe.worker import Worker, open_llama
from tests import zoo

ROOT = Path(__file__).resolve().parent.parent
KEY = "0123abcd"
MODELS = ("llama", "jamba", "gpt-oss", "qwen35moe")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def opened(name: str, models: Path, cache: Path | str, **keywords: Any) -> Llama:
    offload = OffloadConfig(device="none", profile="off", cache=cache)
    settings: dict[str, Any] = {"n_ctx": 2048, "n_threads": 1, "n_threads_batch": 1, "swa_full": False} | keywords
    return Llama(zoo.build(name, models), offload=offload, **settings)


def conversation(seed: int = 1, size: int = 1000, tokens: int = 300) -> Kept:
    noise = np.random.default_rng(seed)
    state = noise.integers(0, 256, size, dtype=np.uint8)
    return Kept(noise.integers(0, 99, tokens).astype(np.intc), state, [Mark(100, state[:50].copy())], asked=250)


def agreeing(kept: Kept) -> Any:
    return lambda header: common(header.tokens, kept.tokens)


def written(folder: Folder, kept: Kept) -> Header:
    folder.write(kept)
    assert folder.wait(20)
    found, _ = folder.find(agreeing(kept))
    assert found is not None
    return found


def files(path: Path) -> list[str]:
    return sorted(os.listdir(path))


# One folder.


def test_reading_gives_the_written_data(tmp_path: Path) -> None:
    kept = conversation()
    written(Folder(tmp_path / "new" / "folder", KEY), kept)
    folder = Folder(tmp_path / "new" / "folder", KEY)
    header, reach = folder.find(agreeing(kept))
    assert header is not None and reach == 300 and header.asked == 250 and header.places == [100]
    again = folder.read(header)
    assert again is not None and (again.state == kept.state).all() and (again.tokens == kept.tokens).all()
    assert (again.marks[0].state == kept.marks[0].state).all() and again.marks[0].position == 100
    assert (header.path.stat().st_mode & 0o77) == 0, "nobody else reads conversations"
    assert Folder(tmp_path / "new" / "folder", "ffff").find(agreeing(kept)) == (None, 0)


@pytest.mark.parametrize("place", [0, 14, 17, 30, 60, 200, 1300, 1400, -1, -20, -600])
@pytest.mark.parametrize("how", ["changed", "short", "long"])
def test_a_damaged_file_is_removed_and_never_used(
    tmp_path: Path, place: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = conversation()
    path = written(Folder(tmp_path, KEY), kept).path
    content = bytearray(path.read_bytes())
    place %= len(content)
    if how == "changed":
        content[place] ^= 4
    content = content[:place] if how == "short" else content + b"x" * place if how == "long" and place else content
    unchanged = bytes(content) == path.read_bytes()
    path.write_bytes(content)
    folder = Folder(tmp_path, KEY)
    with caplog.at_level(logging.WARNING, "edgemoe.kept"):
        header, _ = folder.find(agreeing(kept))
        again = folder.read(header) if header else None
    assert (again is not None) == unchanged
    assert unchanged or (not files(tmp_path) and "damaged" in caplog.text)
    assert folder.find(agreeing(kept))[0] is None or unchanged


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"other{SUFFIX}").write_text("of a later version")
    folder = Folder(tmp_path, KEY)
    written(folder, conversation())
    assert {"notes.txt", f"other{SUFFIX}"} < set(files(tmp_path))


def test_the_folder_is_bounded_and_the_one_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = Folder(tmp_path, KEY, most_bytes=40_000)
    paths = []
    for seed in range(3):
        paths.append(written(folder, conversation(seed, 10_000)).path)
        os.utime(paths[-1], (seed, seed))
    header, _ = folder.find(agreeing(conversation(0, 10_000)))
    assert header is not None and folder.read(header) is not None  # used just now
    written(folder, conversation(9, 10_000))
    assert [path.exists() for path in paths] == [True, False, True]
    for seed in range(20, 30):
        written(folder, conversation(seed, 10_000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40_000
    before = files(tmp_path)
    folder.write(conversation(50, 50_000))
    assert folder.wait(20) and files(tmp_path) == before, "one that is too large drives nothing out"


def test_a_later_turn_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    folder, kept = Folder(tmp_path, KEY), conversation()
    first = written(folder, kept).path
    answer_changed = np.concatenate([kept.tokens[:255], np.full(200, 5, np.intc)])
    written(folder, Kept(answer_changed, kept.state, [], 400))
    assert not first.exists() and len(files(tmp_path)) == 1
    written(folder, Kept(answer_changed[:100], kept.state, [], 90))
    assert len(files(tmp_path)) == 2, "a branch is another conversation"


def test_files_of_killed_processes_are_removed_and_open_files_stay(tmp_path: Path) -> None:
    dead, living = tmp_path / f"a{UNFINISHED}", tmp_path / f"b{UNFINISHED}"
    dead.write_text("x")
    with living.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Folder(tmp_path, KEY)
        assert files(tmp_path) == [living.name]


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = Folder(tmp_path / "file" / "below", KEY)
    with caplog.at_level(logging.WARNING, "edgemoe.kept"):
        folder.write(conversation())
        assert folder.wait(20) and folder.find(agreeing(conversation())) == (None, 0)
    assert "not kept" in caplog.text


def test_a_full_disk_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = Folder(tmp_path, KEY)
    monkeypatch.setattr("edgemoe.engine.kept.os.fsync", full)
    with caplog.at_level(logging.WARNING, "edgemoe.kept"):
        folder.write(conversation())
        assert folder.wait(20)
    assert "No space left" in caplog.text and not files(tmp_path)


def test_each_setting_has_a_key_of_its_own() -> None:
    keys = {key_of("a", {}), key_of("b", {}), key_of("a", {"n_ctx": 1}), key_of("a", {"n_ctx": 2})}
    assert len(keys) == 4 and key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})


# A model.


@pytest.mark.parametrize("name", MODELS)
def test_a_later_process_goes_on_where_the_first_one_ended(name: str, models: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(3)
    question = [int(token) for token in noise.integers(5, 250, 900)]
    more = [int(token) for token in noise.integers(5, 250, 20)]
    with contextlib.closing(opened(name, models, tmp_path)) as llm:
        _, answer = asked(llm, question, 30)
    assert len(files(tmp_path)) == 1
    for prompt, fresh in (([*question, *answer, *more], 25), ([*question, *answer[15:], *more], 45)):
        with contextlib.closing(opened(name, models, tmp_path)) as llm, contextlib.closing(
            opened(name, models, "auto")
        ) as other:  # fmt: skip
            got, wanted = logits_after(llm, prompt), logits_after(other, prompt)
            assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()
            llm._prefix.void()
        with contextlib.closing(opened(name, models, tmp_path)) as llm:
            timings, _ = asked(llm, prompt, 2)
            assert timings["prompt_n"] <= fresh, timings
            llm._prefix.void()  # keeps no part of this


def test_other_settings_and_other_models_never_use_a_file(models: Path, tmp_path: Path) -> None:
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 600)]
    with contextlib.closing(opened("llama", models, tmp_path)) as llm:
        asked(llm, question)
    for name, keywords in (
        ("llama", {"flash_attn": True}),
        ("llama", {"rope_freq_scale": 0.5}),
        ("llama", {"swa_full": True}),
        ("llama", {"kv_overrides": {"llama.expert_used_count": 1}}),
        ("qwen3moe", {}),
    ):
        with contextlib.closing(opened(name, models, tmp_path, **keywords)) as llm:
            timings, _ = asked(llm, question)
            assert timings["cache_n"] == 0, (name, keywords)
            llm._prefix.void()
    with contextlib.closing(opened("llama", models, tmp_path)) as llm:
        assert asked(llm, question)[0]["cache_n"] == 599


@pytest.mark.parametrize("name", MODELS)
def test_a_longer_context_uses_the_files_of_a_shorter_one(name: str, models: Path, tmp_path: Path) -> None:
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 800)]
    with contextlib.closing(opened(name, models, tmp_path, n_ctx=1024)) as llm:
        wanted = asked(llm, question)[1]
    with contextlib.closing(opened(name, models, tmp_path, n_ctx=2048)) as llm:
        timings, answer = asked(llm, question)
        assert timings["cache_n"] > 700 and answer == wanted
        llm._prefix.void()


def test_a_context_that_is_too_short_for_a_file_leaves_it_alone(models: Path, tmp_path: Path) -> None:
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 800)]
    with contextlib.closing(opened("llama", models, tmp_path, n_ctx=1024)) as llm:
        asked(llm, question)
    with contextlib.closing(opened("llama", models, tmp_path, n_ctx=768)) as llm:
        assert asked(llm, question[:600])[0]["cache_n"] == 0
        llm._prefix.void()


def test_a_context_beyond_the_first_ropes_is_another_setting(models: Path, tmp_path: Path) -> None:
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 400)]
    with contextlib.closing(opened("llama", models, tmp_path, n_ctx=512)) as llm:  # trained for 512 tokens
        asked(llm, question)
    for length, cached in ((1024, 0), (512, 399)):
        with contextlib.closing(opened("llama", models, tmp_path, n_ctx=length)) as llm:
            assert asked(llm, question)[0]["cache_n"] == cached
            llm._prefix.void()


def test_a_state_that_llama_cpp_refuses_costs_time_only(models: Path, tmp_path: Path) -> None:
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 600)]
    with contextlib.closing(opened("jamba", models, tmp_path)) as llm, contextlib.closing(
        opened("jamba", models, "auto")
    ) as fresh:  # fmt: skip
        folder = llm._prefix._folder
        assert folder is not None
        noise = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)
        written(folder, Kept(np.array(question, np.intc), noise, [], 590))
        prompt = [*question, 7, 8, 9]
        got, wanted = logits_after(llm, prompt), logits_after(fresh, prompt)
        assert (got == wanted).all()


def test_off_keeps_no_states_and_auto_writes_nothing(models: Path, tmp_path: Path) -> None:
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 600)]
    with contextlib.closing(opened("jamba", models, "off")) as llm:
        asked(llm, question)
        assert llm._prefix.bytes == 0
        llm.keep()
    with contextlib.closing(opened("jamba", models, "auto")) as llm:
        asked(llm, question)
        assert llm._prefix.bytes > 0
        llm.keep()
    assert not files(tmp_path)


def test_a_displaced_conversation_is_on_disk_too(models: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(3)
    first, second = ([int(token) for token in noise.integers(5, 250, 500)] for _ in range(2))
    with contextlib.closing(opened("jamba", models, tmp_path)) as llm:
        asked(llm, first)
        asked(llm, second)
    with contextlib.closing(opened("jamba", models, tmp_path)) as llm:
        assert asked(llm, [*first, 7])[0]["prompt_n"] <= 10
        assert asked(llm, [*second, 7])[0]["prompt_n"] <= 10
    assert len(files(tmp_path)) == 2


# The chat's child process.


class Keeper(FakeLlama):
    """Report through a pipe when the engine must keep its conversation."""

    def __init__(self, pipe: str, **keywords: Any) -> None:
        sys.modules["__main__"].__dict__["IDLE_SECONDS"] = 0.01
        super().__init__(**keywords)
        self.pipe = pipe

    def keep(self) -> None:
        Path(self.pipe).write_text("kept")


def test_the_child_keeps_the_conversation_when_it_is_idle(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    engine = Worker(partial(Keeper, str(pipe), answers=["a b c"])).open(lambda: None)
    for _ in range(2):
        assert len(list(engine.create_chat_completion([{"role": "user", "content": "go"}]))) > 2
        assert pipe.read_text() == "kept"
    engine.close()


def test_a_chat_goes_on_where_an_earlier_process_ended(models: Path, tmp_path: Path) -> None:
    path = str(zoo.build("jamba", models))
    offload = OffloadConfig(device="none", profile="off", cache=str(tmp_path / "prompts"))
    source = Worker(partial(open_llama, path, n_ctx=2048, n_threads=1, n_threads_batch=1, offload=offload))
    messages = [{"role": "user", "content": "word after word " * 60}]
    reused = []
    for _ in range(2):
        engine = source.open(lambda: None)
        *_, last = engine.create_chat_completion(messages, max_tokens=4, temperature=0)
        reused.append((last["timings"]["cache_n"], last["timings"]["prompt_n"]))
        engine.close()
    assert reused[0][0] == 0 and reused[1][0] > 400 and reused[1][1] < 20


def test_the_chat_has_a_folder_and_one_answer_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    seen: list[Any] = []
    monkeypatch.setattr("edgemoe.cli.chat._chat_in_lines", lambda engines, *_: seen.append(engines) or 0)  # type: ignore[func-returns-value]
    opener: Any = partial(FakeLlama, answers=["x"])
    assert main(["chat", str(model), "--plain"], opener) == 0
    assert main(["chat", str(model), "--plain", "--cache", "off"], opener) == 0
    caches = [engines._opener.keywords["offload"].cache for engines in seen]
    assert caches == [str(home("cache") / "prompts"), "off"]


# Kills.

WRITER = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from test_kept import opened, asked
llm = opened({name!r}, Path({models!r}), Path({cache!r}))
noise = np.random.default_rng()
prompt = [int(token) for token in np.random.default_rng(3).integers(5, 250, 600)]
print("ready", flush=True)
while True:
    asked(llm, [*prompt[: noise.integers(300, 600)], *(int(token) for token in noise.integers(5, 250, 100))], 4)
    llm.keep()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_a_writer_killed_a_hundred_times_leaves_no_wrong_state(name: str, models: Path, tmp_path: Path) -> None:
    zoo.build(name, models)
    script = WRITER.format(root=str(ROOT), name=name, models=str(models), cache=str(tmp_path))
    question = [int(token) for token in np.random.default_rng(3).integers(5, 250, 600)]
    moments, reused = random.Random(7), 0
    fresh = opened(name, models, "auto")
    for _ in range(50):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(moments.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        llm = opened(name, models, tmp_path)
        assert len(list(tmp_path.glob(f"*{UNFINISHED}"))) == 0
        prompt = [*question[: moments.randrange(310, 600)], *(moments.randrange(5, 250) for _ in range(20))]
        (reach, got), wanted = resumed(llm, prompt), logits_after(fresh, prompt)
        assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()
        reused += reach > 0
        fresh.reset()
        fresh._prefix._kept.clear()
        llm._prefix.void()
        llm.close()
    fresh.close()
    assert reused > 25, "most of the time there is something to go on from"
    assert len(files(tmp_path)) < 60 * 50 and sum(path.stat().st_size for path in tmp_path.iterdir()) <= MOST_BYTES
