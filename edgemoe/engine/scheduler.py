"""Turns of the policy: between two steps the policy hears of the routing so far and names experts to load.

Ordering: one lock is held while slots change and while the policy runs, because the watchdog resizes from its own
thread. The pins have a lock of their own: any thread may pin while the policy runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from ..config import Budget, OffloadConfig
from ..models.gguf import GgufFile
from ..planning.placement import slots_overhead
from ..routing import history, predictor
from ..routing.policy import Policy, make
from ..routing.prefetch import GAIN, LEAD, PLAN_EVERY, Controller
from ..types import BoolArray, IdArray
from . import routers
from .binding import PENDING, RESIDENT, NativeEngine
from .hot_set import HotSet
from .keeper import Keeper
from .predictor import NativePredictor
from .routing_log import RoutingLog
from .third_tier import RamWatch

SYNCHRONOUS_S = 60.0
# Shares of the time that routing log and policy may take, with prefetch and without. Above that the policy gets fewer
# turns. Without prefetch fewer turns cost hits. Hit rates with a quarter of gpt-oss-20b resident: a turn every token
# .722, every second token .704, every fourth token .687.
TURN_SHARE, TURN_SHARE_ON_DEMAND = 0.005, 0.01


class Scheduler:
    """Moves the experts of one model.

    Attributes:
        automatic: the budget follows the free memory of the device.
        elapsed_ns: wall time spent between steps: routing log, policy, predictor.
        predictor: names experts to fetch ahead of need, None without a device or with another policy than ``adaptive``.
        prefetching: experts are fetched ahead of need.
    """

    def __init__(
        self,
        native: NativeEngine,
        hot: HotSet,
        log: RoutingLog,
        keeper: Keeper,
        config: OffloadConfig,
        notes: list[str],
    ) -> None:
        """Give the experts their slots, and start to fill them.

        Args:
            native: the core's engine, with the model loaded.
            hot: the slots.
            log: the routing.
            keeper: the files of earlier runs.
            config: the settings.
            notes: gets sentences for the user.
        """
        self._native, self._hot, self._log, self._keeper = native, hot, log, keeper
        self._config, self._notes = config, notes
        self.automatic = config.budget.automatic
        self.elapsed_ns = 0
        self.prefetching = False
        self.predictor = self._open_predictor()
        self._policy: Policy | None = None
        self._controller = Controller()
        self._placing = threading.Lock()
        self._pinning = threading.Lock()
        self._pinned: BoolArray = np.zeros((hot.shape.layers, hot.shape.experts), dtype=np.bool_)
        self._pins_changed = self._layers_noted = False
        self._waiting = self._turn_ns = 0
        self._ram: RamWatch | None = None
        if hot.shape.layers and hot.device:
            self._start()

    def _open_predictor(self) -> NativePredictor | None:
        shape, profile = self._hot.shape, self._keeper.profile
        if not shape.layers or not self._hot.device or self._config.policy != "adaptive":
            return None
        tables = self._keeper.tables() or predictor.untrained(shape.layers, shape.experts, shape.used)
        native = NativePredictor(tables.only(LEAD))
        if profile is not None and profile.recent.shape[1:] == (shape.layers, shape.used):
            native.seen(profile.recent_tokens, profile.recent)
        return native

    def _start(self) -> None:
        slots, profile = self._hot.place(self._config.budget), self._keeper.profile
        self._policy = make(self._config.policy, self._hot.shape, slots, self.predictor)
        if self._policy is not None:
            self._native.submit(self._policy.start(profile.heat if profile else None))
        self._prefetch(True)
        if self._config.synchronous:
            self._native.wait_uploads(SYNCHRONOUS_S)

    def look_ahead(self, file: GgufFile) -> None:
        """Run the next layer's router ahead, too, in a thread of the core; its choices become prefetches."""
        if self.predictor is None:
            return
        found = routers.look_ahead(file, [info.block for info in self._native.layers()], LEAD)
        for layer, router in enumerate(found):
            if router is not None:
                self._native.set_router(layer, router.weight, router.bias, router.select)
        if not any(found) and self._config.prefetch == "lookahead":
            self._notes.append("The routers of this model cannot look ahead: prefetch follows the routing history.")

    # ---- one step ----

    def before_step(self, tokens: Sequence[int]) -> None:
        """Prefetch experts for the first layers of these tokens, which are computed next."""
        started = time.perf_counter_ns()
        self._log.begin_step()
        if self.predictor is not None and len(tokens) == 1:
            self._native.begin_token(int(tokens[0]))
        self.elapsed_ns += time.perf_counter_ns() - started

    def settle(self) -> None:
        """Count the routing so far, because a program may have computed without `before_step`."""
        self._log.settle()

    def after_step(self, tokens: Sequence[int], elapsed_ns: int = 0) -> None:
        """Give the policy its turn, and submit the loads that it wants.

        Steps of one token share a turn if that costs no hits. After each step the processor's caches are full of
        weights, and this code runs slowly.

        Args:
            tokens: the token ids that were computed; fewer when the step was cut short.
            elapsed_ns: wall time of the step.
        """
        if not self._hot.shape.layers:
            return
        started = time.perf_counter_ns()
        self._log.end_step(tokens)
        self._note_layers()
        self._waiting += 1
        if len(tokens) != 1 or self._waiting >= self._pace(elapsed_ns):
            self._waiting = 0
            with self._placing:
                self._turn()
            self._turn_ns = time.perf_counter_ns() - started
        if self.predictor is not None and len(tokens) == 1 and not self._config.synchronous:
            self._prefetch(self._controller.step(elapsed_ns))
        if self._ram is not None:
            self._ram.look()
        if self._keeper.due:
            self._keeper.keep_later(self._run(), self._tables)
        self.elapsed_ns += time.perf_counter_ns() - started

    def _pace(self, elapsed_ns: int) -> int:
        """Count the steps from one turn of the policy to the next."""
        on_demand = self._policy is not None and not self.prefetching
        if self._config.synchronous:
            return 1 if on_demand else PLAN_EVERY
        affordable_ns = elapsed_ns * (TURN_SHARE_ON_DEMAND if on_demand else TURN_SHARE)
        return PLAN_EVERY if affordable_ns <= 0 else min(PLAN_EVERY, 1 + int(self._turn_ns / affordable_ns))

    def _turn(self) -> None:
        """Tell the policy which batches were computed since its last turn, and submit the loads that it wants."""
        batches, policy = self._log.unreported(), self._policy
        if policy is None or not batches:
            return
        resident, pending = self._states()
        for ids, tokens in batches:
            policy.observe(ids, resident, len(ids) < self._config.prefill_tokens)
            if self.predictor is not None and len(ids) > 1:
                self.predictor.seen(tokens, ids)
        if self._follow_pins(policy, resident, pending):
            resident, pending = self._states()
        if len(batches[-1][0]) >= self._config.prefill_tokens:
            return
        limit: int | IdArray = self._config.uploads_per_step
        if self.predictor is not None:
            limit = np.maximum(limit - self._native.ahead_spent(len(resident)), 0)
        self._native.submit(policy.choose(resident, pending, limit))
        if self._config.synchronous:
            self._native.wait_uploads(SYNCHRONOUS_S)

    def _states(self) -> tuple[BoolArray, BoolArray]:
        states = self._hot.states()
        return states == RESIDENT, states == PENDING

    def _follow_pins(self, policy: Policy, resident: BoolArray, pending: BoolArray) -> bool:
        """Load pinned experts that are not on the device; return whether the policy was asked."""
        with self._pinning:
            pinned, changed, self._pins_changed = self._pinned.copy(), self._pins_changed, False
        if not changed and not (pinned & ~resident & ~pending).any():
            return False
        self._native.submit(policy.pin(pinned, resident, pending))
        return True

    def _prefetch(self, on: bool) -> None:
        on = on and self.predictor is not None and self._config.prefetch != "off"
        if on != self.prefetching and self.predictor is not None:
            self.prefetching = on
            most = self._config.uploads_per_step if on else 0
            self._native.set_ahead(self.predictor.handle, LEAD, most, GAIN, self._config.synchronous)

    def _note_layers(self) -> None:
        """Tell the user, once, which layers do not run as planned."""
        if self._layers_noted:
            return
        self._layers_noted = True
        infos = self._native.layers()
        unknown = [info.block for info in infos if info.pattern == 0]
        lacking = [info.block for info in infos if info.support == 0]
        reasons = (
            (unknown, "a pattern that is not understood: it runs as in llama.cpp"),
            (lacking, f"operations that {self._hot.device or 'none'} lacks: the CPU computes them"),
        )
        for layers, reason in reasons:
            if layers:
                self._notes.append(f"The experts of layer {', '.join(map(str, layers))} have {reason}.")

    # ---- wishes of users and of the watchdog ----

    def resize(self, budget: Budget) -> int:
        """Change the budget and return the slots that there are now; the policy keeps its memory."""
        if self._hot.shape.layers and self._hot.device:
            with self._placing:
                self._fill(self._hot.place(budget))
        return self._native.stats().slots

    def _fill(self, slots: IdArray) -> None:
        if self._policy is not None:
            self._native.submit(self._policy.resize(slots, self._hot.resident()))

    def fit_memory(self, vram: int) -> int:
        """Resize to ``vram`` bytes of device memory, alignment included."""
        with self._placing:
            self._fill(self._hot.allocate(max(0, vram - slots_overhead(self._hot.shape))))
        return self._native.stats().slots

    def pin(self, layer: int, expert: int, pinned: bool) -> None:
        """Keep an expert on the device from the next turn on, or let it go again. From any thread."""
        with self._pinning:
            self._pinned[layer, expert] = pinned
            self._pins_changed = True
        self._native.pin(layer, expert, pinned)

    def pinned(self) -> BoolArray:
        """Mark the pinned experts, ``(layers, experts)``."""
        with self._pinning:
            mask: BoolArray = self._pinned.copy()
        return mask

    def memory(self) -> tuple[int, int]:
        """Give the free and the total bytes of the device."""
        return self._hot.memory()

    def follow(self, watch: RamWatch) -> None:
        """Look at the free RAM after each step: the experts take RAM that other programs may need."""
        self._ram = watch

    def disk_failure(self) -> str:
        """Describe the latest read of the disk that failed since the last call; empty if none did."""
        return self._native.disk_failure()

    def held(self) -> int:
        """Count the bytes of the slots."""
        return self._native.stats().slot_bytes

    # ---- the end ----

    def keep(self, tables: bool = True) -> None:
        """Write the routing profile and wait for it.

        Args:
            tables: write the predictor's tables, too; not while a thread still computes.
        """
        self._keeper.keep(self._run(), self._tables() if tables else None)

    def close(self) -> None:
        """Keep the routing profile, and stop to prefetch. The core stays open."""
        self.keep()
        self._native.set_ahead(None, LEAD, 0, 0.0, False)
        if self.predictor is not None:
            self.predictor.close()

    def _run(self) -> history.Profile:
        """Give the routing since the model was loaded."""
        heat = self._log.heat()
        return history.Profile(self._keeper.identity, heat, float(self._native.stats().tokens), 1, *self._log.recent())

    def _tables(self) -> predictor.Tables | None:
        return self.predictor.learnt() if self.predictor is not None else None
