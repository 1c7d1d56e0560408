"""Replays: compared with brute force, with the engine event by event, and as a command."""

from __future__ import annotations

import itertools
import json
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.cli.main import main
from edgemoe.config import SimConfig, home
from edgemoe.engine import keeper
from edgemoe.errors import EdgeMoEError
from edgemoe.models.gguf import check, model_identity
from edgemoe.replay import replay
from edgemoe.replay.virtual_clock import Clock, ClockModel
from edgemoe.routing import predictor, trace
from edgemoe.types import IdArray, ModelShape
from tests import parity
from tests.routing import drifting, wide_model
from tests.training import need_torch, trained


def shape_of(ids: IdArray, experts: int) -> ModelShape:
    return ModelShape(ids.shape[1], experts, ids.shape[2], (1,) * ids.shape[1])


def test_belady_is_the_best_there_is() -> None:
    """The optimum equals the best of all possible sequences of evictions."""
    ids = drifting(9, 1, 5, 1, seed=3)

    def best(at: int, held: frozenset[int]) -> int:
        if at == len(ids):
            return 0
        used = int(ids[at, 0, 0])
        now = held | {used}
        smaller = [frozenset(s) for s in itertools.combinations(now, 2) if used in s] if len(now) > 2 else [now]
        return (used in held) + max(best(at + 1, s) for s in smaller)

    assert replay.belady(ids, 5, 2) == best(0, frozenset()) / 9


def test_lru_is_lru() -> None:
    ids = drifting(400, 2, 16, 2)
    hits = 0
    for layer in range(2):
        cache: OrderedDict[int, None] = OrderedDict()
        for row in ids[:, layer]:
            hits += sum(int(expert) in cache for expert in row)
            for expert in sorted(row.tolist()):
                cache[expert] = None
                cache.move_to_end(expert)
            while len(cache) > 6:
                cache.popitem(last=False)
    tally = replay.simulate("lru", ids, shape_of(ids, 16), 6, limit=2)
    assert tally.hits == pytest.approx(hits, rel=0.02), "only ties may be broken otherwise"


@pytest.mark.parametrize("name", ["lru", "lfu", "adaptive"])
def test_no_policy_beats_belady_or_loads_more_than_allowed(name: str) -> None:
    ids = drifting(300, 3, 16, 2)
    tally = replay.simulate(name, ids, shape_of(ids, 16), 5, limit=1)
    assert tally.hits / tally.pairs <= replay.belady(ids, 16, 5)
    assert tally.loads <= tally.layer_tokens


def test_what_is_learnt_pays() -> None:
    ids = drifting(5000, 6, 32, 4)
    shape, past, test = shape_of(ids, 32), ids[:4000], ids[4000:]
    tables = trained(past, 32)
    plain, learned, ahead = (
        replay.simulate("adaptive", test, shape, 8, 2, None, t, p)
        for t, p in ((None, False), (tables, False), (tables, True))
    )
    assert plain.hits < learned.hits < ahead.hits
    assert ahead.useful > 2 * ahead.wasted > 0
    assert ahead.prefetched >= ahead.useful + ahead.wasted


def test_in_another_domain_it_learns_anew() -> None:
    """A predictor that was trained on other text is not worse than the untrained predictor."""
    past, now = drifting(3000, 6, 32, 4, seed=1), drifting(2500, 6, 32, 4, seed=2)
    shape, tables = shape_of(now, 32), trained(past, 32)
    plain = [replay.simulate(name, now, shape, 8, 2).hits for name in ("lru", "lfu")]
    assert replay.simulate("adaptive", now, shape, 8, 2, None, tables, prefetch=True).hits > max(plain)


def test_the_engine_acts_as_the_replay(tmp_path: Path) -> None:
    """With the same forced routing, every token gives the same hits, misses, uploads and prefetches."""
    used, count, layers = 4, 32, 4
    ids = drifting(2500, layers, count, used)
    tables = trained(ids[:2400], count)
    with wide_model(tmp_path, count, used, layers) as path:
        identity, folder = model_identity(check(path)), home("data") / "profiles"
        predictor.save(tables, identity, folder)
        saved = predictor.load(identity, folder, (layers, count, used), [])
        llm = parity.open_ours(
            path, OffloadConfig("sim", "50%", prefetch="history", synchronous=True, profile=str(folder))
        )
        test, words = ids[2400:], np.arange(100, dtype=np.int32) % 7
        slots = llm.experts.stats().slots // layers
        assert 2 * used <= slots < count
        llm.experts.force(test)
        engine = []
        for word in words.tolist():
            llm.eval([word])
            s = llm.experts.stats()
            engine.append((s.hits, s.misses, s.uploads, s.prefetch_useful, s.prefetch_late, s.prefetch_wasted))
        resident = llm.experts.residency()
        llm.close()
    heat = np.zeros((layers, count), dtype=np.float32)
    told = [
        replay.simulate("adaptive", test[:n], shape_of(test, count), slots, 2, heat, saved, True, words[:n])
        for n in range(1, len(test) + 1, 9)
    ]
    assert engine[::9] == [(t.hits, t.pairs - t.hits, t.loads, t.useful, 0, t.wasted) for t in told]
    assert told[-1].prefetched > 10 and told[-1].wasted > 0
    assert resident.sum() == slots * layers


def test_tokens_are_the_same_with_prefetch_under_delays_and_failures(tmp_path: Path) -> None:
    ids = drifting(2400, 4, 32, 4)
    with wide_model(tmp_path) as path:
        folder = home("data") / "profiles"
        predictor.save(trained(ids, 32), model_identity(check(path)), folder)
        outcomes = []
        for prefetch, sim in (
            ("off", SimConfig()),
            ("history", SimConfig(jitter_us=300, fail_copy=7, seed=2)),
            ("history", SimConfig(bandwidth=200_000_000, latency_us=200, fail_compute=9)),
        ):
            offload = OffloadConfig(device="sim", vram="50%", prefetch=prefetch, profile=str(folder), sim=sim)
            llm = parity.open_ours(path, offload)
            outcomes.append((parity.answer(llm), llm.experts.stats()))
            llm.close()
    (tokens, logits), _ = outcomes[0]
    for (other, their_logits), _ in outcomes[1:]:
        assert other == tokens
        np.testing.assert_array_equal(their_logits, logits)


# ---- the commands ----


def write(path: Path, ids: IdArray, sequences: int = 2, experts: int = 16) -> Path:
    trace.write(path, ids, np.linspace(0, len(ids), sequences + 1).astype(int), n_expert=experts)
    return path


def test_replay_prints_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "t.npz", drifting(500, 3, 16, 2))
    assert main(["replay", str(path), "--slots", "0.25,0.5", "--uploads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "edgemoe.replay.v1" and result["tokens"] == 250
    assert [(b["fraction"], b["slots_per_layer"]) for b in result["budgets"]] == [(0.25, 4), (0.5, 8)]
    for budget in result["budgets"]:
        policies = budget["policies"]
        assert {"static", "lru", "lfu", "adaptive", "belady"} <= policies.keys()
        assert all(0 <= p["hit_rate"] <= policies["belady"]["hit_rate"] + 1e-9 for p in policies.values())
        assert all(p.get("uploads_per_token", 0) <= 1 for p in policies.values())
    assert set(result["predictors"]["table"]) >= {"recall_at_k", "recall_at_2k"}


def test_replay_learns_from_other_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_torch()
    ids = drifting(2600, 3, 16, 2)
    past, now = write(tmp_path / "past.npz", ids[:2200]), write(tmp_path / "now.npz", ids[2200:], 1)
    assert main(["replay", str(now), "--train", str(past), "--slots", "0.25"]) == 0
    out = capsys.readouterr().out
    assert "next-1" in out and "belady" in out and "hot set" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{missing}"], 1, "does not exist"),
        (["{text}"], 1, "not a routing trace"),
        (["{good}", "--slots", "0"], 2, "share"),
        (["{good}", "--slots", "many"], 2, "no list"),
        (["{good}", "--uploads", "0"], 2, "below 1"),
        (["{good}", "{narrow}"], 1, "different models"),
        (["{single}"], 1, "no tokens are left"),
    ],
)
def test_replay_refuses(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "missing": tmp_path / "no.npz",
        "text": tmp_path / "text.npz",
        "good": write(tmp_path / "good.npz", drifting(40, 2, 16, 2)),
        "narrow": write(tmp_path / "narrow.npz", drifting(40, 3, 16, 2)),
        "single": tmp_path / "single.npz",
    }
    places["text"].write_text("hello")
    np.savez(
        places["single"], ids=drifting(9, 2, 16, 2), seq_start=np.array([0, 9]), is_decode=np.zeros(9, dtype=np.uint8)
    )
    assert main(["replay", *(argument.format(**places) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert says in error and error.count("error:") == 1


def test_train_keeps_a_predictor_that_beats_a_table_for_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_torch()
    ids = drifting(3200, 4, 32, 4)
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="50%"))
        llm.experts.force(ids)
        for _ in range(30):
            llm.eval([5])
        llm.close()
        assert main(["train", str(path)]) == 1
        assert "24 tokens are too few" in capsys.readouterr().err
        recorded = write(tmp_path / "t.npz", ids, 1, 32)
        assert main(["train", str(path), "--trace", str(recorded)]) == 0
        assert "names" in capsys.readouterr().out
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="50%"))
        assert llm._scheduler.predictor is not None and llm._scheduler.predictor.tables.tokens == 2560
        llm.close()


def test_history_is_written_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "KEEP_EVERY_S", 0.0)
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="50%"))
        llm.eval([1, 2, 3])
        for _ in range(3):
            llm.eval([4])
        folder, patience = home("data") / "profiles", time.monotonic() + 5
        while not list(folder.glob("*.profile.npz")):
            assert time.monotonic() < patience, "nothing would be left after kill -9"
            time.sleep(0.01)
        llm.close()


def test_first_residency_is_the_profiles(tmp_path: Path) -> None:
    with wide_model(tmp_path) as path:
        first = parity.open_ours(path, OffloadConfig(device="sim", vram="50%"))
        first.experts.force(drifting(100, 4, 32, 4))
        for _ in range(100):
            first.eval([5])
        heat = first.experts.heat()
        slots = first.experts.stats().slots // 4
        first.close()
        second = parity.open_ours(path, OffloadConfig(device="sim", vram="50%", policy="lfu"))
        assert second.experts.wait()
        resident = second.experts.residency()
        second.close()
    assert list((home("data") / "profiles").glob("*.profile.npz"))
    for layer in range(4):
        hottest = set(np.argsort(-heat[layer], kind="stable")[:slots].tolist())
        assert set(np.flatnonzero(resident[layer]).tolist()) == hottest


def test_prompts_are_forced_too(tmp_path: Path) -> None:
    ids = np.random.default_rng(3).permuted(np.tile(np.arange(32), (30, 4, 1)), axis=2)[..., :4].astype(np.int32)
    with wide_model(tmp_path) as path:
        offload = OffloadConfig("sim", "50%", profile="off", stream_tokens=4)
        llm = Llama(path, n_ctx=128, n_threads=1, offload=offload)
        llm.experts.force(ids)
        with llm.experts.record(tmp_path / "seen.npz"):
            llm.eval(list(range(1, 21)))  # a prefill, streamed in parts
            for token in range(5):
                llm.eval([token])
            llm.eval(list(range(1, 21)))  # around the end of the trace
        llm.close()
    seen = trace.read(tmp_path / "seen.npz").ids
    assert np.array_equal(np.sort(seen[:, :3]), np.sort(np.concatenate([ids[:25], ids[25:], ids[:15]])[:, :3]))
    last = seen[[19, *range(20, 25), 44], 3]  # the last layer only computes tokens with requested logits
    assert np.array_equal(np.sort(last), np.sort(ids[[19, *range(20, 25), 14], 3]))


def test_a_forced_expert_must_exist(tmp_path: Path) -> None:
    with wide_model(tmp_path) as path:
        llm = parity.open_ours(path, OffloadConfig(device="sim", vram="50%"))
        with pytest.raises(EdgeMoEError, match="not in the model"):
            llm.experts.force(np.full((2, 4, 4), 32, dtype=np.int32))
        llm.close()


# ---- the virtual clock ----


def test_a_clock_of_an_endless_link_changes_no_hit() -> None:
    ids = drifting(400, 4, 32, 4)
    shape, tables = shape_of(ids, 32), predictor.untrained(4, 32, 4)
    clock = Clock(replace(ClockModel(), link=1e18, rest=1.0), 4, None)
    timed = replay.simulate("adaptive", ids, shape, 8, 2, None, tables, True, clock=clock)
    plain = replay.simulate("adaptive", ids, shape, 8, 2, None, tables, True)
    assert timed.late == 0 and timed.seconds > 400
    for what in ("hits", "loads", "useful", "wasted"):
        assert getattr(timed, what) == getattr(plain, what)


def test_time_is_bytes_over_bandwidth() -> None:
    machine = ClockModel(cpu=10.0, device=100.0, link=5.0, launch=0.25, join=0.25, rest=2.0, expert=20.0)
    clock = Clock(machine, 2, None)
    clock.approach()
    clock.compute(0, 2, 0)
    assert clock.now == pytest.approx(2 * 20 / 100 + 0.5 + 1.0)
    clock.approach()
    clock.compute(1, 2, 2)
    assert clock.now == pytest.approx(1.9 + 0.25 + 2 * 20 / 10 + 1.0), "the slower side decides"
    assert clock.upload(0) == pytest.approx(7.15 + 4) and clock.upload(1) == pytest.approx(7.15 + 8), "one link"
    assert clock.room(0, 1, 9) == 0


def test_a_slow_link_makes_it_slower() -> None:
    ids = drifting(600, 4, 32, 4)
    shape, tables = shape_of(ids, 32), predictor.untrained(4, 32, 4)

    def run(link: float) -> replay.Tally:
        clock = Clock(replace(ClockModel(), link=link), 4, [12e6] * 4)
        return replay.simulate("adaptive", ids, shape, 8, 2, None, tables, True, clock=clock)

    fast, slow = run(50e9), run(2e9)
    assert fast.hits > slow.hits and fast.seconds < slow.seconds
    assert fast.prefetched > 10 * slow.prefetched, "no time for a prefetch before its layer"


def test_replay_forecasts_tokens_per_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "t.npz", drifting(400, 3, 16, 2))
    assert main(["replay", str(path), "--slots", "0.25", "--clock", "cpu=20e9,expert=4e6", "--json"]) == 0
    policies = json.loads(capsys.readouterr().out)["budgets"][0]["policies"]
    speeds = {name: cell["tokens_per_second"] for name, cell in policies.items() if name != "belady"}
    assert all(speed > 0 for speed in speeds.values()) and len(speeds) == 5
    assert main(["replay", str(path), "--clock", "gpu=1"]) == 2
    assert "any of: cpu, device, link" in capsys.readouterr().err
