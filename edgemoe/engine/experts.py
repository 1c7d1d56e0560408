"""Where the experts of one model are, and who moves them: the seam between the core and the policy."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Budget, OffloadConfig, home
from ..errors import ConfigError, DoesNotFit
from ..models.gguf import GgufFile
from ..models.page_cache import Residence
from ..planning.placement import LAYER_OVERHEAD, experts_room
from ..routing import history, predictor, trace
from ..routing.policy import Policy, make, plan_slots
from ..routing.prefetch import GAIN, LEAD, PLAN_EVERY, Controller
from ..types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape
from . import routers
from .binding import PENDING, RESIDENT, NativeEngine
from .predictor import NativePredictor
from .routing import Routing

# Routing history is written this often, so that a crash costs no more.
KEEP_EVERY_S = 60.0
# The predictor is a larger file and changes slowly.
KEEP_LEARNT_EVERY_S = 600.0
# A predictor that has seen fewer tokens is not worth a file.
LEAST_LEARNT = 200
SYNCHRONOUS_S = 60.0
# The share of the time that routing history and policy may take; they are asked less often otherwise. Where nothing is
# fetched ahead that costs hits: a quarter of gpt-oss-20b resident, every token .722, every second .704, fourth .687.
TURN_SHARE, TURN_SHARE_ON_DEMAND = 0.005, 0.01
# Where every expert is resident their routing makes no difference: it is noted of every so many tokens.
WATCH_EVERY = 64
# Batches that wait for the policy's next turn; only where somebody computes without us there are ever so many.
MOST_UNTOLD = 4096
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
        free_before: bytes of device memory and of RAM that were free before the model was loaded, None if not known.
        residence: tells what of the experts is in RAM, None where the weights are no pages of a file.
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
        self.free_before: tuple[int, int] | None = None
        self.residence: Residence | None = None
        infos = native.layers()
        self._row_of = {info.block: row for row, info in enumerate(infos)}
        self.shape: ModelShape | None = None
        if infos:
            experts = max(info.experts for info in infos)
            self.shape = ModelShape(len(infos), experts, used, tuple(int(info.expert_bytes) for info in infos))
        self._identity = identity
        self._policy: Policy | None = None
        experts = self.shape.experts if self.shape else 0
        self._routing = Routing(list(self._row_of), experts, used, config.prefill_tokens)
        self._pinned: BoolArray = np.zeros((len(infos), experts), dtype=np.bool_)
        self._pins_changed = False
        self._lock = threading.Lock()  # the routing may be asked for while the model computes
        self._untold: list[tuple[IdArray, IdArray]] = []
        self._waiting = self._turn_ns = 0
        self._noted = self._ahead = self._computing = False
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
        with self._lock:
            self._take()
            heat: FloatArray = self._routing.heat.copy()
        return heat

    def last(self) -> IdArray:
        """Experts of the last computed token, shape ``(layers, k)``, -1 where unknown."""
        with self._lock:
            self._take()
            last: IdArray = self._routing.last.copy()
        return last

    def in_ram(self) -> float | None:
        """Share of the expert bytes that is in RAM, 0..1, from a sample of their pages; the rest is read when needed.

        None where the system does not tell, or where the weights are no pages of a file.
        """
        return self.residence.share_in_ram() if self.residence is not None else None

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

    def pin(self, layer: int, expert: int, pinned: bool = True) -> None:
        """Keep an expert on the device, whatever the routing does, or let it go again. From any thread.

        It is fetched with the next turn of the policy; never without a device or with the policy ``off``.

        Args:
            layer: row of `residency`.
            expert: column of `residency`.
            pinned: False takes it back.

        Raises:
            ConfigError: there is no such expert.
        """
        if self.shape is None or not (0 <= layer < self.shape.layers and 0 <= expert < self.shape.experts):
            raise ConfigError(f"there is no expert {expert} in layer {layer}")
        with self._lock:
            self._pinned[layer, expert] = pinned
            self._pins_changed = True
        self._native.pin(layer, expert, pinned)

    def pinned(self) -> BoolArray:
        """True where an expert is pinned."""
        with self._lock:
            mask: BoolArray = self._pinned.copy()
        return mask

    def wait(self, timeout_s: float = 60.0) -> bool:
        """Wait until every upload asked for has arrived; False when that took longer."""
        return self._native.wait_uploads(timeout_s)

    @contextlib.contextmanager
    def record(self, path: str | Path) -> Iterator[None]:
        """Write every routing choice made inside the ``with`` block to a trace file (``.npz``)."""
        with self._lock:
            self._take()
            self._routing.record()
        self._native.watch(1)
        try:
            yield
        finally:
            self._native.watch(WATCH_EVERY)
            with self._lock:
                self._take()
                batches = self._routing.recorded()
            if batches and self.shape is not None:
                ids, tokens = (np.concatenate(parts) for parts in zip(*batches, strict=True))
                decode = [len(batch) < self._config.prefill_tokens for batch, _ in batches for _ in batch]
                trace.write(
                    Path(path),
                    ids,
                    np.array([0, len(ids)], dtype=np.int64),
                    tokens=tokens,
                    is_decode=np.array(decode),
                    n_expert=self.shape.experts,
                    expert_bytes=np.array(self.shape.expert_bytes, dtype=np.int64),
                    meta=json.dumps({"model": self._identity}),
                )

    def force(self, ids: IdArray) -> None:
        """Take experts from a recorded trace instead of the router, for benchmarks on shape twins.

        Args:
            ids: ``(tokens, layers, used)``, a row for each token computed from now on, prompts included; repeated when
                it ends. Without tokens, the router decides again.

        Raises:
            EdgeMoEError: the trace names experts that the model has not.
        """
        self._native.force(ids)
        if len(ids):
            self.notes.append("Routing is forced from a trace: the answers mean nothing.")

    # ---- what the engine calls ----

    def look_ahead(self, file: GgufFile) -> None:
        """Let the next layer's router say what to fetch ahead, beside the history, in a thread of its own."""
        if self._predictor is None:
            return
        found = routers.look_ahead(file, list(self._row_of), LEAD)
        for layer, router in enumerate(found):
            if router is not None:
                self._native.set_router(layer, router.weight, router.bias, router.select)
        if not any(found) and self._config.prefetch == "lookahead":
            self.notes.append("The routers of this model cannot look ahead: prefetch follows the routing history.")

    def before_step(self, tokens: Sequence[int]) -> None:
        """Fetch ahead what these tokens, about to be computed, are known to need."""
        with self._lock:
            self._computing = True
        if self._predictor is not None and len(tokens) == 1:
            self._native.begin_token(int(tokens[0]))

    def settle(self) -> None:
        """Count what was computed so far: by another than the engine, perhaps, who announced no step."""
        with self._lock:
            self._take()

    def after_step(self, tokens: Sequence[int], elapsed_ns: int = 0) -> None:
        """Hand the routing of the step just computed to the policy, and its wishes to the core.

        Steps of one token wait for each other where that costs no hits: the processor's caches are full of weights
        after each, so that this code is at its slowest then.

        Args:
            tokens: the token ids that were computed; fewer where the step was cut short.
            elapsed_ns: wall time of the step.
        """
        if self.shape is None:
            return
        started = time.perf_counter_ns()
        seen = self._native.end_step()
        with self._lock:
            if seen:
                self._routing.expect(tokens)
            self._computing = False
        if not self._noted:
            self._noted = True
            self._note_layers()
        self._waiting += 1
        if len(tokens) != 1 or self._waiting >= self._pace(elapsed_ns):
            self._waiting = 0
            with self._placing:
                self._follow()
            self._turn_ns = time.perf_counter_ns() - started
        if self._predictor is not None and len(tokens) == 1 and not self._config.synchronous:
            self._set_ahead(self._controller.step(elapsed_ns))
        if time.monotonic() - self._kept_at > KEEP_EVERY_S:
            self.keep_history()
        self.scheduler_ns += time.perf_counter_ns() - started

    def _pace(self, elapsed_ns: int) -> int:
        """Steps from one turn of the policy to the next."""
        on_demand = self._policy is not None and not self._ahead
        if self._config.synchronous:
            return 1 if on_demand else PLAN_EVERY
        affordable_ns = elapsed_ns * (TURN_SHARE_ON_DEMAND if on_demand else TURN_SHARE)
        return PLAN_EVERY if affordable_ns <= 0 else min(PLAN_EVERY, 1 + int(self._turn_ns / affordable_ns))

    def _follow(self) -> None:
        """Tell the policy what was computed since its last turn, and submit what it wants."""
        with self._lock:
            self._take()
            batches, self._untold = self._untold, []
            pinned = self._pinned.copy()
        if self._policy is None or not batches:
            return
        states = self._states()
        resident, pending = states == RESIDENT, states == PENDING
        for ids, tokens in batches:
            self._policy.observe(ids, resident, len(ids) < self._config.prefill_tokens)
            if self._predictor is not None and len(ids) > 1:
                self._predictor.seen(tokens, ids)
        if self._pins_changed or (pinned & ~resident & ~pending).any():
            self._pins_changed = False
            self._native.submit(self._policy.pin(pinned, resident, pending))
            states = self._states()
            resident, pending = states == RESIDENT, states == PENDING
        if len(batches[-1][0]) >= self._config.prefill_tokens:
            return
        limit: int | IdArray = self._config.uploads_per_step
        if self._predictor is not None:
            limit = np.maximum(limit - self._native.ahead_spent(len(states)), 0)
        self._native.submit(self._policy.plan(resident, pending, limit))
        if self._config.synchronous:
            self._native.wait_uploads(SYNCHRONOUS_S)

    def _take(self) -> None:
        """Count the routing that the core has noted so far, unless a step is half way; needs the lock."""
        if self._computing:
            return
        batches = self._routing.take(self._native.drain())
        if self._policy is not None:
            self._untold += batches
            del self._untold[:-MOST_UNTOLD]

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

    def keep(self, learnt: bool = True) -> None:
        """Write the routing history, and what was ``learnt`` unless a thread still computes; wait until it is there."""
        self._keeper.join()
        if profile := self._history():
            self._write_history(profile, self._learnt() if learnt else None, self.notes)

    def close(self) -> None:
        """Keep the routing history. The core stays open."""
        self.keep()
        self._native.set_ahead(None, LEAD, 0, 0.0, False)
        if self._predictor is not None:
            self._predictor.close()

    # ---- inside ----

    def _history(self) -> history.Profile | None:
        """What was known before and this run, together."""
        if self.shape is None or self._config.profile == "off":
            return None
        heat = self.heat()
        if not heat.any():
            return None
        run = history.Profile(self._identity, heat, float(self.stats().tokens), 1, *self._routing.recent())
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
        native = NativePredictor((tables or predictor.untrained(*shape)).only(LEAD))
        if self._profile is not None and self._profile.recent.shape[1:] == (shape[0], shape[2]):
            native.seen(self._profile.recent_tokens, self._profile.recent)
        return native

    def _set_ahead(self, on: bool) -> None:
        on = on and self._predictor is not None and self._config.prefetch != "off"
        if on != self._ahead and self._predictor is not None:
            self._ahead = on
            most = self._config.uploads_per_step if on else 0
            self._native.set_ahead(self._predictor.handle, LEAD, most, GAIN, self._config.synchronous)

    def _note_layers(self) -> None:
        infos = self._native.layers()
        for layers, what in (
            (
                [i.block for i in infos if i.pattern == 0],
                "a pattern that is not understood: it runs as in llama.cpp",
            ),
            (
                [i.block for i in infos if i.support == 0],
                f"operations that {self.device} lacks: the CPU computes them",
            ),
        ):
            if layers:
                self.notes.append(f"The experts of layer {', '.join(map(str, layers))} have {what}.")

    def _states(self) -> npt.NDArray[np.uint8]:
        if self.shape is None:
            return np.zeros((0, 0), dtype=np.uint8)
        return self._native.residency(self.shape.layers, self.shape.experts)

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
                f"No expert is on {self.device}: the budget of {wanted / 2**20:.0f} MiB is below 2 x top-k experts of "
                "any layer. All experts stay on the CPU."
            )
        if self._policy is not None:  # it keeps what it learnt; the core emptied the layers that changed
            self._native.submit(self._policy.resize(slots, self.residency()))
            return
        self._policy = make(self._config.policy, self.shape, slots, self._predictor)
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
