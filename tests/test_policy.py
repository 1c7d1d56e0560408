"""One contract for all policies, golden miss counts, and the split of a budget into slots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import ConfigError
from edgemoe.routing import trace
from edgemoe.routing.policy import Policy, least_slots, make, slots_for
from edgemoe.routing.policy.lfu import Frequency
from edgemoe.routing.policy.static import LEARN_TOKENS
from edgemoe.types import BoolArray, FloatArray, IdArray, Load, ModelShape

NAMES = ("static", "lru", "lfu", "adaptive")
MOVING = ("lru", "lfu", "adaptive")
SHAPE = ModelShape(layers=3, experts=32, used=4, expert_bytes=(1, 1, 1))


def routing(tokens: int, shape: ModelShape = SHAPE, seed: int = 1) -> IdArray:
    """Make routing with popular experts, a topic that changes every 50 tokens, and noise, from whole numbers only."""
    random = np.random.RandomState(seed)  # the numbers of this generator never change, unlike default_rng's
    popular = random.randint(0, 60, (shape.layers, shape.experts))
    topics = random.randint(0, 60, (4, shape.layers, shape.experts))
    ids = np.empty((tokens, shape.layers, shape.used), dtype=np.int32)
    for token in range(tokens):
        noise = random.randint(0, 80, popular.shape)
        score = popular + topics[(token // 50) % 4] + noise
        ids[token] = np.argsort(-score, axis=1, kind="stable")[:, : shape.used]
    return ids


def policy_for(name: str, slots: int | list[int], shape: ModelShape = SHAPE) -> Policy:
    each = np.full(shape.layers, slots, dtype=np.int32) if isinstance(slots, int) else np.array(slots, np.int32)
    policy = make(name, shape, each)
    assert policy is not None and policy.name == name
    return policy


@dataclass
class Device:
    """Keep slots as the core does: a queue, victims that leave when their load begins, failing copies."""

    shape: ModelShape
    slots: list[int]
    per_step: int = 1_000_000
    fail_every: int = 0
    queue: list[Load] = field(default_factory=list)
    log: list[Load] = field(default_factory=list)
    resident: BoolArray = field(init=False)
    pending: BoolArray = field(init=False)

    def __post_init__(self) -> None:
        self.resident = np.zeros((self.shape.layers, self.shape.experts), dtype=np.bool_)
        self.pending = np.zeros_like(self.resident)

    def submit(self, loads: list[Load]) -> None:
        """Check the contract of every load that a policy requests, then queue it."""
        for load in loads:
            layer, expert, victim = load
            assert not self.resident[layer, expert] and not self.pending[layer, expert], load
            promised = [other.victim for other in self.queue if other.layer == layer and other.victim >= 0]
            if victim >= 0:
                assert self.resident[layer, victim] and victim not in promised, load
            else:
                taken = self.resident[layer].sum() + self.pending[layer].sum() - len(promised)
                assert taken < self.slots[layer], load
            self.pending[layer, expert] = True
            self.queue.append(load)
        self.log += loads

    def copy(self) -> None:
        """Carry out the oldest loads."""
        for number in range(min(self.per_step, len(self.queue))):
            layer, expert, victim = self.queue.pop(0)
            if victim >= 0:
                assert self.resident[layer, victim]
                self.resident[layer, victim] = False
            self.pending[layer, expert] = False
            failed = self.fail_every and (len(self.log) + number) % self.fail_every == 0
            self.resident[layer, expert] = not failed
            assert self.resident[layer].sum() <= self.slots[layer]


def run(policy: Policy, device: Device, ids: IdArray, cap: int) -> int:
    """Decode token by token, and count the misses."""
    misses = 0
    for token in ids:
        used = np.zeros_like(device.resident)
        for layer, experts in enumerate(token):
            used[layer, experts[experts >= 0]] = True
        misses += int((used & ~device.resident).sum())
        policy.observe(token[None], device.resident, True)
        loads = policy.choose(device.resident.copy(), device.pending.copy(), cap)
        for layer in range(device.shape.layers):
            under_way = int(device.pending[layer].sum())
            assert sum(load.layer == layer for load in loads) <= max(0, cap - under_way)
        assert not any(load.victim >= 0 and used[load.layer, load.victim] for load in loads)
        device.submit(loads)
        device.copy()
    return misses


# ---- the contract ----


@pytest.mark.parametrize("name", NAMES)
def test_start_fills_every_slot_breadth_first(name: str) -> None:
    slots = [3, 0, 5]
    loads = policy_for(name, slots).start(None)
    assert [(load.layer, load.expert) for load in loads] == [
        *[(0, 0), (2, 0), (0, 1), (2, 1), (0, 2), (2, 2)],
        *[(2, 3), (2, 4)],
    ]
    assert all(load.victim == -1 for load in loads)


@pytest.mark.parametrize("name", NAMES)
def test_start_takes_the_hottest_of_a_past(name: str) -> None:
    heat = np.zeros((3, 32), dtype=np.float32)
    heat[:, [7, 30, 11]] = (5.0, 900.0, 70.0)
    loads = policy_for(name, 3).start(heat)
    assert [load.expert for load in loads] == [30] * 3 + [11] * 3 + [7] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slots", [[8, 8, 8], [4, 0, 31], [32, 16, 1]])
@pytest.mark.parametrize(("per_step", "fail_every"), [(10**6, 0), (2, 0), (3, 5)])
def test_loads_are_always_legal(name: str, slots: list[int], per_step: int, fail_every: int) -> None:
    policy = policy_for(name, slots)
    device = Device(SHAPE, slots, per_step, fail_every)
    device.submit(policy.start(None))
    run(policy, device, routing(200), cap=2)
    run(policy, device, routing(100, seed=2), cap=99)
    assert len(device.log) > sum(slots)


@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    experts=st.integers(2, 12),
    layers=st.integers(1, 3),
    slots=st.integers(0, 12),
    cap=st.integers(1, 4),
    per_step=st.integers(1, 5),
    batches=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 2**31)), max_size=25),
)
def test_loads_are_legal_for_any_batches(
    name: str,
    experts: int,
    layers: int,
    slots: int,
    cap: int,
    per_step: int,
    batches: list[tuple[int, bool, int]],
) -> None:
    shape = ModelShape(layers, experts, min(2, experts), (1,) * layers)
    capacity = [min(slots, experts)] * layers
    policy, device = policy_for(name, capacity, shape), Device(shape, capacity, per_step)
    device.submit(policy.start(None))
    for tokens, decode, seed in batches:
        order = np.random.RandomState(seed).rand(tokens, layers, experts).argsort(axis=2)
        ids = order[:, :, : shape.used].astype(np.int32)
        ids[np.random.RandomState(seed).rand(*ids.shape) < 0.2] = -1
        policy.observe(ids, device.resident, decode)
        loads = policy.choose(device.resident, device.pending, cap)
        assert decode or not loads
        for load in loads:
            assert load.victim < 0 or load.victim not in ids[-1, load.layer]
        device.submit(loads)
        device.copy()
    while device.queue:
        device.copy()


@pytest.mark.parametrize("name", NAMES)
def test_replay_is_the_same_bit_for_bit(name: str) -> None:
    logs, heats = [], []
    for _ in range(2):
        policy, device = policy_for(name, 8), Device(SHAPE, [8] * 3, per_step=3)
        device.submit(policy.start(None))
        run(policy, device, routing(150), cap=2)
        logs.append(device.log)
        heats.append(policy.heat().tobytes())
    assert logs[0] == logs[1] and heats[0] == heats[1]


@pytest.mark.parametrize("name", NAMES)
def test_prefill_moves_nothing(name: str) -> None:
    policy, device = policy_for(name, 8), Device(SHAPE, [8] * 3)
    device.submit(policy.start(None))
    device.copy()
    run(policy, device, routing(LEARN_TOKENS - 1), cap=2)
    policy.observe(routing(300, seed=9), device.resident, False)
    assert policy.choose(device.resident, device.pending, 8) == []


@pytest.mark.parametrize("name", MOVING)
def test_prefill_does_not_wash_out_the_hot_set(name: str) -> None:
    logs = []
    for with_prompt in (False, True):
        policy, device = policy_for(name, 8), Device(SHAPE, [8] * 3)
        device.submit(policy.start(None))
        run(policy, device, routing(100), cap=2)
        if with_prompt:
            policy.observe(routing(500, seed=9), device.resident, False)
            policy.choose(device.resident, device.pending, 2)
        run(policy, device, routing(100, seed=1)[50:], cap=2)
        logs.append(device.log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", NAMES)
def test_heat_counts_every_use(name: str) -> None:
    policy = policy_for(name, 8)
    policy.start(None)
    resident = np.zeros((3, 32), dtype=np.bool_)
    ids = routing(6)
    ids[2, 1, 3] = -1
    policy.observe(ids[:4], resident, False)
    for token in ids[4:]:
        policy.observe(token[None], resident, True)
    expected = np.zeros((3, 32), dtype=np.float32)
    for _, layer, expert in [(t, i, e) for t in ids for i, row in enumerate(t) for e in row if e >= 0]:
        expected[layer, expert] += 1
    assert policy.heat().dtype == np.float32
    np.testing.assert_array_equal(policy.heat(), expected)
    policy.heat()[:] = 0  # a copy, because the policy keeps its own array
    np.testing.assert_array_equal(policy.heat(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_resize_refills_free_slots(name: str) -> None:
    policy, device = policy_for(name, 8), Device(SHAPE, [8] * 3)
    device.submit(policy.start(None))
    device.copy()
    run(policy, device, routing(200), cap=2)
    device.slots = [4, 12, 8]  # the first layer became empty, the second grew, the third did not change
    device.resident[0] = False
    before = device.resident.copy()
    loads = policy.resize(np.array(device.slots, dtype=np.int32), device.resident)
    assert [load.layer for load in loads] == [0, 1] * 4
    device.submit(loads)
    device.copy()
    assert device.resident.sum(axis=1).tolist() == [4, 12, 8]
    assert (device.resident[1:] >= before[1:]).all()
    warm = device.resident[0] & (policy.heat()[0] >= np.sort(policy.heat()[0])[16])
    assert warm.sum() == 4, "experts that came back are among the used ones"
    run(policy, device, routing(50), cap=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_holds_too_much_gets_nothing(name: str) -> None:
    policy, device = policy_for(name, 8), Device(SHAPE, [8] * 3)
    device.submit(policy.start(None))
    device.copy()
    assert policy.resize(np.full(3, 4, dtype=np.int32), device.resident) == []


@pytest.mark.parametrize("name", NAMES)
def test_everything_resident_means_no_loads(name: str) -> None:
    policy, device = policy_for(name, 32), Device(SHAPE, [32] * 3)
    device.submit(policy.start(None))
    device.copy()
    assert run(policy, device, routing(100), cap=2) == 0
    assert len(device.log) == 96


def test_a_pending_expert_is_no_victim() -> None:
    policy = policy_for("lru", 4)
    resident, pending = np.zeros((3, 32), dtype=np.bool_), np.zeros((3, 32), dtype=np.bool_)
    resident[:, :4] = pending[:, :3] = True  # three experts are copied anew
    policy.observe(np.full((1, 3, 4), 9, dtype=np.int32), resident, True)
    assert {load.victim for load in policy.choose(resident, pending, 9)} <= {3}


def test_several_tokens_of_one_batch_all_count() -> None:
    policy = policy_for("lru", 8)
    resident = np.zeros((3, 32), dtype=np.bool_)
    ids = np.array([[[1, 2, 3, 4]] * 3, [[5, 6, 7, 8]] * 3], dtype=np.int32)
    policy.observe(ids, resident, True)
    loads = policy.choose(resident, resident.copy(), 99)
    assert {load.expert for load in loads if load.layer == 1} == {1, 2, 3, 4, 5, 6, 7, 8}


# ---- the strength of each policy ----


def test_names() -> None:
    assert make("off", SHAPE, np.full(3, 8, dtype=np.int32)) is None
    with pytest.raises(ConfigError, match="belady"):
        make("belady", SHAPE, np.full(3, 8, dtype=np.int32))


def test_static_with_a_past_never_moves() -> None:
    policy, device = policy_for("static", 8), Device(SHAPE, [8] * 3)
    device.submit(policy.start(np.ones((3, 32), dtype=np.float32)))
    device.copy()
    run(policy, device, routing(LEARN_TOKENS + 50), cap=8)
    assert len(device.log) == 24


def test_static_without_a_past_places_once() -> None:
    policy, device = policy_for("static", 8), Device(SHAPE, [8] * 3)
    device.submit(policy.start(None))
    ids = routing(LEARN_TOKENS + 100)
    run(policy, device, ids[: LEARN_TOKENS - 1], cap=2)
    assert len(device.log) == 24, "too early to know"
    run(policy, device, ids[LEARN_TOKENS - 1 :], cap=2)
    learnt = np.zeros((3, 32))
    for token in ids[:LEARN_TOKENS]:
        np.add.at(learnt, (np.arange(3)[:, None], token), 1)
    best = np.argsort(-learnt, axis=1, kind="stable")[:, :8]
    assert [set(np.flatnonzero(row)) for row in device.resident] == [set(row) for row in best]
    moved = len(device.log)
    run(policy, device, routing(200, seed=5), cap=8)
    assert len(device.log) == moved


def test_lru_evicts_the_least_recently_used() -> None:
    shape = ModelShape(1, 6, 1, (1,))
    policy, device = policy_for("lru", 3, shape), Device(shape, [3])
    run(policy, device, np.array([0, 1, 2, 0, 5], dtype=np.int32).reshape(-1, 1, 1), cap=1)
    assert device.log[-1] == Load(0, 5, 1)


def test_lfu_evicts_the_least_frequently_used() -> None:
    shape = ModelShape(1, 6, 1, (1,))
    policy, device = policy_for("lfu", 3, shape), Device(shape, [3])
    run(policy, device, np.array([0, 0, 1, 1, 2, 5], dtype=np.int32).reshape(-1, 1, 1), cap=1)
    assert device.log[-1] == Load(0, 5, 2)


def test_growing_weights_equal_shrinking_counts() -> None:
    shape = ModelShape(1, 8, 1, (1,))
    frequency, plain = Frequency(shape, 0.9), np.zeros(8)
    for token in range(6000):  # the scale passes its limit twice
        used = np.array([(token * token) % 7])
        frequency.use(used)
        plain *= 0.9
        plain[used] += 1.0
    np.testing.assert_allclose(frequency.scaled[0] / frequency.scale, plain, rtol=1e-9)
    assert frequency.scale < 1e100


def test_a_long_history_shrinks_to_the_memory_of_a_run() -> None:
    shape = ModelShape(1, 4, 2, (1,))
    frequency = Frequency(shape, 0.9)  # remembers 10 tokens, 20 uses
    frequency.seed(np.array([[600, 300, 90, 10]], dtype=np.float32))
    np.testing.assert_allclose(frequency.scaled[0], [12.0, 6.0, 1.8, 0.2])
    frequency.seed(np.array([[3, 1, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(frequency.scaled[0], [3.0, 1.0, 0.0, 0.0])


def test_adaptive_lets_a_stray_demand_pass() -> None:
    shape = ModelShape(1, 8, 2, (1,))
    policy, device = policy_for("adaptive", 4, shape), Device(shape, [4])
    regular = np.array([[0, 1], [2, 3]] * 20, dtype=np.int32).reshape(-1, 1, 2)
    run(policy, device, regular, cap=2)
    moved = len(device.log)
    run(policy, device, np.array([[[0, 6]]], dtype=np.int32), cap=2)
    assert len(device.log) == moved, "one demand displaces no expert in regular use"
    run(policy, device, np.array([[[5, 6]]] * 8, dtype=np.int32), cap=2)
    assert device.resident[0, 5] and device.resident[0, 6], "a new regular gets its place"


# Misses of one run from a cold start, at most 2 loads per layer and token, for each number of slots.
SIZES = (4, 8, 12, 16, 20, 24, 28, 32)
GOLDEN = {
    "static": (3253, 2242, 1532, 1065, 683, 431, 202, 0),
    "lru": (3021, 1592, 748, 361, 226, 167, 125, 101),
    "lfu": (2840, 1500, 784, 457, 273, 172, 117, 101),
    "adaptive": (2615, 1395, 724, 385, 238, 160, 115, 101),
}


@pytest.mark.parametrize("name", NAMES)
def test_golden_misses(name: str) -> None:
    ids = routing(400)
    misses = []
    for slots in SIZES:
        device = Device(SHAPE, [slots] * 3)
        policy = policy_for(name, slots)
        if name == "static":
            device.submit(policy.start(None))
            device.copy()
        misses.append(run(policy, device, ids, cap=2))
    assert tuple(misses) == GOLDEN[name]


def test_adaptive_is_worth_its_uploads() -> None:
    ids = routing(400)
    results = {}
    for name in ("lfu", "adaptive"):
        device = Device(SHAPE, [12] * 3)
        results[name] = (run(policy_for(name, 12), device, ids, cap=2), len(device.log))
    assert results["adaptive"][0] <= results["lfu"][0] * 1.02
    assert results["adaptive"][1] < results["lfu"][1] * 0.7


# ---- slots of a budget ----


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    experts = draw(st.integers(1, 40))
    sizes = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
    if draw(st.booleans()):
        sizes = [sizes[0]] * len(sizes)
    return ModelShape(len(sizes), experts, draw(st.integers(1, experts)), tuple(sizes))


@given(shape=shapes(), share=st.floats(0, 1.2))
def test_slots_fit_and_nothing_is_left_over(shape: ModelShape, share: float) -> None:
    total = sum(shape.expert_bytes) * shape.experts
    budget = int(total * share)
    slots = slots_for(shape, budget)
    assert slots.dtype == np.int32 and slots.shape == (shape.layers,)
    sizes = np.array(shape.expert_bytes, dtype=np.int64)
    left = budget - int((slots * sizes).sum())
    assert left >= 0
    served = slots > 0
    least = least_slots(shape)
    assert ((slots[served] >= least) & (slots[served] <= shape.experts)).all()
    assert (np.diff(served.astype(int)) >= 0).all(), "the last layers are served first"
    assert (sizes[served & (slots < shape.experts)] > left).all(), "room for one more was left"
    if not served.all():
        unserved = int(np.flatnonzero(~served)[-1])
        assert least * (sizes[served].sum() + sizes[unserved]) > budget
    if budget >= total:
        assert (slots == shape.experts).all()


@given(shape=shapes(), share=st.floats(0, 1))
def test_slots_are_even_by_bytes(shape: ModelShape, share: float) -> None:
    slots = slots_for(shape, int(sum(shape.expert_bytes) * shape.experts * share))
    sizes = np.array(shape.expert_bytes, dtype=np.int64)
    free = (slots > least_slots(shape)) & (slots < shape.experts)
    if free.any():
        layer_bytes = (slots * sizes)[free]
        assert layer_bytes.max() - layer_bytes.min() <= 2 * sizes.max()


def test_slots_of_a_real_shape() -> None:
    mib = 2**20
    qwen = ModelShape(48, 128, 8, (2_654_208,) * 48)
    assert slots_for(qwen, 0).tolist() == [0] * 48
    assert set(slots_for(qwen, 4096 * mib).tolist()) == {33, 34}
    assert slots_for(qwen, 128 * mib).tolist() == [0] * 45 + [16, 17, 17]


def test_a_budget_that_fits_exactly() -> None:
    shape = ModelShape(3, 16, 2, (5, 7, 11))
    assert slots_for(shape, 4 * (11 + 7)).tolist() == [0, 4, 4]
    assert slots_for(shape, 4 * (11 + 7) - 1).tolist() == [0, 0, 6]
    assert slots_for(shape, 4 * (11 + 7 + 5)).tolist() == [4, 4, 4]
    assert slots_for(shape, 16 * (11 + 7 + 5)).tolist() == [16, 16, 16]


# ---- real routing ----


def real_traces() -> Iterator[tuple[str, IdArray, IdArray, ModelShape]]:
    root = Path(os.environ["EDGEMOE_TRACES"])
    for name in ("gpt-oss-20b-fingerprinting/mmlu.npz", "deepseek-v2-lite-esft/translation.npz"):
        read = trace.read(root / name)
        bounds = list(zip(read.seq_start[:-1], read.seq_start[1:], strict=True))
        if isinstance(read.meta, list):
            bounds = [b for b, info in zip(bounds, read.meta, strict=True) if not info["repetition"]]
        halves = bounds[: len(bounds) // 2], bounds[len(bounds) // 2 :]
        past, held_out = (np.concatenate([read.ids[a:b] for a, b in half]) for half in halves)
        layers, used = read.ids.shape[1:]
        yield name, past, held_out, ModelShape(layers, read.n_expert, used, (1,) * layers)


def replay(policy: Policy, ids: IdArray, shape: ModelShape, heat: FloatArray | None) -> tuple[float, float]:
    """Compute the hit rate, and the uploads per layer and token, with at most 2 uploads."""
    resident = np.zeros((shape.layers, shape.experts), dtype=np.bool_)
    nothing = np.zeros_like(resident)
    for load in policy.start(heat):
        resident[load.layer, load.expert] = True
    hits = uploads = 0
    for token in ids:
        hits += int(np.take_along_axis(resident, token, axis=1).sum())
        policy.observe(token[None], resident, True)
        for layer, expert, victim in policy.choose(resident, nothing, 2):
            resident[layer, expert] = True
            if victim >= 0:
                resident[layer, victim] = False
            uploads += 1
    return hits / ids.size, uploads / (len(ids) * shape.layers)


@pytest.mark.slow
@pytest.mark.skipif("EDGEMOE_TRACES" not in os.environ, reason="EDGEMOE_TRACES names no folder of routing traces")
def test_adaptive_on_real_routing() -> None:
    for name, past, held_out, shape in real_traces():
        heat = np.zeros((shape.layers, shape.experts), dtype=np.float32)
        np.add.at(heat, (np.arange(shape.layers)[:, None], past), 1.0)
        for share in (0.125, 0.25, 0.5):
            slots = int(shape.experts * share)
            rows = {n: replay(policy_for(n, slots, shape), held_out[:3000], shape, heat) for n in NAMES}
            print(name, share, json.dumps(rows))
            assert rows["adaptive"][0] > rows["static"][0] - 0.005
            assert rows["adaptive"][0] > rows["lfu"][0] - 0.005
            assert rows["adaptive"][1] < rows["lfu"][1] * 0.95
