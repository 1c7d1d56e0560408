"""Go through the cells: open contenders, check that they agree, measure them in turns, stop before a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import agreement, cells
from .cells import Cell, Contender, Size
from .journal import Journal

Say = Callable[[str], None]
SPARE = 0.5e9  # bytes of device memory that stay free


class Failed(Exception):
    """A contender could not fulfil a request; the text gives the reason."""


class Opened(Protocol):
    """Describe a model that is open in its own process."""

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raises `Failed`."""

    def close(self) -> None:
        """End it."""


class Child:
    """Run a process that answers requests, see `child`.

    Args:
        device: tells the process how to find its device.
        log: file for all output of the process except its answers.
        patience_s: longest time of a request in seconds. After it the process is killed.
    """

    def __init__(self, device: dict[str, Any], log: Path, patience_s: float) -> None:
        """Start the process and let it find its device; raises `Failed` without one."""
        command = [sys.executable, "-m", "bench.gpu.child"]
        with log.open("a") as file:  # its own process group, so that its servers end with it
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
            )
        self._log, self._patience_s = log, patience_s
        self.found = self.ask("device", **device)
        if not self.found["there"]:
            self.close()
            raise Failed(f"there is no device {device['device']}; ggml sees {self.found['devices'] or 'none'}")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        alarm = threading.Timer(self._patience_s, self._kill)
        alarm.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            self._process.wait()
            said = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()]
            raise Failed(f"the process ended ({self._process.returncode}) during {do}: {' | '.join(said[-3:])}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(f"{do}: {found['error']}")
        return found

    def close(self) -> None:
        """End the process. A process that does not end by itself is killed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Model:
    """Hold a finished twin: its file, its forced routing, its size."""

    name: str
    path: Path
    routing: Path
    size: Size
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """Hold the settings that all contenders share.

    Attributes:
        scope: request of the run.
        device: tells a process how to find its device.
        threads: number of CPU threads.
        repetitions: repetitions of each cell.
        warm_tokens: tokens that are decoded before the first measurement.
        folder: folder for logs and logits.
        deadline: deadline on `clock`; None for none.
        slow: factor on planned times that are not measured yet.
        room: bytes of device memory for all contenders together; None without a limit.
        apart: True opens one contender at a time, even with room for all.
        events: True repeats decoding once more for the device's own events.
        kv: type of the KV cache.
    """

    scope: cells.Scope
    device: dict[str, Any]
    threads: int
    repetitions: int
    warm_tokens: int
    folder: Path
    deadline: float | None = None
    slow: float = 1.0
    room: int | None = None
    apart: bool = False
    events: bool = False
    kv: str = "f16"
    clock: Callable[[], float] = time.monotonic


class Session:
    """Run all cells of a plan that are not complete yet."""

    def __init__(self, setting: Setting, journal: Journal, start: Callable[[], Opened], say: Say) -> None:
        """Store the settings. ``start`` gives a process with its device and without a model."""
        self._set, self._journal, self._start, self._say = setting, journal, start, say
        self._open: dict[str, Opened] = {}
        self._model = ""
        self._equal: dict[float, int] = {}
        self._broken: set[tuple[str, str]] = set()
        self._apart = False  # the contenders of this cell are open one at a time

    def run(self, todo: Sequence[Cell], model_of: Callable[[str], Model]) -> bool:
        """Measure all cells. True: every cell is complete or impossible. False: the deadline came first."""
        try:
            for number, cell in enumerate(todo):
                if self._complete(cell) or self._refused(cell.model):
                    continue
                if not self._time_for(cell, model_of(cell.model)):
                    self._say(f"The deadline is near: {len(todo) - number} cells may be left; run it again to go on.")
                    return False
                self._say(f"[{number + 1}/{len(todo)}] {cell.key}")
                if not self._cell(cell, model_of(cell.model)):
                    return False
            return True
        finally:
            self._close_all()

    # ---- a cell ----

    def _cell(self, cell: Cell, model: Model) -> bool:
        """Run the missing repetitions; False if the time is too short for them."""
        if cell.model != self._model:
            self._close_all()
            self._model = cell.model
            self._equal = {}
            if not self._small_models_agree(cell.model):
                return True
            self._rates(model)
        self._apart = self._set.apart or not self._fit_together(cell, model)
        if self._apart:
            self._close_all()
        able = self._openable(cell, model)
        if not able or (cell.contenders[0].ours and cell.contenders[0] not in able):
            return True
        for repetition in range(self._journal.repetitions(cell.key, [c.name for c in able]), self._set.repetitions):
            if not self._time_for(cell, model, 1):
                self._say("The deadline is near; run it again to go on.")
                return False
            for contender in able:
                if not self._sample(cell, contender, model, repetition):
                    return True
        return True

    def _fit_together(self, cell: Cell, model: Model) -> bool:
        """Check that the device holds all contenders of a cell at once, and the models of a parity check."""
        if self._set.room is None:
            return True
        shares = [c.share / 100 if c.share else float(c.placement == cells.IN_VRAM) for c in cell.contenders]
        dense = model.size.file - model.size.experts + SPARE
        return sum(dense + share * model.size.experts for share in shares) < self._set.room

    def _openable(self, cell: Cell, model: Model) -> list[Contender]:
        """List the contenders that are open or can be opened in their turn, and that agree."""
        keep = {c.name for c in cell.contenders} | {Contender(p).name for p in (cells.IN_VRAM, cells.ON_CPU)}
        for name in [name for name in self._open if name not in keep]:
            self._open.pop(name).close()
        able = []
        for contender in cell.contenders:
            if (model.name, contender.name) in self._broken:
                continue
            if contender.fresh or self._apart or contender.name in self._open or self._load(contender, model):
                able.append(contender)
        if not self._agree(cell, model):
            return []
        return able

    def _load(self, contender: Contender, model: Model) -> bool:
        """Open a contender. A failure gives False and an entry in the journal."""
        opened: Opened | None = None
        started = self._set.clock()
        try:
            opened = self._start()
            found = opened.ask("open", **self._request(contender, model))
        except Failed as error:
            self._fail(model.name, contender.name, str(error))
            if opened is not None:
                opened.close()
            return False
        if contender.ours and not contender.fresh:
            self._equal[contender.share] = found["slot_bytes"] + found["stage_bytes"]
        found["elapsed_s"] = self._set.clock() - started
        self._journal.add("opened", model=model.name, contender=contender.name, share=contender.share, **found)
        self._open[contender.name] = opened
        return True

    def _request(self, contender: Contender, model: Model) -> dict[str, Any]:
        equal = self._equal.get(contender.share, int(model.size.experts * contender.share / 100))
        return {
            "contender": asdict(contender), "path": str(model.path), "routing": str(model.routing),
            "device": self._set.device["device"], "equal_bytes": equal, "n_ctx": self._set.scope.context,
            "n_threads": self._set.threads, "n_threads_batch": self._set.threads, "warm_tokens": self._set.warm_tokens,
            "kv": self._set.kv,
        }  # fmt: skip

    def _sample(self, cell: Cell, contender: Contender, model: Model, repetition: int) -> bool:
        """Run one repetition of one contender; False if it failed."""
        if self._journal.of("sample", cell=cell.key, contender=contender.name, repetition=repetition):
            return True
        alone = contender.fresh or self._apart
        if alone:
            self._drop(contender.name)
            if not self._load(contender, model):
                return False
        request = {"test": asdict(cell.test), "contender": contender.placement, "repetition": repetition}
        try:
            found = self._open[contender.name].ask("measure", at=repetition * cell.test.generate, **request)
            self._journal.add("sample", cell=cell.key, contender=contender.name, repetition=repetition, **found)
            if (
                self._set.events
                and cell.test.generate
                and repetition == self._set.repetitions - 1
                and not contender.fresh
            ):
                self._record(cell, contender)
        except Failed as error:
            self._fail(model.name, contender.name, str(error))
            return False
        finally:
            if alone:
                self._drop(contender.name)
        return True

    def _record(self, cell: Cell, contender: Contender) -> None:
        """Record the device's own events once, after the measured repetitions."""
        at = self._set.repetitions * cell.test.generate
        try:
            if found := self._open[contender.name].ask("events", at=at, test=asdict(cell.test)):
                self._journal.add("events", cell=cell.key, contender=contender.name, **found)
        except Failed as error:  # the measurements are complete without events
            self._say(f"  {contender.name}, what the device did: {error}")
            self._drop(contender.name)

    # ---- agreement ----

    def _small_models_agree(self, model: str) -> bool:
        """Compare small models of the same architecture, once for each device and model."""
        known = self._journal.of("parity", model=model, what="small models")
        if not known:
            opened = self._start()  # no device at all is an error, not a disagreement
            try:
                arch = agreement.ARCHITECTURES[model]
                found = opened.ask("zoo", arch=arch, device=self._set.device["device"])
            except Failed as error:
                found = {"agreed": False, "apart": 0.0, "words": str(error), "checked": []}
            finally:
                opened.close()
            known = [self._journal.add("parity", model=model, what="small models", **found)]
            self._say(f"  small models: {found['words']}")
        return bool(known[-1]["agreed"])

    def _agree(self, cell: Cell, model: Model) -> bool:
        """Compare EdgeMoE with plain llama.cpp on the twin itself, once for each contender."""
        for contender in cell.contenders:
            if not contender.ours or contender.fresh or (model.name, contender.name) in self._broken:
                continue
            if not self._journal.of("parity", model=model.name, what=contender.name):
                verdict = self._compare(contender, self._references(cell), model)
                if verdict is None:
                    return False
                self._journal.add("parity", model=model.name, what=contender.name, **asdict(verdict))
                self._say(f"  {contender.name}: {verdict.words}")
        return not self._refused(model.name)

    def _references(self, cell: Cell) -> list[Contender]:
        """List plain llama.cpp's contenders: the open ones, else the last that the device allows."""
        plain = [c for c in (*cell.contenders, *cells.contenders(self._set.scope, cell.share)) if not c.ours]
        opened = [c for c in plain if c.name in self._open]
        return opened or plain[-1:]

    def _compare(
        self, ours: Contender, references: Sequence[Contender], model: Model
    ) -> agreement.Verdict | None:  # fmt: skip
        """Give None if one of them cannot be opened."""
        answers = {}
        for who in (ours, *references):
            if who.name not in self._open and not self._load(who, model):
                return None
            try:
                path = self._set.folder / "logits.npy"
                tokens = self._open[who.name].ask("answer", logits=str(path))["tokens"]
                answers[who] = tokens, np.load(path)
            except Failed as error:
                return agreement.Verdict(False, 0.0, str(error))
            finally:
                if self._apart:
                    self._drop(who.name)
        verdict = agreement.nearest([agreement.compare(*answers[ours], *answers[who]) for who in references])
        first = answers[references[0]]
        apart = [agreement.compare(*answers[who], *first).apart for who in references[1:]]
        return agreement.beside(verdict, max(apart, default=0.0))

    def _refused(self, model: str) -> bool:
        return any(not entry["agreed"] for entry in self._journal.of("parity", model=model))

    # ---- time and state ----

    def _complete(self, cell: Cell) -> bool:
        names = [c.name for c in cell.contenders if not self._journal.of("failed", model=cell.model, contender=c.name)]
        return self._journal.repetitions(cell.key, names) >= self._set.repetitions if names else True

    def _time_for(self, cell: Cell, model: Model, repetitions: int = 1) -> bool:
        """Tell whether repetitions of all contenders, and the loads that they need, end before the deadline."""
        if self._set.deadline is None:
            return True
        needed = 0.0
        for contender in cell.contenders:
            needed += repetitions * self._expected(cell, contender, model)
            if contender.name not in self._open and not contender.fresh:
                loads = [e["elapsed_s"] for e in self._journal.of("opened", model=model.name, contender=contender.name)]
                load_s = max(loads, default=cells.load_seconds(model.size) * self._set.slow)
                needed += load_s * (repetitions if self._apart else 1)
        return self._set.clock() + needed < self._set.deadline

    def _expected(self, cell: Cell, contender: Contender, model: Model) -> float:
        seen = [e["elapsed_s"] for e in self._journal.of("sample", cell=cell.key, contender=contender.name)]
        return max(seen) if seen else cells.seconds(cell, contender, model.size, self._set.slow)

    def _rates(self, model: Model) -> None:
        """Measure once for each model the bandwidths for its bytes: the limits beside the measurements."""
        if self._journal.of("rates", model=model.name) or self._set.device["rpc"]:
            return  # an RPC device does not report the end of its work
        opened: Opened | None = None
        try:
            opened = self._start()
            device = self._set.device["device"]
            found = opened.ask("rates", path=str(model.path), device=device, n_threads=self._set.threads)
            self._journal.add("rates", model=model.name, rates=found)
        except Failed as error:
            self._say(f"  rates: {error}")
        finally:
            if opened is not None:
                opened.close()

    def _fail(self, model: str, contender: str, words: str) -> None:
        self._broken.add((model, contender))
        self._drop(contender)
        self._journal.add("failed", model=model, contender=contender, words=words)
        self._say(f"  {contender}: {words}")

    def _drop(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name).close()

    def _close_all(self) -> None:
        for name in list(self._open):
            self._drop(name)
