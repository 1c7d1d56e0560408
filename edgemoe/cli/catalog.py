"""``edgemoe list``: list the models of the catalogue, and mark the models on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text.console import table, talk

if TYPE_CHECKING:
    from ..models.catalog import Catalogue, Model


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("list", help="list the models of the catalogue and the models on this machine")
    parser.add_argument("filter", nargs="?", default="", metavar="FILTER", help="part of a name, family or tag")
    parser.add_argument("--downloaded", action="store_true", help="only models on this machine")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON for programs (edgemoe.list.v1)")
    form.add_argument("--names", action="store_true", help="print one name a line, for a shell's completion")
    parser.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    parser.set_defaults(command=lambda parsed, _: _list(parsed))


def _list(parsed: argparse.Namespace) -> int:
    from ..models import catalog

    catalogue = catalog.load()
    if parsed.names and not parsed.downloaded:  # a shell waits for these names, so the disk is not read
        return _print_lines(name for model in _chosen(catalogue, parsed.filter) for name in (model.id, *model.aliases))
    others = _others(catalogue, parsed.filter)
    facts = [_facts(model) for model in _chosen(catalogue, parsed.filter, bool(others))]
    if parsed.downloaded:
        facts = [model for model in facts if model["path"] or any(v["path"] for v in model["variants"])]
    if parsed.names:
        return _print_lines([*(model["id"] for model in facts), *(other["name"] for other in others)])
    if parsed.json:
        record = {"schema": "edgemoe.list.v1", "models": facts, "others": others}
        return _print_lines([json.dumps(record, ensure_ascii=False)])
    if not facts and not others:
        talk("no such model is on this machine yet; edgemoe pull NAME downloads a model")
        return 0
    return _print_lines([_text(facts, others)])


def _others(catalogue: Catalogue, part: str) -> list[dict[str, Any]]:
    """List the downloaded models with ``part`` in their name that the catalogue does not have."""
    from ..models.find import downloaded
    from ..models.hub.cache import models

    known = {path for model in catalogue.models for variant in model.variants if (path := downloaded(variant))}
    found = [cached for cached in models() if cached.path not in known and part.lower() in cached.name.lower()]
    return [{"name": cached.name, "bytes": cached.bytes, "path": str(cached.path)} for cached in found]


def _print_lines(lines: Iterable[str]) -> int:
    for line in lines:
        print(line)
    return 0


def _chosen(catalogue: Catalogue, part: str, none_will_do: bool = False) -> Sequence[Model]:
    """Choose the models with ``part`` in a name, the family or a tag.

    Raises:
        ModelNotFound: no model matches, and ``none_will_do`` is False. The hint gives the nearest names.
    """
    if not part:
        return catalogue.models
    found = [model for model in catalogue.models if any(part.lower() in text.lower() for text in _words(model))]
    return found or ([] if none_will_do else [catalogue.resolve(part)[0]])


def _words(model: Model) -> Sequence[str]:
    return (model.id, model.name, model.family, *model.aliases, *model.tags)


def _facts(model: Model) -> dict[str, Any]:
    from ..models.find import DEMO, built_demo, downloaded

    variants = [
        asdict(variant) | {"bytes": variant.bytes, "path": _text_of(downloaded(variant))} for variant in model.variants
    ]
    path = _text_of(built_demo()) if model.id == DEMO else None
    return asdict(model) | {"variants": variants, "path": path}


def _text_of(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _text(models: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    from ..text.display import size

    rows = []
    for model in models:
        first = [model["id"], model["family"], _billions(model["total_parameters"])]
        first += [_billions(model["active_parameters"]), f"{model['experts']}, {model['experts_used']} used"]
        lines = [
            [variant["quantisation"], size(variant["bytes"]) if variant["bytes"] else "?", _mark(variant["path"])]
            for variant in model["variants"]
        ]
        for line in lines or [["-", "-", _mark(model["path"])]]:
            rows.append([*first, *line])
            first = [""] * len(first)
    for other in others:
        repository, _, quantisation = other["name"].rpartition(":")
        rows.append([repository, *["-"] * 4, quantisation, size(other["bytes"]), _mark(other["path"])])
    return table(["model", "family", "total", "active", "experts", "variant", "size", "on disk"], rows, texts=2)


def _mark(path: str | None) -> str:
    from ..models.gguf import foreign

    if not path:
        return ""
    what = foreign(Path(path))
    return f"not a GGUF file: this is {what}" if what else "yes"


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters < 100e9 else f"{parameters / 1e9:.0f} B"
