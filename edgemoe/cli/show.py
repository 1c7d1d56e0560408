"""``edgemoe show``: list the contents of a model file without loading it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import home
from ..text.console import table, talk
from . import MODEL

if TYPE_CHECKING:
    from ..models.gguf import GgufFile


def add_parser(commands: Any, find: Callable[[str], Path]) -> None:
    """Add the subcommand; ``find`` turns MODEL into a file."""
    show = commands.add_parser("show", help="list the contents of a model file, without loading it")
    show.add_argument("model", metavar="MODEL", help=MODEL)
    show.add_argument("--json", action="store_true", help="print JSON for programs")
    show.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    show.set_defaults(command=lambda parsed, _: _show(parsed, find))


def _show(parsed: argparse.Namespace, find: Callable[[str], Path]) -> int:
    from ..models import gguf
    from ..models.find import entry

    file = gguf.check(find(parsed.model))
    if model := entry(parsed.model):
        for difference in model.differences(gguf.moe_shape(file)):
            talk(f"note: this is not {model.name}: {difference}")
    facts = _facts(file)
    print(json.dumps(facts) if parsed.json else _text(facts))
    return 0


def _facts(file: GgufFile) -> dict[str, Any]:
    from ..models import gguf
    from ..models.families import layers_split

    shape = gguf.moe_shape(file)
    split, why = layers_split(file)
    total = sum(tensor.bytes for tensor in file.tensors.values())
    run = sum(tensor.bytes for tensor in file.run_tensors.values())
    routed = sum(shape.expert_bytes) * shape.experts if shape else 0
    active = sum(shape.expert_bytes) * shape.used if shape else 0
    tokens, name = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("general.name")
    return {
        "file": file.path.name,
        "shards": len(file.shards),
        "name": name if isinstance(name, str) else "",
        "architecture": file.architecture,
        "parameters": sum(tensor.elements for tensor in file.tensors.values()),
        "bytes": total,
        "context_length": file.number("context_length"),
        "layers": file.run_blocks,
        "not_run": {"layers": file.mtp_blocks, "bytes": total - run} if file.mtp_blocks else None,
        "tokenizer": file.metadata.get("tokenizer.ggml.model"),
        "vocabulary": tokens.length if isinstance(tokens, gguf.GgufArray) else None,
        "chat_template": "tokenizer.chat_template" in file.metadata,
        "experts": None
        if shape is None
        else {
            "layers": shape.layers,
            "per_layer": shape.experts,
            "used": shape.used,
            "shared": file.number("expert_shared_count") or 0,
            "bytes": routed,
            "bytes_per_token": active,
            "split_layers": split,
            "split": why,
            "by_layer": _by_layer(file),
        },
        "dense_bytes": run - routed,
        "learnt": _learnt(gguf.model_identity(file)),
    }


def _by_layer(file: Any) -> list[dict[str, Any]]:
    """List the layers with routed experts: bytes of one expert, and the types of its projections."""
    from ..models.gguf import EXPERTS

    layers: dict[int, dict[str, Any]] = {}
    for tensor in file.run_tensors.values():
        if match := EXPERTS.match(tensor.name):
            layer = layers.setdefault(int(match[1]), {"layer": int(match[1]), "expert_bytes": 0, "types": []})
            layer["expert_bytes"] += tensor.bytes // tensor.shape[-1]
            if match[2] == "weight" and tensor.type_name not in layer["types"]:
                layer["types"].append(tensor.type_name)
    return [layers[number] for number in sorted(layers)]


def _learnt(identity: str) -> dict[str, Any]:
    """Describe the history and the predictor that earlier runs left."""
    from ..routing import history
    from ..routing.predictor.tables import path_of

    folder = home("data") / "profiles"
    profile = history.load(identity, folder)
    return {
        "history_tokens": 0 if profile is None else int(profile.tokens),
        "runs": 0 if profile is None else profile.runs,
        "predictor": path_of(identity, folder).exists(),
    }


def _text(facts: dict[str, Any]) -> str:
    from ..text.display import size

    experts, learnt = facts["experts"], facts["learnt"]
    rows = [
        ["file", facts["file"] + (f" and {facts['shards'] - 1} more" if facts["shards"] > 1 else "")],
        ["name", facts["name"]],
        ["architecture", facts["architecture"]],
        ["parameters", f"{facts['parameters'] / 1e9:.2f} B"],
        ["size", size(facts["bytes"])],
        ["context", f"{facts['context_length'] or '?'} tokens"],
        ["vocabulary", f"{facts['vocabulary'] or '?'} tokens, {facts['tokenizer'] or 'no tokenizer'}"],
        ["chat template", "yes" if facts["chat_template"] else "no"],
    ]
    if head := facts["not_run"]:
        layers = f"{head['layers']} layer" + ("s" if head["layers"] > 1 else "")
        rows.append(["not run", f"an MTP head of {layers}, {size(head['bytes'])}: it predicts further tokens"])
    if not facts["bytes"]:
        rows.append(["weights", "none: a vocabulary only"])
    elif experts is None:
        rows.append(["experts", "none: a dense model, it runs as in llama.cpp"])
    else:
        shared = f", {experts['shared']} shared" if experts["shared"] else ""
        rows += [
            [
                "experts",
                f"{experts['per_layer']} in each of {experts['layers']} layers, {experts['used']} used{shared}",
            ],
            ["their size", f"{size(experts['bytes'])}, of which a token reads {size(experts['bytes_per_token'])}"],
            ["split by expert", experts["split"]],
            ["all else", size(facts["dense_bytes"])],
            ["memory", f"{size(experts['bytes'] + facts['dense_bytes'])} in VRAM and RAM together, and the context"],
            [
                "learnt",
                f"{learnt['history_tokens']} tokens in {learnt['runs']} runs" if learnt["runs"] else "nothing yet",
            ],
        ]
    text = table(["what", ""], rows, texts=2)
    if experts is None:
        return text
    return text + "\n\n" + table(["layers", "types", "one expert"], _runs(experts["by_layer"]), texts=2)


def _runs(layers: list[dict[str, Any]]) -> list[list[str]]:
    """Put neighbouring layers with equal experts into one row."""
    rows: list[list[str]] = []
    previous: dict[str, Any] | None = None
    first = 0
    for layer in layers:
        alike = previous is not None and all(layer[key] == previous[key] for key in ("types", "expert_bytes"))
        if not alike:
            first = layer["layer"]
            rows.append([])
        numbers = str(first) if first == layer["layer"] else f"{first} to {layer['layer']}"
        rows[-1] = [numbers, " ".join(layer["types"]), f"{layer['expert_bytes'] / 2**20:.2f} MiB"]
        previous = layer
    return rows
