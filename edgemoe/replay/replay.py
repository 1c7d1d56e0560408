"""Replay routing traces without a model: the hits of a cache of a given size, for each policy and for the optimum.

The policies, the predictor and its choices are the engine's own. Without a clock, time is counted in tokens and layers.
A load that a policy requests between two tokens arrives before the next token, and a prefetch arrives before its layer.
With a clock, uploads take time, prefetches can be late, and tokens per second are forecast.

**Protocol**: every layer has the same capacity. The device is empty at first, except for ``static``. Held-out sequences
run back to back. The hits of a token count before its misses evict an expert. Belady's optimum loads every miss and
knows the future.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.binding import COLD, PENDING, RESIDENT
from ..engine.predictor import NativePredictor
from ..routing.policy import make
from ..routing.predictor import Tables, evaluate, train
from ..routing.prefetch import GAIN, LEAD, PLAN_EVERY
from ..routing.trace import Trace
from ..types import BoolArray, FloatArray, IdArray, ModelShape
from .virtual_clock import Clock, ClockModel

SCHEMA = "edgemoe.replay.v1"
UPLOADS = 2  # the engine's default for loads per layer and token
ROWS = ("static", "lru", "lfu", "adaptive-demand", "adaptive", "belady")


@dataclass
class Tally:
    """Count the events of a replay.

    Attributes:
        layers: number of layers.
        pairs: (token, expert) pairs.
        layer_tokens: tokens, counted once per layer.
        hits: pairs with a resident expert.
        loads: experts that were uploaded, prefetches included.
        prefetched: experts that were prefetched.
        useful: experts that were prefetched and then used.
        late: experts that were prefetched but arrived after they were needed.
        wasted: experts that were prefetched and evicted unused.
        seconds: time by the clock; 0 without a clock.
    """

    layers: int = 1
    pairs: int = 0
    layer_tokens: int = 0
    hits: int = 0
    loads: int = 0
    prefetched: int = 0
    useful: int = 0
    late: int = 0
    wasted: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Give the figures in the form of `SCHEMA`."""
        figures: dict[str, Any] = {
            "hit_rate": round(self.hits / max(self.pairs, 1), 4),
            "uploads_per_token": round(self.loads / max(self.layer_tokens, 1), 4),
            "prefetch": {"useful": self.useful, "late": self.late, "wasted": self.wasted},
        }
        if self.seconds:
            figures["tokens_per_second"] = round(self.layer_tokens / self.layers / self.seconds, 2)
        return figures


@dataclass(frozen=True)
class Split:
    """Divide a trace into tokens for training and tokens for the test.

    Attributes:
        train: expert ids of the tokens for training, ``(tokens, layers, used)``.
        test: expert ids of the tokens for the test, ``(tokens, layers, used)``.
        experts: routed experts per layer.
        train_tokens: token ids of ``train``, ``(tokens,)``; -1 if the trace does not have them.
        test_tokens: token ids of ``test``, ``(tokens,)``; -1 if the trace does not have them.
        expert_bytes: bytes of one expert in each layer; None if the trace does not have them.
    """

    train: IdArray
    test: IdArray
    experts: int
    train_tokens: IdArray
    test_tokens: IdArray
    expert_bytes: tuple[float, ...] | None = None

    @property
    def shape(self) -> ModelShape:
        """Describe the experts; all have the same size here."""
        layers, used = self.test.shape[1:]
        return ModelShape(layers, self.experts, used, (1,) * layers)

    @property
    def heat(self) -> FloatArray:
        """Count the uses of each expert in the training tokens, ``(layers, experts)``."""
        layers = self.test.shape[1]
        flat = (self.train + np.arange(layers)[:, None] * self.experts)[self.train >= 0]
        return np.bincount(flat, minlength=layers * self.experts).reshape(layers, -1).astype(np.float32)


def split(tests: Sequence[Trace], trains: Sequence[Trace]) -> Split:
    """Divide sequences: ``trains`` is for training, ``tests`` for the test.

    If ``trains`` is empty, the first half of ``tests`` is for training and the second half for the test. Sequences that
    are marked as ``repetition`` in the metadata are left out, because looped text is routed unlike other text.
    """
    experts = max(trace.n_expert for trace in (*tests, *trains))
    if trains:
        halves = [_sequences(trace) for trace in trains], [_sequences(trace) for trace in tests]
    else:
        parts = [_sequences(trace) for trace in tests]
        halves = [p[: len(p) // 2] for p in parts], [p[len(p) // 2 :] for p in parts]
    train, test = ([sequence for part in half for sequence in part] for half in halves)
    nothing = np.zeros((0, *tests[0].ids.shape[1:]), dtype=np.int32), np.zeros(0, dtype=np.int32)
    (learnt, their_tokens), (judged, tokens) = (
        (np.concatenate(column) for column in zip(nothing, *half, strict=True)) for half in (train, test)
    )
    recorded = tests[0].expert_bytes
    sizes = None if recorded is None else tuple(map(float, recorded))
    return Split(learnt, judged, experts, their_tokens, tokens, sizes)


def _sequences(trace: Trace) -> list[tuple[IdArray, IdArray]]:
    bounds = zip(trace.seq_start[:-1], trace.seq_start[1:], strict=True)
    infos = trace.meta if isinstance(trace.meta, list) and len(trace.meta) == len(trace.seq_start) - 1 else None
    looped = [bool(infos) and bool(info.get("repetition")) for info in infos or [{}] * (len(trace.seq_start) - 1)]
    tokens = np.full(len(trace.ids), -1) if trace.tokens is None else trace.tokens
    kept = [np.arange(a, b)[trace.is_decode[a:b]] for (a, b), loop in zip(bounds, looped, strict=True) if not loop]
    return [(trace.ids[rows], tokens[rows].astype(np.int32)) for rows in kept]


def simulate(
    name: str,
    ids: IdArray,
    shape: ModelShape,
    slots: int,
    limit: int,
    heat: FloatArray | None = None,
    tables: Tables | None = None,
    prefetch: bool = False,
    tokens: IdArray | None = None,
    clock: Clock | None = None,
) -> Tally:
    """Run one policy over ``ids`` with the same number of slots in every layer.

    Args:
        name: name of a policy, as ``policy.make`` takes it.
        ids: expert ids of the trace, ``(tokens, layers, used)``.
        shape: routed experts of the model.
        slots: slots of each layer.
        limit: most loads per layer and token, prefetches included.
        heat: counts that choose the experts on the device at first; None begins with an empty device.
        tables: the predictor of ``adaptive``.
        prefetch: True also prefetches experts.
        tokens: token ids, ``(tokens,)``; None if they are not known.
        clock: clock of the replay; None lets loads arrive at once.
    """
    predictor = NativePredictor(tables) if tables is not None else None
    policy = make(name, shape, np.full(shape.layers, slots, dtype=np.int32), predictor)
    assert policy is not None
    state = np.zeros((shape.layers, shape.experts), dtype=np.uint8)
    cache = _Cache(state, slots, clock)
    if heat is not None:
        for load in policy.start(heat):
            cache.load(*load)

    def fetch_ahead(layer: int) -> None:
        if predictor is None or layer >= shape.layers:
            return
        most = limit if clock is None else clock.room(layer, LEAD, limit)
        if most > 0:
            for load in predictor.choose(layer, LEAD, state[layer], cache.free(layer), most, GAIN):
                cache.load(*load, ahead=True)

    token_ids = np.full(len(ids), -1) if tokens is None else tokens
    for at, (token, token_id) in enumerate(zip(ids, token_ids, strict=True), start=1):
        cache.spent[:] = 0
        if prefetch and predictor is not None:
            predictor.begin(int(token_id))
            for layer in range(LEAD):
                fetch_ahead(layer)
        for layer in range(shape.layers):
            cache.use(layer, token[layer])
            if prefetch and predictor is not None:
                predictor.routed(layer, token[layer])
                fetch_ahead(layer + LEAD)
        if predictor is not None:
            predictor.seen(token_id[None], token[None])
        resident = state == RESIDENT
        policy.observe(token[None], resident, True)
        if prefetch and at % PLAN_EVERY:
            continue
        for load in policy.choose(resident, state == PENDING, np.maximum(limit - cache.spent, 0)):
            cache.load(*load)
    cache.tally.seconds = clock.now if clock is not None else 0.0
    return cache.tally


class _Cache:
    """Track residency and the fate of every load. With a clock a load is pending until it arrives."""

    def __init__(self, state: np.ndarray, slots: int, clock: Clock | None = None) -> None:
        self.state, self.slots = state, slots
        self.tally = Tally(layers=len(state))
        self._clock = clock
        self._coming: deque[tuple[float, int, int]] = deque()  # arrival, layer, expert; in the order of the link
        self.spent = np.zeros(len(state), dtype=np.int32)
        self._unused = np.zeros(state.shape, dtype=np.bool_)  # prefetched and not used since

    def free(self, layer: int) -> int:
        return self.slots - int(np.count_nonzero(self.state[layer]))

    def use(self, layer: int, ids: IdArray) -> None:
        if self._clock is not None:
            self._clock.approach()
            self._settle()
        known = ids[ids >= 0]
        hit = known[self.state[layer, known] == RESIDENT]
        self.tally.pairs += len(known)
        self.tally.layer_tokens += 1
        self.tally.hits += len(hit)
        self.tally.useful += int(self._unused[layer, hit].sum())
        self._unused[layer, hit] = False
        if self._clock is not None:
            late = known[(self.state[layer, known] == PENDING) & self._unused[layer, known]]
            self.tally.late += len(late)
            self._unused[layer, late] = False
            self._clock.compute(layer, len(hit), len(known) - len(hit))

    def _settle(self) -> None:
        while self._clock is not None and self._coming and self._coming[0][0] <= self._clock.now:
            _, layer, expert = self._coming.popleft()
            self.state[layer, expert] = RESIDENT

    def load(self, layer: int, expert: int, victim: int, ahead: bool = False) -> None:
        if self._clock is None:
            self.state[layer, expert] = RESIDENT
        else:
            self.state[layer, expert] = PENDING
            self._coming.append((self._clock.upload(layer), layer, expert))
        if victim >= 0:
            self.state[layer, victim] = COLD
            self.tally.wasted += int(self._unused[layer, victim])
            self._unused[layer, victim] = False
        self.tally.loads += 1
        self.tally.prefetched += ahead
        self._unused[layer, expert] = ahead
        self.spent[layer] += 1


def belady(ids: IdArray, experts: int, slots: int) -> float:
    """Compute the hit rate of Belady's optimum.

    Every miss is loaded. The expert with the latest next use is evicted, but never one that the current token uses.
    """
    tokens, layers, _ = ids.shape
    hits = 0
    for layer in range(layers):
        column = ids[:, layer]
        next_use = np.full((tokens, experts), tokens, dtype=np.int64)
        upcoming = np.full(experts, tokens, dtype=np.int64)
        for token in range(tokens - 1, -1, -1):
            next_use[token] = upcoming
            upcoming[column[token][column[token] >= 0]] = token
        held: BoolArray = np.zeros(experts, dtype=np.bool_)
        for token in range(tokens):
            used = column[token][column[token] >= 0]
            hits += int(held[used].sum())
            held[used] = True
            excess = int(held.sum()) - slots
            if excess > 0:
                need = np.where(held, next_use[token], -1)
                need[used] = -1
                held[np.argpartition(-need, excess - 1)[:excess]] = False
    return hits / int((ids >= 0).sum())


@dataclass(frozen=True)
class Job:
    """Compute one cell of the table: one policy with one number of slots.

    Attributes:
        row: name of the policy, from `ROWS`.
        slots: slots of each layer.
        split: tokens for training and for the test.
        limit: most loads per layer and token; None takes the policy's own number.
        tables: the predictor of ``adaptive``; None for none.
        machine: rates for a forecast of tokens per second; None for no forecast.
    """

    row: str
    slots: int
    split: Split
    limit: int | None
    tables: Tables | None
    machine: ClockModel | None = None

    def run(self) -> dict[str, Any]:
        """Compute the figures of the cell."""
        shape, test = self.split.shape, self.split.test
        if self.row == "belady":
            return {"hit_rate": round(belady(test, shape.experts, self.slots), 4)}
        if self.row == "static":
            kept = np.argsort(-self.split.heat, axis=1, kind="stable")[:, : self.slots]
            held = np.zeros((shape.layers, shape.experts), dtype=np.bool_)
            np.put_along_axis(held, kept, True, axis=1)
            hits = (held[np.arange(shape.layers)[:, None], test] & (test >= 0)).sum(axis=2)
            known = (test >= 0).sum(axis=2)
            return Tally(
                shape.layers, int(known.sum()), known.size, int(hits.sum()), seconds=self._seconds(hits, known)
            ).as_dict()
        if self.row in ("lru", "lfu"):
            return simulate(self.row, test, shape, self.slots, self.limit or shape.used, clock=self._clock()).as_dict()
        words, ahead = self.split.test_tokens, self.row == "adaptive"
        most = self.limit or UPLOADS
        return simulate(
            "adaptive", test, shape, self.slots, most, None, self.tables, ahead, words, self._clock()
        ).as_dict()

    def _clock(self) -> Clock | None:
        if self.machine is None:
            return None
        return Clock(self.machine, self.split.shape.layers, self.split.expert_bytes)

    def _seconds(self, hits: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> float:
        """Compute the time of a placement that never changes, from counts of shape ``(tokens, layers)``."""
        clock = self._clock()
        if clock is None:
            return 0.0
        for token_hits, token_known in zip(hits.tolist(), known.tolist(), strict=True):
            for layer, (hit, used) in enumerate(zip(token_hits, token_known, strict=True)):
                clock.approach()
                clock.compute(layer, hit, used - hit)
        return clock.now


def report(
    data: Split,
    fractions: Sequence[float],
    limit: int | None,
    tables: Tables | None,
    machine: ClockModel | None = None,
    progress: Callable[[float, str], None] = lambda share, step: None,
) -> dict[str, Any]:
    """Compare all policies at all budgets, in the form of `SCHEMA`.

    Args:
        data: tokens for training and for the test.
        fractions: budgets, as shares of the experts that are resident.
        limit: most loads per layer and token. None: lru and lfu load as many as a token uses, adaptive as many as the
            engine's default.
        tables: the predictor of ``adaptive``; None for none.
        machine: rates for a forecast of tokens per second; None for no forecast.
        progress: called with the share done in 0..1 and the name of the current step.
    """
    capacities = [max(1, round(data.experts * fraction)) for fraction in fractions]
    jobs = [Job(row, slots, data, limit, tables, machine) for slots in capacities for row in ROWS]
    with ProcessPoolExecutor() as pool:
        cells = []
        for done, cell in enumerate(pool.map(Job.run, jobs)):
            cells.append(cell)
            progress((done + 1) / len(jobs), f"{jobs[done].row} with {jobs[done].slots} experts")
    budgets = [
        {
            "fraction": fraction,
            "slots_per_layer": slots,
            "policies": dict(zip(ROWS, cells[i * len(ROWS) :], strict=False)),
        }
        for i, (fraction, slots) in enumerate(zip(fractions, capacities, strict=True))
    ]
    result = {"schema": SCHEMA, "tokens": len(data.test), "layers": data.test.shape[1], "experts": data.experts}
    return result | {"budgets": budgets, "predictors": _predictors(data, tables), "verdict": verdict(budgets)}


def _predictors(data: Split, tables: Tables | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if len(data.train):
        found["table"] = evaluate.plain_table(data.train, data.test, data.experts).as_dict()
    if tables is not None:
        for lead in range(1, tables.leads + 1):
            found[f"next-{lead}"] = evaluate.next_layers(tables, data.test, lead, data.test_tokens).as_dict()
    return found


def learn(data: Split, progress: Callable[[float, str], None] = lambda share, step: None) -> Tables | None:
    """Train a predictor on the training tokens; None if they are too few."""
    if len(data.train) < train.LEAST_TOKENS:
        return None
    return train.fit(data.train, data.experts, progress, data.train_tokens)


def verdict(budgets: Sequence[dict[str, Any]]) -> str:
    """Describe in words whether this model has a hot set that is worth keeping."""
    best = [(b["fraction"], b["policies"]["adaptive"]["hit_rate"]) for b in budgets]
    fraction, hit = max(best, key=lambda cell: cell[1] - cell[0])
    gain = hit - fraction
    if gain < 0.1:
        return "Routing is nearly even: which experts are resident matters little for this model."
    strength = "a strong" if gain > 0.35 else "a useful" if gain > 0.2 else "a weak"
    return f"This text has {strength} hot set: {fraction:.1%} of the experts resident serve {hit:.0%} of the uses."
