"""Where the experts of one model are, and who moves them: the seam between the core and the policy."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import history, predictor, trace
from ..config import Budget, OffloadConfig, home
from ..errors import DoesNotFit
from ..plan import LAYER_OVERHEAD, experts_room
from ..policy import Policy, make, plan_slots
from ..prefetch import GAIN, LEAD, Controller
from ..types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape
from .binding import PENDING, RESIDENT, NativeEngine
from .predictor import NativePredictor

# Routing history is written this often, so that a crash costs no more.
KEEP_EVERY_S = 60.0
# The predictor is a larger file and changes slowly.
KEEP_LEARNT_EVERY_S = 600.0
# A predictor that has seen fewer tokens is not worth a file.
LEAST_LEARNT = 200
SYNCHRONOUS_S = 60.0
# Attempts with half the budget each when the device refuses an allocation.
ALLOCATION_ATTEMPTS = 5


class Experts:
    """The experts of a loaded model: placement, figures, recording.

    All arrays have shape ``(layers, experts)`` and belong to the caller. ``stats``, ``residency``, ``heat`` and
    ``last`` may be called from any thread while the model computes.

    Attributes:
        shape: geometry of the routed experts, None for a dense model.
        device: name of the device that holds the hot ones, ``none`` without one.
        notes: what the user should know, one sentence each.
        automatic: the budget follows the free memory of the device.
        scheduler_ns: wall time spent between steps: routing history, policy, predictor.
    """

    def __init__(
        self, native: NativeEngine, config: OffloadConfig, device: str, used: int, identity: str, spare_bytes: int = 0
    ) -> None:
        """Take stock of a model just loaded; ``used`` is its top-k, ``spare_bytes`` device memory of a prefill."""
        self._native = native
        self._spare_bytes = spare_bytes
        self._placing = threading.Lock()  # the watchdog resizes from its thread, the policy runs on the computing one
        self.automatic = config.budget == Budget()
        self._config = config
        self.device = device or "none"
        self.notes: list[str] = []
        self.scheduler_ns = 0
        infos = native.layers()
        self._row_of = {info.block: row for row, info in enumerate(infos)}
        self.shape: ModelShape | None = None
        if infos:
            experts = max(info.experts for info in infos)
            self.shape = ModelShape(len(infos), experts, used, tuple(int(info.expert_bytes) for info in infos))
        self._identity = identity
        self._policy: Policy | None = None
        self._last: IdArray = np.full((len(infos), used), -1, dtype=np.int32)
        self._heat: FloatArray = np.zeros((len(infos), self.shape.experts if self.shape else 0), dtype=np.float32)
        self._row_start = np.arange(len(infos), dtype=np.int32)[:, None] * self._heat.shape[1]
        self._noted = False
        self._ahead = self._last_was_token = False
        self._recording: list[IdArray] | None = None
        self._recent: deque[IdArray] = deque(maxlen=history.RECENT_TOKENS)
        self._profile = self._load_profile()
        self._kept_at = self._learnt_kept_at = time.monotonic()
        self._keeper = threading.Thread(target=lambda: None)
        self._keeper.start()
        self._predictor = self._load_predictor()
        self._controller = Controller()
        if self.shape is None:
            self.notes.append("This model has no routed experts: it runs as in llama_cpp.")
        elif device:
            self._place(config.budget)

    # ---- what users ask ----

    def stats(self) -> ExpertStats:
        """Counters since the model was loaded."""
        return self._native.stats()

    def residency(self) -> BoolArray:
        """True where an expert is in device memory."""
        resident: BoolArray = self._states() == RESIDENT
        return resident

    def pending(self) -> BoolArray:
        """True where an expert is on its way to device memory."""
        waiting: BoolArray = self._states() == PENDING
        return waiting

    def heat(self) -> FloatArray:
        """How often each expert was routed to since the model was loaded, prefill included."""
        heat: FloatArray = self._heat.copy()
        return heat

    def last(self) -> IdArray:
        """Experts of the last computed token, shape ``(layers, k)``, -1 where unknown."""
        last: IdArray = self._last.copy()
        return last

    def resize(self, vram: str | int) -> int:
        """Change the device budget while running; returns the slots there are now.

        The hot set is uploaded again in the background. Call it between answers or from another thread.

        Raises:
            ConfigError: ``vram`` is not a size.
        """
        budget = Budget.parse(vram)
        self.automatic = budget == Budget()
        return self.adapt(budget)

    def adapt(self, budget: Budget) -> int:
        """As ``resize``, for the watchdog: what the user asked for stays."""
        if self.shape is not None and self.device != "none":
            with self._placing:
                self._place(budget)
        return self.stats().slots

    def wait(self, timeout_s: float = 60.0) -> bool:
        """Wait until every upload asked for has arrived; False when that took longer."""
        return self._native.wait_uploads(timeout_s)

    @contextlib.contextmanager
    def record(self, path: str | Path) -> Iterator[None]:
        """Write every routing choice made inside the ``with`` block to a trace file (``.npz``)."""
        self._recording = []
        try:
            yield
        finally:
            rows, self._recording = self._recording, None
            if rows and self.shape is not None:
                ids = np.concatenate(rows)
                trace.write(
                    Path(path),
                    ids,
                    np.array([0, len(ids)], dtype=np.int64),
                    n_expert=self.shape.experts,
                    expert_bytes=np.array(self.shape.expert_bytes, dtype=np.int64),
                    meta=json.dumps({"model": self._identity}),
                )

    def force(self, ids: IdArray) -> None:
        """Take the experts of decode steps from a recorded trace instead of the router, for benchmarks on shape twins.

        Args:
            ids: ``(tokens, layers, used)``, repeated when it ends; without tokens, the router decides again.

        Raises:
            EdgeMoEError: the trace names experts that the model has not.
        """
        self._native.force(ids)
        if len(ids):
            self.notes.append("Routing is forced from a trace: the answers mean nothing.")

    # ---- what the engine calls ----

    def after_step(self, elapsed_ns: int = 0) -> None:
        """Hand the routing of the step just computed to the policy, and its wishes to the core.

        Args:
            elapsed_ns: wall time of the step.
        """
        if self.shape is None:
            return
        started = time.perf_counter_ns()
        if not self._noted:
            self._noted = True
            self._note_layers()
        for ids in self._steps(self._native.drain()):
            self._note_use(ids)
            if self._policy is not None:
                with self._placing:
                    self._follow(self._policy, ids)
        if self._predictor is not None and self._last_was_token and not self._config.synchronous:
            self._set_ahead(self._controller.step(elapsed_ns))
        if time.monotonic() - self._kept_at > KEEP_EVERY_S:
            self.keep_history()
        self.scheduler_ns += time.perf_counter_ns() - started

    def _follow(self, policy: Policy, ids: IdArray) -> None:
        decode = len(ids) < self._config.prefill_tokens
        self._last_was_token = len(ids) == 1
        states = self._states()
        resident, pending = states == RESIDENT, states == PENDING
        policy.observe(ids, resident, decode)
        if not decode:
            return
        limit: int | IdArray = self._config.uploads_per_step
        if self._predictor is not None:
            limit = np.maximum(limit - self._native.ahead_spent(len(states)), 0)
        self._native.submit(policy.plan(resident, pending, limit))
        if self._config.synchronous:
            self._native.wait_uploads(SYNCHRONOUS_S)

    def keep_history(self) -> None:
        """Write what was learnt so far, in the background; a crash loses what came after."""
        self._kept_at = now = time.monotonic()
        profile = self._history()
        if profile is None:
            return
        learnt = None
        if now - self._learnt_kept_at > KEEP_LEARNT_EVERY_S:
            self._learnt_kept_at, learnt = now, self._learnt()
        self._keeper.join()
        work: tuple[object, ...] = (profile, learnt, [])
        self._keeper = threading.Thread(target=self._write_history, args=work, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Keep the routing history. The core stays open."""
        self._keeper.join()
        if profile := self._history():
            self._write_history(profile, self._learnt(), self.notes)
        self._native.set_ahead(None, LEAD, 0, 0.0, False)
        if self._predictor is not None:
            self._predictor.close()

    # ---- inside ----

    def _history(self) -> history.Profile | None:
        """What was known before and this run, together."""
        if self.shape is None or self._config.profile == "off" or not self._heat.any():
            return None
        recent = np.stack(self._recent) if self._recent else np.zeros((0, *self._last.shape), dtype=np.int32)
        run = history.Profile(self._identity, self._heat.copy(), float(self.stats().tokens), recent=recent)
        return history.merge(self._profile, run)

    def _learnt(self) -> predictor.Tables | None:
        return self._predictor.learnt() if self._predictor is not None else None

    def _write_history(self, profile: history.Profile, learnt: predictor.Tables | None, notes: list[str]) -> None:
        history.save(profile, self._profile_folder(), notes)
        if learnt is not None and learnt.tokens >= LEAST_LEARNT:
            try:
                predictor.save(learnt, self._identity, self._profile_folder())
            except OSError as error:
                notes.append(f"What was learnt about routing was not saved: {error}.")

    def _load_predictor(self) -> NativePredictor | None:
        if self.shape is None or self.device == "none" or self._config.policy != "adaptive":
            return None
        shape = (self.shape.layers, self.shape.experts, self.shape.used)
        tables = None
        if self._config.profile != "off":
            tables = predictor.load(self._identity, self._profile_folder(), shape, self.notes)
        return NativePredictor((tables or predictor.untrained(*shape)).only(LEAD))

    def _set_ahead(self, on: bool) -> None:
        if self._predictor is None or self._config.prefetch == "off":
            on = False
        if on != self._ahead:
            self._ahead = on
            handle = self._predictor.handle if self._predictor is not None and on else None
            self._native.set_ahead(handle, LEAD, self._config.uploads_per_step, GAIN, self._config.synchronous)

    def _note_layers(self) -> None:
        infos = self._native.layers()
        for layers, what in (
            (
                [i.block for i in infos if i.understood == 0],
                "a pattern that is not understood: it runs as in llama.cpp",
            ),
            (
                [i.block for i in infos if i.device_can == 0],
                f"operations that {self.device} lacks: the CPU computes them",
            ),
        ):
            if layers:
                self.notes.append(f"The experts of layer {', '.join(map(str, layers))} have {what}.")

    def _states(self) -> npt.NDArray[np.uint8]:
        if self.shape is None:
            return np.zeros((0, 0), dtype=np.uint8)
        return self._native.residency(self.shape.layers, self.shape.experts)

    def _steps(self, events: npt.NDArray[np.int32]) -> Iterator[IdArray]:
        """Regroup events into arrays ``(tokens, layers, k)``, one per batch that was computed."""
        assert self.shape is not None
        layers, k = self.shape.layers, self._last.shape[1]
        if len(events) == layers * (3 + k):  # one token through all layers: by far the most common
            table = events.reshape(layers, 3 + k)
            if (table[:, 1] == 1).all() and (table[:, 2] == k).all():
                yield table[:, 3:].reshape(1, layers, k).copy()
                return
        yield from self._irregular_steps(events, layers, k)

    def _irregular_steps(self, events: npt.NDArray[np.int32], layers: int, k: int) -> Iterator[IdArray]:
        """Any batch: a new one begins where the layers start again; layers may use fewer experts than others."""
        step: IdArray | None = None
        previous, at = -1, 0
        while at < len(events):
            block, tokens, used = (int(v) for v in events[at : at + 3])
            ids = events[at + 3 : at + 3 + tokens * used].reshape(tokens, used)
            at += 3 + tokens * used
            row = self._row_of.get(block)
            if row is None:
                continue
            if step is None or row <= previous:
                if step is not None:
                    yield step
                step = np.full((tokens, layers, k), -1, dtype=np.int32)
            n, width = min(tokens, len(step)), min(used, k)  # the last layer may compute the last tokens only
            step[len(step) - n :, row, :width] = ids[tokens - n :, :width]
            previous = row
        if step is not None:
            yield step

    def _note_use(self, ids: IdArray) -> None:
        assert self.shape is not None
        self._last = ids[-1]
        flat = (ids + self._row_start).ravel()
        if ids.min() < 0:
            flat = flat[ids.ravel() >= 0]
        if len(ids) < self._config.prefill_tokens:
            self._recent.extend(ids)
        if len(ids) == 1:  # a token uses an expert of a layer once: no index is there twice
            self._heat.reshape(-1)[flat] += 1.0
        else:
            self._heat += np.bincount(flat, minlength=self._heat.size).reshape(self._heat.shape)
        if self._recording is not None:
            self._recording.append(ids)

    def _place(self, budget: Budget) -> None:
        """Allocate slots within the budget, and start to fill them."""
        assert self.shape is not None
        wanted = self._budget_bytes(budget)
        for _ in range(ALLOCATION_ATTEMPTS):
            slots = plan_slots(self.shape, wanted)
            try:
                self._native.set_slots(slots)
                break
            except DoesNotFit as error:
                self.notes.append(f"{self.device} had no room for {wanted / 2**20:.0f} MiB of experts ({error}).")
                wanted //= 2
        else:
            slots = np.zeros(self.shape.layers, dtype=np.int32)
            self._native.set_slots(slots)
        if not slots.any():
            self.notes.append(
                f"The budget of {wanted / 2**20:.0f} MiB is below 2 x top-k experts for any layer: "
                "all experts stay on the CPU."
            )
        if self._policy is not None:  # it keeps what it learnt; the core emptied the layers that changed
            self._native.submit(self._policy.resize(slots, self.residency()))
            return
        self._policy = make(self._config.policy, self.shape, slots, self._predictor)
        if self._config.prefetch == "lookahead":
            self.notes.append("Look-ahead prefetch is not there yet: prefetch follows the routing history.")
        if self._policy is not None:
            self._native.submit(self._policy.start(self._profile.heat if self._profile else None))
        self._set_ahead(True)
        if self._config.synchronous:
            self._native.wait_uploads(SYNCHRONOUS_S)

    def _budget_bytes(self, budget: Budget) -> int:
        assert self.shape is not None
        total = sum(self.shape.expert_bytes) * self.shape.experts
        if budget.share is not None:
            return int(total * budget.share)
        if budget.bytes is not None:
            return min(budget.bytes, total)
        free, device_total = self._native.device_memory()
        held = self._native.stats().slot_bytes
        overhead = self.shape.layers * LAYER_OVERHEAD
        return min(total, experts_room(free + held, device_total, self._spare_bytes + overhead))

    def _profile_folder(self) -> Path:
        return Path(self._config.profile) if self._config.profile not in ("auto", "off") else home("data") / "profiles"

    def _load_profile(self) -> history.Profile | None:
        if self.shape is None or self._config.profile == "off":
            return None
        shape = (self.shape.layers, self.shape.experts)
        return history.load(self._identity, self._profile_folder(), shape, self.notes)
