"""A virtual clock: it forecasts the time of tokens on a machine, from bytes and bandwidths. Pure.

The device reads a layer's hits and the CPU reads its misses at the same time. The layer takes as long as the slower
side. Uploads use the link one after the other, and nothing waits for them. **Source** of the form: others measured six
placements, and ``ms/token = base + misses/token x ms/miss`` held within 1 % on five of them. `bench/forecast.py` checks
the form here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ..errors import ConfigError

SMOOTH = 0.1  # the same as in the core's estimate of the time from layer to layer


@dataclass(frozen=True)
class ClockModel:
    """Hold the parts of a token's time. The defaults are for a PC with two channels of DDR5 and a PCIe 4.0 x16 card.

    Attributes:
        cpu: bytes of expert weights that the CPU computes in a second.
        device: bytes of expert weights that the device computes in a second.
        link: bytes that are uploaded in a second.
        launch: seconds before and after the two sides compute, per layer with hits.
        join: seconds that the device needs besides computing, per layer with hits. The CPU computes meanwhile.
        rest: seconds of a token outside the expert layers.
        expert: bytes of one expert if the trace does not have them.
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
        """Read ``cpu=45e9,link=24e9``. Every other value keeps its default.

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
        """Compute the seconds of one expert layer for one token."""
        on_cpu = misses * expert_bytes / self.cpu
        return self.launch + max(hits * expert_bytes / self.device + self.join, on_cpu) if hits else on_cpu


class Clock:
    """Measure the time of a replay.

    Attributes:
        now: seconds since the beginning.
    """

    def __init__(self, machine: ClockModel, layers: int, expert_bytes: Sequence[float] | None) -> None:
        """Begin at 0. ``expert_bytes`` has the bytes of one expert for each layer; None takes the machine's figure."""
        self.now = 0.0
        self._machine = machine
        self._bytes = [float(size) for size in expert_bytes] if expert_bytes is not None else [machine.expert] * layers
        self._rest = machine.rest / layers
        self._link_free = 0.0
        self._layer_s = 0.0

    def approach(self) -> None:
        """Advance by the time of a layer outside its experts."""
        self.now += self._rest

    def compute(self, layer: int, hits: int, misses: int) -> None:
        """Advance by the time of a layer's experts."""
        took = self._machine.layer_s(self._bytes[layer], hits, misses)
        self._layer_s += (SMOOTH if self._layer_s else 1.0) * (took + self._rest - self._layer_s)
        self.now += took

    def upload(self, layer: int) -> float:
        """Queue one expert of a layer and return the time of its arrival."""
        self._link_free = max(self.now, self._link_free) + self._bytes[layer] / self._machine.link
        return self._link_free

    def room(self, layer: int, lead: int, most: int) -> int:
        """Estimate how many experts would arrive before the layer ``lead`` layers ahead, with the core's rule."""
        if not self._layer_s:
            return most
        left = self._layer_s * lead - max(0.0, self._link_free - self.now)
        return min(max(int(left * self._machine.link / self._bytes[layer]), 0), most)
