"""List the models that a chat offers: recent files, downloaded models, the demo, and models to download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.find import DEMO
from ..models.gguf import foreign

if TYPE_CHECKING:
    from ..models.catalog import Model
    from ..tui.records import ModelChoice


def offered(known: Sequence[Path]) -> list[ModelChoice]:
    """List all models that a chat offers, ``known`` files first. The disk is read, the network is not used."""
    from ..text.display import size
    from ..tui.records import ModelChoice

    choices = [
        ModelChoice(str(path), path.stem, f"{_warning(path)}{path}", size=size(path.stat().st_size)) for path in known
    ]
    choices += [choice for path, choice in _downloaded() if path not in known]
    choices.append(ModelChoice(DEMO, DEMO, "a small model to try, built in some seconds from SmolLM2"))
    return [*choices, *_to_download({choice.name for choice in choices})]


def _warning(path: Path) -> str:
    """Name the kind of a file that is no GGUF; empty for a GGUF file."""
    what = foreign(path)
    return f"not a GGUF file: this is {what}; " if what else ""


def _downloaded() -> list[tuple[Path, ModelChoice]]:
    """List the downloaded models: first the catalogue's, under the catalogue's names, then the others."""
    from ..models.catalog import load
    from ..models.find import downloaded
    from ..models.hub.cache import models
    from ..text.display import size
    from ..tui.records import ModelChoice

    found: dict[Path, ModelChoice] = {}
    for model in load().models:
        for variant in model.variants:
            if (path := downloaded(variant)) is not None:
                name = f"{model.id}:{variant.quantisation}"
                about, long = f"{_warning(path)}{model.name}", size(variant.bytes or path.stat().st_size)
                found[path] = ModelChoice(name, name, about, True, True, long, _parameters(model))
    for cached in models():
        about, long = f"{_warning(cached.path)}downloaded", size(cached.bytes)
        found.setdefault(cached.path, ModelChoice(cached.name, cached.name, about, True, True, long))
    return list(found.items())


def _parameters(model: Model) -> str:
    """Write the parameters of a model: all, and the active ones."""
    return f"{model.total_parameters / 1e9:.1f}B, {model.active_parameters / 1e9:.1f}B active"


def _to_download(here: set[str]) -> list[ModelChoice]:
    """List the catalogue's models that are not on this disk, each in the best quantisation for this machine.

    Models that fit into free memory come first.
    """
    from .. import limits
    from ..models.catalog import load
    from ..text.display import size
    from ..tui.records import ModelChoice
    from .pull import of_catalogue

    room = limits.memory().available
    fitting: list[ModelChoice] = []
    others: list[ModelChoice] = []
    for model in load().models:
        if not model.variants:
            continue
        variant = of_catalogue(model.id)[1]
        name, total = f"{model.id}:{variant.quantisation}", variant.bytes
        if name in here:
            continue
        about, long = "to download, its size is not known", "" if total is None else size(total)
        if total is not None:
            fits = "fits in memory" if total < room else f"more than the {size(room)} of free memory"
            about = f"{fits}, to download"
        chosen = fitting if total is not None and total < room else others
        chosen.append(ModelChoice(name, name, about, False, False, long, _parameters(model)))
    return [*fitting, *others]
