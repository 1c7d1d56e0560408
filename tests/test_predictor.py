"""The predictor: the result of training, the core's evaluation against plain numpy, files, and the controller."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe.engine.predictor import NativePredictor
from edgemoe.errors import EdgeMoEError
from edgemoe.routing.predictor import Tables, evaluate, load, save, untrained
from edgemoe.routing.predictor.train import LEAST_TOKENS, one_hot
from edgemoe.routing.prefetch import EPOCH, HOLD, Controller
from edgemoe.types import IdArray
from tests.routing import drifting, spoken
from tests.training import trained

LAYERS, EXPERTS, USED = 5, 24, 3
KEY = "0123abcd"


@pytest.fixture(scope="module")
def ids() -> IdArray:
    return drifting(4000, LAYERS, EXPERTS, USED)


@pytest.fixture(scope="module")
def tables(ids: IdArray) -> Tables:
    return trained(ids[:3000], EXPERTS)


def test_it_predicts_better_than_a_plain_table_and_is_calibrated(ids: IdArray, tables: Tables) -> None:
    held_out = ids[3000:]
    plain = evaluate.plain_table(ids[:3000], held_out, EXPERTS)
    one, two = (evaluate.next_layers(tables, held_out, lead) for lead in (1, 2))
    assert one.recall_at_k > plain.recall_at_k + 0.05 and one.recall_at_2k > plain.recall_at_2k
    assert one.recall_at_k - 0.1 < two.recall_at_k < one.recall_at_k + 0.05
    assert one.calibration_error < 0.02
    assert sum(share for _, _, share in one.calibration) == pytest.approx(1)


def test_noise_cannot_be_predicted() -> None:
    rng = np.random.default_rng(1)
    noise = np.argsort(rng.normal(size=(3000, 3, 16)), axis=2)[:, :, :2].astype(np.int32)
    found = evaluate.next_layers(trained(noise[:2400], 16), noise[2400:], 1)
    assert found.recall_at_k < 2 / 16 + 0.03


def test_the_core_evaluates_as_numpy_does(ids: IdArray, tables: Tables) -> None:
    held_out = ids[3000:3100].copy()
    held_out[40, 2, 1] = -1  # a cell of the history is missing
    native = NativePredictor(tables, rate=0)
    use = [one_hot(held_out[:, layer], EXPERTS) for layer in range(LAYERS)]
    wanted = {lead: [evaluate._chances(tables, use, layer, lead) for layer in range(LAYERS)] for lead in (1, 2)}
    for token, row in enumerate(held_out):
        for layer in range(LAYERS):
            for lead in (1, 2):
                np.testing.assert_allclose(native.next(layer, lead), wanted[lead][layer][token], atol=2e-5)
            native.routed(layer, row[layer])
        native.token(row)
    native.close()


def test_a_token_id_predicts_its_experts() -> None:
    """This holds for all layers with the first one, and the core agrees with numpy."""
    ids, tokens = spoken(3200, 3, 16, 2)
    with_ids, without = trained(ids[:2600], 16, tokens=tokens[:2600]), trained(ids[:2600], 16)
    better = evaluate.next_layers(with_ids, ids[2600:], 1, tokens[2600:])
    assert better.recall_at_k > evaluate.next_layers(without, ids[2600:], 1).recall_at_k + 0.1
    assert better.calibration_error < 0.03
    native = NativePredictor(with_ids, rate=0)
    use = [one_hot(ids[2600:2700, layer], 16) for layer in range(3)]
    wanted = [evaluate._chances(with_ids, use, layer, 1, tokens[2600:2700]) for layer in range(3)]
    for at in range(100):
        native.begin(int(tokens[2600 + at]))
        for layer in range(3):
            np.testing.assert_allclose(native.next(layer, 1), wanted[layer][at], atol=2e-5)
            native.routed(layer, ids[2600 + at, layer])
        native.seen(tokens[2600 + at][None], ids[2600 + at][None])
        native.token(ids[2600 + at])
    native.close()


def test_predictions_soon_follow_use(ids: IdArray, tables: Tables) -> None:
    native = NativePredictor(tables)
    scores, later = [], []
    for token in range(3000, 3200):
        native.token(ids[token])
        scores.append(native.keep())
        later.append(np.stack([one_hot(ids[token + 1 : token + 6, layer], EXPERTS).sum(0) for layer in range(LAYERS)]))
    assert np.corrcoef(np.ravel(scores), np.ravel(later))[0, 1] > 0.5
    native.close()


def test_it_learns_without_history_and_its_tables_can_be_saved(ids: IdArray, tmp_path: Path) -> None:
    native = NativePredictor(untrained(LAYERS, EXPERTS, USED))

    def recall(tokens: IdArray) -> float:
        found = 0
        for token in tokens:
            for layer in range(LAYERS - 1):
                native.routed(layer, token[layer])
                best = np.argsort(-native.next(layer + 1, 1))[:USED]
                found += len(set(best.tolist()) & set(token[layer + 1].tolist()))
            native.routed(LAYERS - 1, token[LAYERS - 1])
            native.token(token)
        return found / (len(tokens) * (LAYERS - 1) * USED)

    first, last = recall(ids[:200]), [recall(ids[at : at + 500]) for at in range(200, 3200, 500)][-1]
    assert last > first + 0.1
    learnt = native.learnt()
    assert learnt.tokens == 3200
    plain = evaluate.plain_table(ids[:3200], ids[3200:], EXPERTS).recall_at_k
    assert evaluate.next_layers(learnt, ids[3200:], 1).recall_at_k > plain
    native.close()
    save(learnt, KEY, tmp_path)
    read = load(KEY, tmp_path, (LAYERS, EXPERTS, USED), [])
    assert read is not None and read.tokens == 3200


def test_a_choice_never_loses_and_stays_in_bounds(ids: IdArray, tables: Tables) -> None:
    native = NativePredictor(tables)
    rng = np.random.default_rng(0)
    for token in range(3000, 3050):
        state = rng.choice([0, 1, 2], size=EXPERTS, p=[0.5, 0.1, 0.4]).astype(np.uint8)
        native.routed(0, ids[token, 0])
        worth = native.next(1, 1) + native.keep()[1]
        free = int(rng.integers(0, 2))
        loads = native.choose(1, 1, state, free, 3, 0.3)
        assert len(loads) <= 3 and len({chosen.expert for chosen in loads}) == len(loads)
        for at, (layer, expert, victim) in enumerate(loads):
            assert layer == 1 and state[expert] == 0
            assert (victim == -1) == (at < free)
            if victim >= 0:
                assert state[victim] == 2 and worth[expert] >= worth[victim] + 0.3 - 1e-5
        native.token(ids[token])
    native.close()


def test_evaluation_is_quick() -> None:
    """This is no benchmark: the limit is ten times the 3 microseconds of bench/predictor.py."""
    layers, experts = 4, 128
    native = NativePredictor(_zeros(layers, experts, 8))
    native.routed(0, np.arange(8, dtype=np.int32))
    out = np.empty(experts, dtype=np.float32)
    started = time.perf_counter()
    for _ in range(1000):
        native._lib.em_predictor_next(native.handle, 1, 1, out.ctypes.data)
    assert (time.perf_counter() - started) / 1000 < 100e-6
    native.close()


def test_too_little_to_learn_from(ids: IdArray) -> None:
    with pytest.raises(EdgeMoEError, match="too few"):
        trained(ids[: LEAST_TOKENS - 1], EXPERTS)


def test_a_saved_predictor_says_the_same(tmp_path: Path, ids: IdArray, tables: Tables) -> None:
    save(replace(tables, report={"tokens": 3000}), KEY, tmp_path)
    notes: list[str] = []
    read = load(KEY, tmp_path, (LAYERS, EXPERTS, USED), notes)
    assert read is not None and not notes and read.report == {"tokens": 3000}
    one, other = (evaluate.next_layers(t, ids[3000:3300], 1) for t in (tables, read))
    assert one.recall_at_k == pytest.approx(other.recall_at_k, abs=0.005)


@pytest.mark.parametrize("damage", ["half", "text", "shape", "identity", "nan"])
def test_an_unusable_file_gives_a_note(tmp_path: Path, tables: Tables, damage: str) -> None:
    broken = tables
    if damage == "nan":
        broken = replace(tables, keep_bias=np.full_like(tables.keep_bias, np.nan))
    path = save(broken, KEY, tmp_path)
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if damage == "text":
        path.write_text("not an archive")
    if damage == "identity":
        path.rename(tmp_path / "ffff.predictor.npz")
    key, shape = ("ffff" if damage == "identity" else KEY), (LAYERS, EXPERTS, USED + (damage == "shape"))
    notes: list[str] = []
    assert load(key, tmp_path, shape, notes) is None
    assert len(notes) == 1 and "edgemoe train" in notes[0]


def test_no_file_is_no_news(tmp_path: Path) -> None:
    notes: list[str] = []
    assert load(KEY, tmp_path, (LAYERS, EXPERTS, USED), notes) is None and not notes


@pytest.mark.parametrize(("with_prefetch", "without", "on"), [(90, 100, True), (110, 100, False), (100, 100, True)])
def test_the_controller_chooses_the_faster_way(with_prefetch: int, without: int, on: bool) -> None:
    controller = Controller()
    for _ in range(2 * EPOCH):
        controller.step(with_prefetch if controller.on else without)
    assert controller.on is on
    settings = [controller.step(with_prefetch if controller.on else without) for _ in range(HOLD - 1)]
    assert set(settings) == {on}


def test_the_controller_notices_that_the_link_has_changed() -> None:
    controller = Controller()

    def run(steps: int, with_prefetch: int) -> list[bool]:
        return [controller.step(with_prefetch if controller.on else 100) for _ in range(steps)]

    assert not run(1000, 200)[-1], "a slow link: off"
    tries = run(20_000, 200)
    assert 0 < sum(tries) < 0.1 * len(tries), "it is tried again, ever more rarely"
    assert run(20_000, 50)[-1], "the link is fast again: on"


def _zeros(layers: int, experts: int, used: int) -> Tables:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.float32)

    return Tables(
        used, np.array([0.5], dtype=np.float32), zeros(layers, experts), zeros(layers, 1),
        zeros(layers, experts, experts), np.array([0.8], dtype=np.float32), zeros(1, layers, experts, experts),
        zeros(1, layers, experts), zeros(1, layers, 1), zeros(1, layers, experts, experts),
        zeros(1, 3, layers, experts, experts), zeros(1, layers, 3, 2), zeros(1, layers),
    )  # fmt: skip
