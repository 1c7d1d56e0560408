"""``edgemoe replay`` and ``edgemoe train``: compare policies on routing traces, and train the predictor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import home
from ..errors import ConfigError, EdgeMoEError
from ..text.console import show_progress, table, talk
from . import MODEL

FRACTIONS = "0.125,0.25,0.5"
HELD_OUT = 0.2  # share of the history, at its end, that tests the trained predictor


def add_parsers(commands: Any, find: Callable[[str], Path]) -> None:
    """Add the two subcommands; ``find`` turns MODEL into a file."""
    replay = commands.add_parser("replay", help="compare policies on a recorded routing trace, without its model")
    replay.add_argument("traces", nargs="+", metavar="TRACE", help="a routing trace (.npz)")
    replay.add_argument(
        "--train",
        nargs="+",
        default=[],
        metavar="TRACE",
        help="traces for training, so that all of TRACE is for the test; else the first half of TRACE is for training",
    )
    replay.add_argument(
        "--slots", default=FRACTIONS, metavar="SHARES", help="shares of the experts that are resident (%(default)s)"
    )
    replay.add_argument("--uploads", type=int, metavar="N", help="largest number of uploads per layer and token")
    replay.add_argument(
        "--clock",
        nargs="?",
        const="",
        metavar="KEY=VALUE,...",
        help="forecast tokens per second on a machine with these rates. Keys: cpu, device, link (bytes per second), "
        "launch, join, rest (seconds), expert (bytes). Defaults are for a PC with a PCIe 4.0 card",
    )
    replay.add_argument("--json", action="store_true", help="print JSON for programs (edgemoe.replay.v1)")
    replay.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    replay.set_defaults(command=lambda parsed, _: _replay(parsed))

    train = commands.add_parser("train", help="train the routing predictor of a model on its routing history")
    train.add_argument("model", metavar="MODEL", help=MODEL)
    train.add_argument(
        "--trace", nargs="+", default=[], metavar="TRACE", help="traces for training, in place of the history"
    )
    train.add_argument("--json", action="store_true", help="print JSON for programs")
    train.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    train.set_defaults(command=lambda parsed, _: _train(parsed, find))


def _replay(parsed: argparse.Namespace) -> int:
    from ..replay import replay
    from ..replay.virtual_clock import ClockModel
    from ..routing import trace

    machine = None if parsed.clock is None else ClockModel.parse(parsed.clock)
    fractions = _shares(parsed.slots)
    if parsed.uploads is not None and parsed.uploads < 1:
        raise ConfigError(f"--uploads {parsed.uploads} is below 1")
    tests, trains = ([trace.read(path) for path in paths] for paths in (parsed.traces, parsed.train))
    shapes = {t.ids.shape[1:] for t in (*tests, *trains)}
    if len(shapes) > 1:
        raise EdgeMoEError(f"the traces are of different models: layers and top-k {sorted(shapes)}")
    data = replay.split(tests, trains)
    if not len(data.test):
        raise EdgeMoEError("no tokens are left for the test", "one sequence alone needs --train")
    tables = _learn(data)
    result = replay.report(data, fractions, parsed.uploads, tables, machine, show_progress)
    print(json.dumps(result) if parsed.json else _replay_text(result))
    return 0


def _learn(data: Any) -> Any:
    from ..replay import replay

    try:
        tables = replay.learn(data, show_progress)
    except EdgeMoEError as error:
        talk(f"note: adaptive runs without a predictor: {error}")
        return None
    if tables is None:
        talk(f"note: {len(data.train)} tokens are too few for training: adaptive runs without a predictor")
    return tables


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--slots {text} is no list of shares", f"such as {FRACTIONS}") from error
    if not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"--slots {text}: a share lies above 0 and at most at 1")
    return shares


def _replay_text(result: dict[str, Any]) -> str:
    rows = []
    for budget in result["budgets"]:
        for name, cell in budget["policies"].items():
            ahead = cell.get("prefetch", {})
            loaded = sum(ahead.values())
            rows.append(
                [
                    f"{budget['fraction']:.1%}  {name}",
                    f"{cell['hit_rate']:.3f}",
                    f"{cell['uploads_per_token']:.2f}" if "uploads_per_token" in cell else "",
                    f"{ahead['useful'] / loaded:.0%}" if loaded else "",
                    f"{ahead['late'] / loaded:.0%}" if ahead.get("late") else "",
                    f"{ahead['wasted'] / loaded:.0%}" if loaded else "",
                    f"{cell['tokens_per_second']:.1f}" if "tokens_per_second" in cell else "",
                ]
            )
    columns = ["resident, policy", "hit rate", "loads", "useful", "late", "wasted", "tokens/s"]
    shown = [at for at, name in enumerate(columns) if name not in ("late", "tokens/s") or any(row[at] for row in rows)]
    rows = [[row[at] for at in shown] for row in rows]
    text = table([columns[at] for at in shown], rows)
    quality = [
        [name, f"{q['recall_at_k']:.3f}", f"{q['recall_at_2k']:.3f}", f"{q['calibration_error']:.4f}"]
        for name, q in result["predictors"].items()
    ]
    if quality:
        text += "\n\n" + table(["predictor", "recall@k", "recall@2k", "calibration error"], quality)
    return f"{text}\n\nLoads are per layer and token. {result['verdict']}"


def _train(parsed: argparse.Namespace, find: Callable[[str], Path]) -> int:
    import numpy as np

    from ..models import gguf
    from ..routing import history, predictor, trace
    from ..routing.predictor import evaluate, train

    file = gguf.check(find(parsed.model))
    shape = gguf.moe_shape(file)
    if shape is None:
        raise EdgeMoEError(f"{file.path.name} has no routed experts: there is nothing to predict")
    identity, folder = gguf.model_identity(file), home("data") / "profiles"
    notes: list[str] = []
    profile = history.load(identity, folder, (shape.layers, shape.experts), notes)
    for note in notes:
        talk(f"note: {note}")
    ids, tokens = np.zeros((0, shape.layers, shape.used), dtype=np.int32), np.zeros(0, dtype=np.int32)
    if parsed.trace:
        ids, tokens = _tokens_of([trace.read(path) for path in parsed.trace])
    elif profile is not None:
        ids, tokens = profile.recent, profile.recent_tokens
    if ids.shape[1:] != (shape.layers, shape.used) or ids.max(initial=0) >= shape.experts:
        raise EdgeMoEError(f"the trace has layers and top-k {ids.shape[1:]}, the model {(shape.layers, shape.used)}")
    kept = int(len(ids) * (1 - HELD_OUT))
    tables = train.fit(ids[:kept], shape.experts, show_progress, tokens[:kept])
    ours = evaluate.next_layers(tables, ids[kept:], 1, tokens[kept:])
    plain = evaluate.plain_table(ids[:kept], ids[kept:], shape.experts)
    report = {"tokens": kept, "held_out": len(ids) - kept, "next": ours.as_dict(), "table": plain.as_dict()}
    if ours.recall_at_k <= plain.recall_at_k:
        raise EdgeMoEError(
            f"the predictor names {ours.recall_at_k:.1%} of the experts, a table {plain.recall_at_k:.1%}: not kept",
            "more history, or more varied text, may help",
        )
    tables.report.update(report)
    path = predictor.save(tables, identity, folder)
    if parsed.json:
        print(json.dumps(report | {"path": str(path)}))
    else:
        print(
            f"Learnt from {kept} tokens. On {len(ids) - kept} others it names {ours.recall_at_k:.1%} of the next "
            f"layer's experts (a plain table {plain.recall_at_k:.1%}). Used from the next start on."
        )
    return 0


def _tokens_of(traces: Any) -> tuple[Any, Any]:
    """Join the routing and the token ids of all traces. A trace without token ids gives -1."""
    import numpy as np

    ids = np.concatenate([trace.ids for trace in traces])
    tokens = [np.full(len(t.ids), -1) if t.tokens is None else t.tokens for t in traces]
    return ids, np.concatenate(tokens).astype(np.int32)
