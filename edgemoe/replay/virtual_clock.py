"""A virtual clock: how long tokens would take on a machine, from bytes and bandwidths. Pure.

Of a layer the device reads its hits and the CPU its misses at the same time; the layer takes as long as the slower one.
Uploads share the link one after the other, beside everything else. **Source** of the form: ``ms/token = base +
misses/token x ms/miss`` held within 1 % on 5 of 6 placements measured by others; `bench/forecast.py` checks it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ..errors import ConfigError

SMOOTH = 0.1  # as the core's estimate of the time from layer to layer


@dataclass(frozen=True)
class ClockModel:
    """What a token's time is made of. The values are of a PC with two channels of DDR5 and a PCIe 4.0 x16 card.

    Attributes:
        cpu: bytes of expert weights that the CPU computes in a second.
        device: bytes of expert weights that the device computes in a second.
        link: bytes that are uploaded in a second.
        launch: seconds before and after the two sides compute, per layer with hits.
        join: seconds that a device needs besides computing, per layer with hits; the CPU computes meanwhile.
        rest: seconds of a token outside the expert layers.
        expert: bytes of one expert where the trace does not tell.
    """

    cpu: float = 45e9
    device: float = 400e9
    link: float = 24e9
    launch: float = 30e-6
    join: float = 70e-6
    rest: float = 5e-3
    expert: float = 5e6

    @classmethod
    def parse(cls, text: str) -> ClockModel:
        """Read ``cpu=45e9,link=24e9``; what is not given keeps its value.

        Raises:
            ConfigError: a name is unknown, or a value is no number above 0.
        """
        known = [field.name for field in fields(cls)]
        machine = cls()
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if name not in known or not 0 < number < float("inf"):
                raise ConfigError(f"--clock {part!r} is unknown", f"numbers above 0 for any of: {', '.join(known)}")
            machine = replace(machine, **{name: number})
        return machine

    def layer_s(self, expert_bytes: float, hits: int, misses: int) -> float:
        """Seconds of one expert layer for one token."""
        on_cpu = misses * expert_bytes / self.cpu
        return self.launch + max(hits * expert_bytes / self.device + self.join, on_cpu) if hits else on_cpu


class Clock:
    """Time passing over a replay.

    Attributes:
        now: seconds since the beginning.
    """

    def __init__(self, machine: ClockModel, layers: int, expert_bytes: Sequence[float] | None) -> None:
        """Begin at 0; ``expert_bytes`` is of one expert of each layer, None where only the machine tells."""
        self.now = 0.0
        self._machine = machine
        self._bytes = [float(size) for size in expert_bytes] if expert_bytes is not None else [machine.expert] * layers
        self._rest = machine.rest / layers
        self._link_free = 0.0
        self._layer_s = 0.0

    def approach(self) -> None:
        """Let pass what lies before the experts of a layer."""
        self.now += self._rest

    def compute(self, layer: int, hits: int, misses: int) -> None:
        """Let the experts of a layer compute."""
        took = self._machine.layer_s(self._bytes[layer], hits, misses)
        self._layer_s += (SMOOTH if self._layer_s else 1.0) * (took + self._rest - self._layer_s)
        self.now += took

    def upload(self, layer: int) -> float:
        """Queue one expert of a layer; returns when it arrives."""
        self._link_free = max(self.now, self._link_free) + self._bytes[layer] / self._machine.link
        return self._link_free

    def room(self, layer: int, lead: int, most: int) -> int:
        """How many experts would arrive before a layer so far ahead, as the core reckons."""
        if not self._layer_s:
            return most
        left = self._layer_s * lead - max(0.0, self._link_free - self.now)
        return min(max(int(left * self._machine.link / self._bytes[layer]), 0), most)
