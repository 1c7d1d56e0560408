"""The Llama class: automatic placement, accounts, cancelling, neighbours, failures."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import llama_cpp
import numpy as np
import psutil
import pytest

from edgemoe import BadGguf, ConfigError, Llama, ModelNotFound, OffloadConfig, SimConfig
from edgemoe.routing import trace
from edgemoe.routing.prefetch import PLAN_EVERY
from tests import parity
from tests.routing import wide_model
from tests.zoo import build
from tests.zoo.reference import plain

SIM = OffloadConfig(device="sim", vram="50%", profile="off")
PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("zoo"), "Q8_0")


@pytest.fixture(scope="module")
def want(model: Path) -> list[int]:
    reference = plain(model)
    tokens, _ = parity.answer(reference)
    reference.close()
    return tokens


def tokens_of(llm: llama_cpp.Llama) -> list[int]:
    return parity.answer(llm)[0]


@pytest.mark.parametrize("policy", ["adaptive", "lru", "lfu", "static", "off"])
def test_policies_place_and_answer(policy: str, model: Path, want: list[int]) -> None:
    llm = parity.open_ours(model, OffloadConfig(device="sim", vram="50%", profile="off", policy=policy))
    assert tokens_of(llm) == want  # uploads are still under way
    assert llm.experts.wait()
    assert tokens_of(llm) == want
    assert llm.experts.wait()
    stats = llm.experts.stats()
    resident = llm.experts.residency()
    llm.close()
    assert (resident.sum() == stats.resident) and (stats.resident == 0) == (policy == "off")
    assert (stats.hits > 0) == (policy != "off")


def test_figures(model: Path) -> None:
    llm = parity.open_ours(model, SIM)
    shape = llm.experts.shape
    assert shape is not None and llm.experts.device == "sim"
    llm.eval(PROMPT)
    llm.eval([7])
    heat, last = llm.experts.heat(), llm.experts.last()
    llm.close()
    assert heat.shape == (shape.layers, shape.experts) and last.shape == (shape.layers, shape.used)
    assert heat[0].sum() == (len(PROMPT) + 1) * shape.used
    assert all(len(set(row)) == shape.used and (row >= 0).all() for row in last)


def test_record_writes_a_trace(model: Path, tmp_path: Path) -> None:
    llm = parity.open_ours(model, SIM)
    with llm.experts.record(tmp_path / "t.npz"):
        llm.eval(PROMPT)
        llm.eval([7])
    shape = llm.experts.shape
    last = llm.experts.last()
    llm.close()
    read = trace.read(tmp_path / "t.npz")
    assert shape is not None
    assert read.ids.shape == (len(PROMPT) + 1, shape.layers, shape.used)
    assert (np.asarray(read.ids[-1]) == last).all()


def test_resize_while_running(model: Path, want: list[int]) -> None:
    llm = parity.open_ours(model, SIM)
    stop = threading.Event()

    def resize() -> None:
        while not stop.is_set():
            for size in ("100%", "0%", "50%"):
                llm.experts.resize(size)

    thread = threading.Thread(target=resize)
    thread.start()
    try:
        for _ in range(5):
            assert tokens_of(llm) == want
    finally:
        stop.set()
        thread.join()
    with pytest.raises(ConfigError):
        llm.experts.resize("much")
    llm.close()


def test_answers_carry_their_account(model: Path) -> None:
    llm = parity.open_ours(model, SIM)
    answer = llm.create_completion(PROMPT, max_tokens=8, temperature=0)
    *_, last = llm.create_completion([*PROMPT, 3], max_tokens=8, temperature=0, stream=True)
    llm.close()
    assert answer["timings"]["prompt_n"] == len(PROMPT)
    assert answer["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]
    assert last["timings"]["cache_n"] > 0
    for dictionary in (answer, last):
        receipt, timings = dictionary["edgemoe"], dictionary["timings"]
        assert timings["predicted_n"] >= 8 and timings["predicted_per_second"] > 0
        assert receipt["hits"] + receipt["misses"] > 0 and 0 <= receipt["hit_rate"] <= 1
        assert receipt["device"] == "sim" and receipt["moe_ms"] > 0


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * 80])
def test_cancel_keeps_the_generated_text(prompt: list[int], model: Path) -> None:
    llm = Llama(model, n_ctx=4096, n_threads=1, offload=SIM)
    never_ends = {llm.token_eos(): -100.0}
    timer = threading.Timer(0.1, llm.cancel)
    timer.start()
    started = time.perf_counter()
    pieces = list(llm.create_completion(prompt, max_tokens=None, temperature=1.0, logit_bias=never_ends, stream=True))
    assert time.perf_counter() - started < 2.0
    timer.join()
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    again = llm.create_completion(PROMPT, max_tokens=4, temperature=0)
    llm.close()
    assert again["timings"]["predicted_n"] >= 4


@pytest.mark.parametrize("stream", [True, False])
def test_cancel_before_the_first_token_is_an_empty_answer(stream: bool, model: Path) -> None:
    llm = Llama(model, n_ctx=4096, n_threads=1, offload=SIM)
    evaluate = llm.eval

    def cancelled_at_once(tokens: list[int]) -> None:
        llm.cancel()
        evaluate(tokens)

    llm.eval = cancelled_at_once
    answer = llm.create_completion(
        PROMPT, max_tokens=4, stream=stream, stopping_criteria=lambda ids, logits: ids[-1] == 0
    )
    choice = (list(answer)[-1] if stream else answer)["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"] == ""
    del llm.eval
    assert llm.create_completion(PROMPT, max_tokens=4, temperature=0)["timings"]["predicted_n"] >= 4
    llm.close()


def test_profile_is_kept_for_the_next_start(model: Path, home: Path) -> None:
    config = OffloadConfig(device="sim", vram="50%", policy="static")
    llm = parity.open_ours(model, config)
    llm.eval(PROMPT)
    llm.eval([7])
    heat = llm.experts.heat()
    llm.close()
    assert list((home / "data" / "profiles").iterdir())
    llm = parity.open_ours(model, config)
    llm.experts.wait()
    resident = llm.experts.residency()
    llm.close()
    for row, hot in zip(heat, resident, strict=True):
        assert row[hot].min() >= row[~hot].max()


def test_a_plain_llama_beside_ours_is_left_alone(model: Path, want: list[int]) -> None:
    before = plain(model)
    first = parity.answer(before)[1]
    llm = parity.open_ours(model, SIM)
    beside = plain(model)
    assert tokens_of(llm) == want
    for other in (before, beside):
        assert (parity.answer(other)[1] == first).all()
        assert other.model_params.tensor_buft_overrides is None
    llm.close()
    after = plain(model)
    assert (parity.answer(after)[1] == first).all()
    for other in (before, beside, after):
        other.close()


def test_two_models_of_ours(model: Path, want: list[int]) -> None:
    one = parity.open_ours(model, SIM)
    two = parity.open_ours(model, OffloadConfig(device="none", profile="off"))
    assert tokens_of(one) == tokens_of(two) == want
    assert two.experts.stats().hits == 0 and two.experts.stats().misses > 0
    one.close()
    assert tokens_of(two) == want
    two.close()


def test_loaded_instead_of_mapped(model: Path, want: list[int]) -> None:
    with parity.defaults("model", use_extra_bufts=False):
        llm = Llama(model, n_ctx=128, n_threads=1, n_gpu_layers=0, use_mmap=False, offload=SIM)
    assert tokens_of(llm) == want
    llm.close()


FAULTS = [SimConfig(fail_copy=n) for n in (1, 2, 3, 7)] + [SimConfig(fail_compute=n) for n in (1, 2, 5)]
FAULTS += [SimConfig(fail_alloc=n) for n in (1, 2, 3, 4, 5, 6)] + [
    SimConfig(jitter_us=300),
    SimConfig(capacity=100_000),
]
FAULTS += [SimConfig(fail_register=n) for n in (1, 2)]
FAULTS += [SimConfig(bandwidth=20_000_000, latency_us=50)]


@pytest.mark.parametrize("sim", FAULTS, ids=str)
def test_faults_of_the_device_never_change_a_token(sim: SimConfig, model: Path, want: list[int]) -> None:
    config = OffloadConfig(device="sim", vram="50%", profile="off", stream_tokens=2, prefill_tokens=8, sim=sim)
    llm = parity.open_ours(model, config, gpu_layers=0)  # else llama.cpp meets faults first
    assert tokens_of(llm) == want
    assert llm.experts.wait()  # uploads without a fault are on the device now, even on a busy machine
    assert tokens_of(llm) == want
    assert llm.experts.wait()
    stats = llm.experts.stats()
    notes = llm.experts.notes
    llm.close()
    if sim.fail_alloc == 1 or sim.capacity < 1 << 40:
        assert any("no room" in note for note in notes)
    if sim.fail_compute:
        assert stats.device_fallbacks > 0
    if sim.fail_copy == 1:
        assert stats.failed_uploads > 0 and stats.resident == 0


@pytest.mark.parametrize(
    "faults", [{}, {"fail_copy": 50}, {"fail_compute": 3}, {"jitter_us": 300}, {"fail_alloc": 5}], ids=str
)
@pytest.mark.parametrize("vram", ["0%", "50%"])
def test_misses_that_the_device_fetches_change_no_token(
    vram: str, faults: dict[str, int], model: Path, want: list[int]
) -> None:
    sim = SimConfig(fetch_all=True, **faults)
    config = OffloadConfig(device="sim", vram=vram, policy="static", profile="off", sim=sim)
    llm = parity.open_ours(model, config, gpu_layers=0)
    assert tokens_of(llm) == want
    stats = llm.experts.stats()
    llm.close()
    assert 0 < stats.fetched <= stats.misses or "fail_alloc" in faults
    assert stats.fetched == stats.misses > 0 or faults
    assert stats.device_fallbacks > 0 or "fail_compute" not in faults


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    "faults",
    [
        *({"fail_copy": n} for n in (1, 2, 3, 7)),
        *({"fail_register": n} for n in (1, 2)),
        {"jitter_us": 300},
        {"bandwidth": 20_000_000, "latency_us": 50},
        {"fetch_all": True},
        {"fetch_all": True, "fail_copy": 7},
        {"fetch_all": 2},
        {"fetch_all": 2, "fail_copy": 7},
    ],
    ids=str,
)
def test_faults_change_no_token_where_the_device_computes_the_rest(
    faults: dict[str, int], early: bool, model: Path, want: list[int]
) -> None:
    sim = SimConfig(early=early, **faults)
    llm = parity.open_ours(model, OffloadConfig(device="sim", vram="50%", profile="off", sim=sim))
    for _ in range(2):
        assert tokens_of(llm) == want
        assert llm.experts.wait()
    stats = llm.experts.stats()
    llm.close()
    assert stats.misses > 0 and (stats.hits > 0) == (faults.get("fail_copy", 7) > 3)
    assert stats.fetched > 0 or "fetch_all" not in faults
    assert stats.cpu_ns >= 0
    assert (stats.fetched < stats.misses) == (faults.get("fetch_all") != 1 or "fail_copy" in faults)
    assert stats.failed_uploads > 0 or "fail_copy" not in faults


def test_a_device_that_pretends_gets_no_dense_part(model: Path) -> None:
    config = OffloadConfig(device="sim", vram="50%", profile="off", sim=SimConfig(compute_rate=10**12, early=True))
    with pytest.raises(ConfigError, match="pretends"):
        parity.open_ours(model, config, gpu_layers=-1)
    llm = Llama(model, offload=config, n_ctx=128)
    tokens_of(llm)
    hits = llm.experts.stats().hits
    llm.close()
    assert hits > 0 and llm.model_params.n_gpu_layers == 0


@pytest.mark.parametrize("least", [1, 2, 3])
def test_a_short_prefill_is_summed_too(least: int, model: Path, want: list[int]) -> None:
    sim = SimConfig(fetch_all=True)
    config = OffloadConfig(device="sim", vram="50%", profile="off", prefill_tokens=least, stream_tokens=2, sim=sim)
    llm = parity.open_ours(model, config)
    assert tokens_of(llm) == want and (llm.experts.stats().fetched == 0) == (least == 1)
    llm.close()


def test_nothing_is_fetched_where_nothing_may_be_streamed(model: Path, want: list[int]) -> None:
    config = OffloadConfig(device="sim", vram="50%", profile="off", stream_tokens=0, sim=SimConfig(fetch_all=True))
    llm = parity.open_ours(model, config)
    assert tokens_of(llm) == want and llm.experts.stats().fetched == 0
    llm.close()


@pytest.mark.parametrize("pin", [True, False])
def test_pinned_memory_is_read_without_staging(pin: bool, tmp_path: Path) -> None:
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="100%", profile="off", pin=pin))
        assert llm.experts.wait()
        stats = llm.experts.stats()
        llm.close()
    assert stats.upload_bytes > 0 and stats.direct_bytes <= stats.upload_bytes
    assert (stats.direct_bytes > 0) == pin, "experts on the edge of a page are staged"


@pytest.mark.parametrize("policy", ["adaptive", "lru", "static"])
def test_a_pinned_expert_comes_and_stays(tmp_path: Path, policy: str) -> None:
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="30%", policy=policy, profile="off"))
        llm.experts.wait()
        layer, expert = map(int, np.argwhere(~llm.experts.residency())[0])
        other = int(np.flatnonzero(llm.experts.residency()[layer])[0])
        for chosen in (expert, other):
            llm.experts.pin(layer, chosen)
        for _ in range(2):
            llm.experts.force(np.tile(np.arange(10, 14, dtype=np.int32), (40, 4, 1)))
            for step in range(40):
                llm.eval([step])
                if step > 10:
                    llm.experts.wait()
                    assert llm.experts.residency()[layer, [expert, other]].all()
            llm.experts.resize("35%")
            llm.experts.wait()
        assert llm.experts.pinned().sum() == 2
        with pytest.raises(ConfigError):
            llm.experts.pin(0, 32)
        llm.experts.pin(layer, expert, False)
        assert llm.experts.pinned().sum() == 1
        llm.close()


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_freed_with_uploads_in_flight(rounds: int, model: Path) -> None:
    slow = OffloadConfig(device="sim", vram="100%", profile="off", sim=SimConfig(latency_us=20_000))
    resident = [psutil.Process().memory_info().rss]
    for _ in range(rounds):
        llm = parity.open_ours(model, slow, gpu_layers=0)
        llm.eval([5])
        assert llm.experts.stats().pending > 0
        llm.close()
        resident.append(psutil.Process().memory_info().rss)
    assert resident[-1] - resident[len(resident) // 2] < 4 << 20, "no leak: a model has 1.6 MB"


def test_dense_model_runs_and_says_so(tmp_path: Path) -> None:
    from tests.dense import write_dense

    llm = Llama(write_dense(tmp_path / "dense.gguf"), n_ctx=64, n_threads=1, offload=SIM)
    assert llm.experts.shape is None and "no routed experts" in llm.experts.notes[0]
    assert len(tokens_of(llm)) == parity.STEPS
    assert llm.experts.residency().size == 0
    llm.close()


def test_pattern_not_understood_runs_and_says_so(tmp_path: Path) -> None:
    llm = parity.open_ours(build("llama", tmp_path, "NVFP4"), SIM)
    tokens_of(llm)
    assert any("runs as in llama.cpp" in note for note in llm.experts.notes)
    llm.close()


def test_budget_too_small_says_so(model: Path, want: list[int]) -> None:
    llm = parity.open_ours(model, OffloadConfig(device="sim", vram=1000, profile="off"))
    assert tokens_of(llm) == want
    assert any("below 2 x top-k" in note for note in llm.experts.notes)
    assert llm.experts.stats().slots == 0
    llm.close()


def test_bad_files(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelNotFound):
        Llama(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("not a model, but long enough for a header")
    with pytest.raises(BadGguf, match="not a GGUF"):
        Llama(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(BadGguf, match="cut off"):
        Llama(tmp_path / "cut.gguf")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(model.read_bytes())
    with pytest.raises(ModelNotFound, match="00002-of-00002"):
        Llama(tmp_path / "m-00001-of-00002.gguf")


def test_unknown_device(model: Path) -> None:
    with pytest.raises(ConfigError, match="CUDA7"):
        Llama(model, offload=OffloadConfig(device="CUDA7"))


def test_nothing_is_written_to_the_terminal(model: Path) -> None:
    code = (
        "import sys; from edgemoe import Llama, OffloadConfig\n"
        f"llm = Llama({str(model)!r}, n_ctx=64, offload=OffloadConfig(device='sim', vram='50%'))\n"
        "llm.create_completion([5, 6, 7], max_tokens=4); llm.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"" and done.stderr == b""


def test_messages_reach_the_logger(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("edgemoe.llama")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.DEBUG)
    try:
        parity.open_ours(model, SIM).close()
    finally:
        logger.removeHandler(caplog.handler)
    assert any("EdgeMoE model buffer size" in record.message for record in caplog.records)


def test_a_prompt_teaches_the_predictor_no_token_that_never_was(tmp_path: Path) -> None:
    """In the last layer llama.cpp computes one token of a long batch. This is not a decode step."""
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="50%", profile="off", synchronous=True))
        llm.eval(list(range(20)))
        for token in range(3):
            llm.eval([token])
        predictor = llm._scheduler.predictor
        assert predictor is not None and predictor.learnt().tokens == 3
        llm.close()


@pytest.mark.parametrize("vram", ["0%", "50%", "100%"])
def test_a_long_prompt_is_one_batch_of_the_history(vram: str, model: Path, tmp_path: Path) -> None:
    """The last layer counts, too: llama.cpp computes only the last token there."""
    prompt = [5 + 7 * i % 90 for i in range(40)]
    seen = {}
    for layers in (0, -1):
        config = OffloadConfig(device="sim", vram=vram, policy="static", profile="off")
        llm = parity.open_ours(model, config, gpu_layers=layers)
        llm.experts.wait()
        with llm.experts.record(tmp_path / "t.npz"):
            llm.eval(prompt)
            llm.eval([7])
        heat, last = llm.experts.heat(), llm.experts.last()
        llm.close()
        found = trace.read(tmp_path / "t.npz")
        assert found.tokens is not None and found.tokens.tolist() == [*prompt, 7]
        assert found.is_decode is not None and found.is_decode.tolist() == [False] * 40 + [True]
        seen[layers] = found.ids, heat, last
    for one, other in zip(seen[0], seen[-1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_unreferenced_model_is_freed(tmp_path: Path) -> None:
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="50%", profile="off"))
        llm.eval([1])
        gone = weakref.ref(llm)
        del llm
        gc.collect()
        assert gone() is None
        assert not any(thread.name == "edgemoe-watchdog" for thread in threading.enumerate())


def test_a_pin_before_a_step_that_fails_is_not_forgotten(tmp_path: Path) -> None:
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="30%", profile="off"))
        llm.experts.wait()
        layer, expert = map(int, np.argwhere(~llm.experts.residency())[0])
        llm.experts.pin(layer, expert)
        llm._scheduler.before_step([1])
        llm._scheduler.after_step([], 0)  # nothing was computed
        for token in range(PLAN_EVERY + 1):
            llm.eval([token])
        llm.experts.wait()
        assert llm.experts.residency()[layer, expert]
        llm.close()
