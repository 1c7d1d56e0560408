"""The routing of one model as it is computed: taken from the core, counted, and given to the policy."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..types import FloatArray, IdArray
from .binding import NativeEngine
from .routing import Routing

# Most batches that wait for the policy's next turn. Only a program that calls llama_decode itself lets so many wait.
MOST_UNREPORTED = 4096
# If every expert is resident, their routing changes nothing. Then the core reads it for one of so many tokens.
WATCH_EVERY = 64


class RoutingLog:
    """Counts the experts that tokens were routed to. Every method may be called from any thread.

    A step that is half computed is never counted: from `begin_step` to `end_step` its events stay in the core.
    """

    def __init__(self, native: NativeEngine, routing: Routing) -> None:
        """Take events from ``native`` and count them in ``routing``."""
        self._native, self._routing = native, routing
        self._lock = threading.Lock()
        self._unreported: list[tuple[IdArray, IdArray]] = []
        self._computing = False

    def begin_step(self) -> None:
        """Leave the events in the core until `end_step`."""
        with self._lock:
            self._computing = True

    def end_step(self, tokens: Sequence[int]) -> None:
        """Expect the events of the step just computed; ``tokens`` are the token ids that were computed."""
        noted = self._native.end_step()
        with self._lock:
            if noted:
                self._routing.expect(tokens)
            self._computing = False

    def settle(self) -> None:
        """Count everything that was computed so far."""
        with self._lock:
            self._take()

    def unreported(self) -> list[tuple[IdArray, IdArray]]:
        """Return the batches since the last call, each as ``(ids, tokens)``, see `Routing.take`."""
        with self._lock:
            self._take()
            batches, self._unreported = self._unreported, []
        return batches

    def heat(self) -> FloatArray:
        """Count the uses of each expert since the model was loaded, ``(layers, experts)``."""
        with self._lock:
            self._take()
            heat: FloatArray = self._routing.heat.copy()
        return heat

    def last(self) -> IdArray:
        """Give the experts of the last computed token, ``(layers, used)``, -1 where unknown."""
        with self._lock:
            self._take()
            last: IdArray = self._routing.last.copy()
        return last

    def recent(self) -> tuple[IdArray, IdArray]:
        """Give routing ``(tokens, layers, used)`` and ids ``(tokens,)`` of the latest decode tokens."""
        with self._lock:
            return self._routing.recent()

    def record(self) -> None:
        """Keep every batch from now on, until `recorded`."""
        with self._lock:
            self._take()
            self._routing.record()
        self._native.watch(1)

    def recorded(self) -> list[tuple[IdArray, IdArray]]:
        """Stop keeping, and return the batches since `record`, each as ``(ids, tokens)``."""
        self._native.watch(WATCH_EVERY)
        with self._lock:
            self._take()
            return self._routing.recorded()

    def _take(self) -> None:
        """Count the events that the core has noted, unless a step is half computed; needs the lock."""
        if self._computing:
            return
        self._unreported += self._routing.take(self._native.drain())
        del self._unreported[:-MOST_UNREPORTED]
