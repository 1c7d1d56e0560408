"""Measure EdgeMoE beside plain llama.cpp on a device, on shape twins of real models. See docs/benchmarks.md.

python -m bench.gpu --plan                          # the list of runs, minutes, gigabytes
python -m bench.gpu --device CUDA0 --deadline 540   # builds the backend if there is none; run it again to go on
python -m bench.gpu --device CUDA0 --report         # the table, the profiles and the bars, from the figures so far
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import twin
from edgemoe.engine import host
from edgemoe.errors import EdgeMoEError
from edgemoe.models.gguf import check, moe_shape
from edgemoe.profiling.figures import machine, physical_cores

from . import build, cells, devices, report, routing, verdicts
from .cells import KV_TYPES, Cell, Size
from .journal import Entry, Journal
from .session import Child, Failed, Model, Session, Setting

PAGE = Path("docs/benchmarks.md")
PATIENCE_S = 900.0  # longest time of one request: a disk may load 30 GB
GRACE_S = 20.0  # seconds past the deadline
MARK = "<!-- figures of `python -m bench.gpu` below this line -->"


def main() -> int:
    """Run the request; give 0, or 1 if a part of it could not run."""
    given = _arguments()
    started = time.monotonic()
    try:
        return Bench(given, started).run()
    except EdgeMoEError as error:
        _say(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
    except Failed as error:
        _say(f"error: {error}")
    return 1


class Bench:
    """Run one call of the command."""

    def __init__(self, given: argparse.Namespace, started: float) -> None:
        """Store the request. The deadline counts from ``started``."""
        self._given, self._started = given, started
        models = tuple(given.models.split(",")) if given.models else cells.MODELS
        shares = tuple(float(s) for s in given.shares.split(",")) if given.shares else cells.SHARES
        if given.vram:
            shares = _shares_of_cards(given.vram, models[0])
        prompts = tuple(int(p) for p in given.prompts.split(","))
        self._scope = cells.Scope(given.device, models, shares, given.generate, prompts, given.first, given.depth)
        self._journal = Journal(given.folder / f"{given.device.lower()}.jsonl")
        self._models: dict[str, Model] = {}
        only = given.only.split(",") if given.only else cells.TOPICS
        todo = [cell for cell in cells.cells(self._scope) if cells.topic(self._scope, cell) in only]
        self._todo: list[Cell] = todo[: given.cells or None]

    def run(self) -> int:
        """Plan, soak, measure or report."""
        if self._given.plan:
            print(self._plan())
            return 0
        self._given.folder.mkdir(parents=True, exist_ok=True)
        device = self._find_device()
        setting = Setting(
            self._scope, device, self._given.threads, self._given.repetitions, self._given.warm, self._given.folder,
            self._started + self._given.deadline if self._given.deadline else None, self._given.slow,
            apart=self._given.apart, events=self._given.events, kv=self._given.kv,
        )  # fmt: skip
        if self._given.soak_cycles or self._given.soak_minutes:
            return self._soak(setting)
        if not self._given.report:
            if self._scope.device not in cells.WITHOUT_GPU:
                child = self._child(setting)
                setting = replace(setting, room=child.found["free"])
                child.close()
            session = Session(setting, self._journal, lambda: self._child(setting), _say)
            session.run(self._todo, self._model)
        return self._report()

    # ---- device ----

    def _find_device(self) -> dict[str, object]:
        """Tell a process how to find the device. A missing backend is built first."""
        name, library = self._given.device, self._given.backend
        kind = build.kind_of(name)
        if library is None and kind and not self._given.report and name not in host.devices():
            _say(f"llama-cpp-python has no {name}; building {kind}'s backend alone (once)")
            library = build.build(kind, self._given.folder, self._given.architecture, self._given.sources)
        backend = str(library.resolve()) if library else ""
        return {"device": name, "backend": backend, "rpc": kind == "RPC"}

    def _child(self, setting: Setting) -> Child:
        left = PATIENCE_S if setting.deadline is None else setting.deadline - time.monotonic() + GRACE_S
        child = Child(setting.device, self._given.folder / "children.log", min(PATIENCE_S, left))
        if not self._journal.of("machine"):
            found = child.found | {"machine": machine(), "python": platform.python_version()}
            told = {
                "command": " ".join(sys.argv[1:]),
                "date": report.now(),
                "threads": setting.threads,
                "note": self._given.note,
            }
            self._journal.add("machine", **found, **told)
        return child

    # ---- models ----

    def _model(self, name: str) -> Model:
        """Give the twin and its routing. A missing twin is written."""
        if name not in self._models:
            path = twin.build(name, self._given.twins or self._given.folder, self._given.layers)
            file = check(path)
            shape = moe_shape(file)
            assert shape is not None
            kept = self._given.folder / f"routing-{name}.npz"
            if self._given.traces is None and kept.exists():  # made before, on a machine with traces
                forced = routing.load(kept, shape.layers)
            else:
                forced = routing.routing(name, self._given.traces, shape.layers, shape.experts, shape.used)
            routing.save(forced, kept)
            whole, experts = sum(t.bytes for t in file.tensors.values()), sum(shape.expert_bytes) * shape.experts
            used = sum(shape.expert_bytes) * shape.used
            if not self._journal.of("size", model=name):
                expert = sum(shape.expert_bytes) / shape.layers
                dense = whole - experts
                figures = {"file": whole, "experts": experts, "expert": expert, "dense": dense}
                self._journal.add("size", model=name, **figures, routing=forced.source)
            measured = self._journal.of("size", model=name)[0]["routing"]
            if measured != forced.source:
                raise EdgeMoEError(
                    f"{name} was measured with another routing: {measured}; now it is {forced.source}",
                    "give the same --traces, or another --folder",
                )
            self._models[name] = Model(name, path, kept, Size(whole, experts, used))
        return self._models[name]

    def _measured(self, size: Entry) -> Model:
        """Describe a measured model, even if its twin was deleted."""
        name, layers = size["model"], self._given.layers
        path = twin.place(name, self._given.twins or self._given.folder, layers)
        if not path.exists():
            _say(f"{path} is not there: no profiles of {name}")
        marks = _marks(name, layers, size["routing"])
        return Model(name, path, Path(), Size(size["file"], size["experts"], 0), marks)

    # ---- the other requests ----

    def _plan(self) -> str:
        """Print the runs to come, with rough times; no figure is a result."""
        lines = [f"{len(self._todo)} cells on {self._scope.device}, {self._given.repetitions} repetitions each", ""]
        total = 0.0
        for model in self._scope.models:
            size = _size(model, self._given.layers)
            mine = [cell for cell in self._todo if cell.model == model]
            loads = [c for c in cells.load_order(mine) if not c.fresh]
            parts = [cells.seconds(cell, c, size, self._given.slow) for cell in mine for c in cell.contenders]
            took = sum(parts) * self._given.repetitions + len(loads) * cells.load_seconds(size) * self._given.slow
            total += took
            gigabytes = f"{size.file / 1e9:.1f} GB file, {size.experts / 1e9:.1f} GB of experts"
            lines.append(
                f"{model}: about {gigabytes}; {len(mine)} cells, {len(loads)} loads, about {took / 60:.0f} min"
            )
        lines += ["", f"about {total / 60:.0f} minutes in all; order:"]
        for number, cell in enumerate(self._todo, 1):
            done = self._journal.repetitions(cell.key, [c.name for c in cell.contenders])
            who = "; ".join(c.name for c in cell.contenders)
            lines.append(f"{number:4} {cell.key} ({done}/{self._given.repetitions} done): {who}")
        return "\n".join([*lines, *cells.missing_rows(self._scope.device)])

    def _soak(self, setting: Setting) -> int:
        """Run cycles and minutes of load until there are enough, or until the deadline."""
        name = self._scope.models[0]
        model = self._model(name)
        request = {
            "path": str(model.path), "routing": str(model.routing), "device": self._scope.device,
            "share": self._scope.shares[0], "n_ctx": min(1024, self._scope.context),
            "n_threads": setting.threads, "n_threads_batch": setting.threads, "kv": setting.kv,
        }  # fmt: skip
        for what, do, most in (
            ("cycles", "cycle", float(self._given.soak_cycles)),
            ("load", "turn", self._given.soak_minutes * 60.0),
        ):
            child = self._child(setting)
            took = 0.0
            while self._soaked(name, what) < most:
                if setting.deadline is not None and time.monotonic() + 2 * took > setting.deadline:
                    _say("The deadline is near; run it again to go on.")
                    break
                found = child.ask(do, **request)
                took = found["seconds"]
                self._journal.add("soak", model=name, what=what, **found)
            child.close()
            entries = self._journal.of("soak", model=name, what=what)
            if entries:
                print(verdicts.soaked(entries, f"{name}, {what}: {self._soaked(name, what):.0f}"))
        return 0

    def _soaked(self, model: str, what: str) -> float:
        entries = self._journal.of("soak", model=model, what=what)
        return len(entries) if what == "cycles" else sum(e["seconds"] for e in entries)

    # ---- the end ----

    def _report(self) -> int:
        known = self._journal.of("machine")
        if not known:
            raise EdgeMoEError("no measurement yet: a report needs one")
        models = [self._measured(e) for name in self._scope.models for e in self._journal.of("size", model=name)]
        head, real = _head(known[-1], self._scope, self._given)
        threads = known[-1]["threads"]
        path = report.write(self._given.folder, self._journal, self._scope, models, head, threads, known[-1]["build"])
        if not real:
            print(head[0])
        for line in verdicts.lines(self._journal, self._scope):
            print(line)
        _say(f"The table is in {path}, profiles beside it.")
        if self._given.publish:
            if not real:
                raise EdgeMoEError(f"{PAGE} is for real runs: {head[0]}", "leave out --publish")
            publish(PAGE, path.read_text())
            _say(f"{PAGE} was written.")
        return 0


def publish(page: Path, figures: str) -> None:
    """Write the figures of a run below the mark of a page, where they replace the figures of the last run."""
    kept = page.read_text().partition(MARK)[0]
    page.write_text(f"{kept}{MARK}\n\n{figures}")


def _head(known: dict[str, object], scope: cells.Scope, given: argparse.Namespace) -> tuple[list[str], bool]:
    """Describe the run: device, machine, date, and whether it was a whole model on a real GPU."""
    text = str(known["description"])
    real = devices.is_a_gpu(scope.device, text) and not given.layers
    why = "a twin of few layers" if given.layers else f"{scope.device} is no GPU ({text or 'software'})"
    mark = [] if real else [f"**DRY RUN: {why}. Its speeds say nothing about a GPU.**"]
    return [
        *mark,
        *([str(known["note"])] if known.get("note") else []),
        f"Device: {scope.device}, {text}. Machine: {json.dumps(known['machine'])}.",
        f"Versions: {known['build']}, Python {known['python']}. Date: {known['date']}.",
        f"Command: `python -m bench.gpu {known['command']}`. Threads: {known['threads']}.",
    ], real


def _shares_of_cards(sizes: str, model: str) -> tuple[float, ...]:
    """Give the shares of the whole model's experts that cards of these gigabytes hold."""
    size, found = _size(model, 0), []
    for gigabytes in sizes.split(","):
        found.append(cells.share_in(float(gigabytes) * 1e9, size))
        _say(f"a card of {gigabytes} GB holds {found[-1]:g} % of the experts of {model}")
    return tuple(dict.fromkeys(share for share in found if share > 0))


def _marks(name: str, layers: int, source: str) -> tuple[str, ...]:
    found = [f"TWIN: shapes and types of {name}, arbitrary weights. Decode: {source}. Prefill: the twin's own router."]
    if layers:
        whole = twin.TWINS[name].keys["block_count"]
        found.append(f"SMALL: {layers} layers with experts of a model of {whole}, and a short vocabulary.")
    return tuple(found)


def _size(name: str, layers: int) -> Size:
    """Estimate the bytes of a twin that may not exist yet."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    spec = twin.small(twin.TWINS[name], layers) if layers else twin.TWINS[name]
    keys = {key: int(value) for key, value in spec.keys.items()}
    width, dense = keys["embedding_length"], keys.get("leading_dense_block_count", 0)
    hidden = keys.get("expert_feed_forward_length", keys["feed_forward_length"])

    def size(kind: str, elements: int) -> int:
        block, taken = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        return int(elements // block * taken)

    matrix = width * hidden
    down = sum(size(kind, matrix) for kind in spec.experts) // 2
    expert = 2 * size(spec.experts[0], matrix) + down
    blocks = keys["block_count"] - dense
    experts = blocks * keys["expert_count"] * expert
    rest = size(spec.dense, 2 * spec.vocabulary * width + 4 * keys["block_count"] * width * width)
    return Size(experts + rest, experts, blocks * keys["expert_used_count"] * expert)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="CUDA0", help="ggml's name of the device; none, sim and RPC0 for dry runs")
    add("--folder", type=Path, default=Path("build/gpu"), help="folder for all files of the run")
    add("--twins", type=Path, help="folder for the twins, if it is another one")
    add("--traces", type=Path, help="folder of recorded routing; without it, artificial routing is used and marked")
    add("--models", default="", help=f"of {','.join(cells.MODELS)}")
    add("--shares", default="", help="percent of the expert bytes, separated by commas")
    add("--vram", default="", help="gigabytes of cards, in place of --shares; for the first of --models")
    add("--layers", type=int, default=0, help="with experts, of small twins for dry runs; 0 for whole models")
    add("--repetitions", type=int, default=verdicts.LEAST)
    add("--generate", type=int, default=64, help="tokens of a decode test")
    add("--prompts", default="512,4096", help="tokens of prefill tests")
    add("--first", type=int, default=64, help="tokens of the short prompt")
    add("--depth", type=int, default=4096, help="tokens before the decode test at depth")
    add("--kv", choices=KV_TYPES, default="f16", help="type of the KV cache, of all contenders; one for each --folder")
    add("--warm", type=int, default=128, help="tokens decoded after loading, before anything is measured")
    add("--threads", type=int, default=physical_cores())
    add("--backend", type=Path, help="a ggml backend library to load, instead of building one")
    add("--architecture", default="native", help="CUDA architecture, such as 89 or 90")
    add("--sources", type=Path, help="llama-cpp-python's source archive, if pip cannot download it")
    add("--deadline", type=float, default=0, help="stop cleanly after this many seconds")
    add("--apart", action="store_true", help="open one contender at a time, as for a small card; slower")
    add(
        "--events",
        action="store_true",
        help="also record the device's own times through CUPTI; takes some seconds per contender",
    )
    add("--slow", type=float, default=1.0, help="factor on the planned minutes")
    add("--only", default="", help=f"of {','.join(cells.TOPICS)}")
    add("--note", default="", help="sentence for the report, on what the machine stands for")
    add("--cells", type=int, default=0, help="run only the first N cells of the plan")
    add("--plan", action="store_true", help="print the list of runs")
    add("--report", action="store_true", help="measure nothing; report the figures so far")
    add("--publish", action="store_true", help=f"write the figures into {PAGE}; refused for dry runs")
    add("--soak-cycles", type=int, default=0, help="load, answer and free N times instead of measuring")
    add("--soak-minutes", type=float, default=0, help="mixed load instead of measuring")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
