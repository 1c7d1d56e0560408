"""The experts of a loaded model, as users see them: figures, placement, recording."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..config import Budget
from ..errors import ConfigError
from ..models.page_cache import Residence
from ..routing import trace
from ..types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape
from .binding import NativeEngine
from .hot_set import HotSet
from .opening import Opening
from .routing_log import RoutingLog
from .scheduler import Scheduler


class Experts:
    """The experts of a loaded model: placement, figures, recording.

    All arrays have the shape ``(layers, experts)`` and belong to the caller. ``stats``, ``residency``, ``heat`` and
    ``last`` may be called from any thread while the model computes.

    Attributes:
        shape: geometry of the routed experts, None for a dense model.
        device: name of the device that holds the hot experts, ``none`` without one.
        notes: sentences that the user should know.
        free_before: bytes of device memory and of RAM that were free before the model was loaded.
    """

    def __init__(
        self,
        native: NativeEngine,
        hot: HotSet,
        scheduler: Scheduler,
        log: RoutingLog,
        opening: Opening,
        notes: list[str],
    ) -> None:
        """Show the parts of an engine to its user."""
        self._native, self._hot, self._scheduler, self._log = native, hot, scheduler, log
        self._identity, self._prefill_tokens = opening.identity, opening.config.prefill_tokens
        self._expert_bytes = opening.needs.expert_bytes
        self._residence = Residence.of_experts(opening.file) if opening.maps_weights else None
        self.shape: ModelShape | None = hot.shape if hot.shape.layers else None
        self.device = hot.device or "none"
        self.notes = notes
        self.free_before = (opening.machine.device_free_bytes, opening.machine.ram_free_bytes)

    @property
    def automatic(self) -> bool:
        """Tell whether the budget follows the free memory of the device."""
        return self._scheduler.automatic

    @property
    def scheduler_ns(self) -> int:
        """Give the wall time spent between steps, in nanoseconds: routing, policy, predictor."""
        return self._scheduler.elapsed_ns

    def stats(self) -> ExpertStats:
        """Return the counters since the model was loaded."""
        return self._native.stats()

    def residency(self) -> BoolArray:
        """Mark the experts that are in device memory."""
        return self._hot.resident()

    def pending(self) -> BoolArray:
        """Mark the experts that are on their way to device memory."""
        return self._hot.pending()

    def heat(self) -> FloatArray:
        """Count how often each expert was routed to since the model was loaded, prefill included."""
        return self._log.heat()

    def last(self) -> IdArray:
        """Return the experts of the last computed token, shape ``(layers, k)``, -1 where unknown."""
        return self._log.last()

    def in_ram(self) -> float | None:
        """Estimate the share of the expert bytes that is in RAM, 0..1, from a sample of pages of the file.

        The rest is read from the disk when it is needed. None when the system does not tell, or when the weights are
        no pages of a file.
        """
        stats = self._native.stats()
        if stats.ram_budget:
            return stats.ram_bytes / max(1, self._expert_bytes)
        return self._residence.share_in_ram() if self._residence is not None else None

    def resize(self, vram: str | int) -> int:
        """Change the device budget while the model runs; return the slots that there are now.

        The hot set is uploaded again in the background. Call it between answers or from another thread.

        Raises:
            ConfigError: ``vram`` is not a size.
        """
        budget = Budget.parse(vram)
        self._scheduler.automatic = budget.automatic
        return self._scheduler.resize(budget)

    def pin(self, layer: int, expert: int, pinned: bool = True) -> None:
        """Keep an expert on the device, even if no token uses it; or let it go again. Call it from any thread.

        The policy's next turn uploads the expert; never without a device or with the policy ``off``.

        Args:
            layer: row of `residency`.
            expert: column of `residency`.
            pinned: False takes it back.

        Raises:
            ConfigError: there is no such expert.
        """
        if self.shape is None or not (0 <= layer < self.shape.layers and 0 <= expert < self.shape.experts):
            raise ConfigError(f"there is no expert {expert} in layer {layer}")
        self._scheduler.pin(layer, expert, pinned)

    def pinned(self) -> BoolArray:
        """Mark the pinned experts."""
        return self._scheduler.pinned()

    def wait(self, timeout_s: float = 60.0) -> bool:
        """Wait until every upload asked for has arrived; return False when that takes longer."""
        return self._native.wait_uploads(timeout_s)

    @contextlib.contextmanager
    def record(self, path: str | Path) -> Iterator[None]:
        """Write every routing choice made inside the ``with`` block to a trace file (``.npz``)."""
        self._log.record()
        try:
            yield
        finally:
            batches = self._log.recorded()
            if batches and self.shape is not None:
                self._write_trace(Path(path), batches, self.shape)

    def _write_trace(self, path: Path, batches: list[tuple[IdArray, IdArray]], shape: ModelShape) -> None:
        ids, tokens = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        trace.write(
            path,
            ids,
            np.array([0, len(ids)], dtype=np.int64),
            tokens=tokens,
            is_decode=np.array([len(batch) < self._prefill_tokens for batch, _ in batches for _ in batch]),
            n_expert=shape.experts,
            expert_bytes=np.array(shape.expert_bytes, dtype=np.int64),
            meta=json.dumps({"model": self._identity}),
        )

    def force(self, ids: IdArray) -> None:
        """Take experts from a recorded trace instead of the router, for benchmarks on models of the same shape.

        Args:
            ids: ``(tokens, layers, used)``, a row for each token computed from now on, prompts included; repeated when
                it ends. Without tokens, the router decides again.

        Raises:
            EdgeMoEError: the trace names experts that the model has not.
        """
        self._native.force(ids)
        if len(ids):
            self.notes.append("Routing is forced from a trace: the answers mean nothing.")
