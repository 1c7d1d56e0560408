"""``edgemoe pull`` and ``edgemoe rm``: download models of the hub, and remove them."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ModelNotFound
from ..text.console import show_progress, talk

if TYPE_CHECKING:
    from ..models.catalog import Model, Variant
    from ..models.hub import Download
    from ..models.hub.cache import Removal
    from ..models.hub.meter import Progress

INTERRUPTED = 130
MODEL = "a name of the catalogue, ORG/REPO:QUANT, or ORG/REPO for the quantisation that fits best"


def add_parsers(commands: Any) -> None:
    """Add the two subcommands."""
    pull = commands.add_parser("pull", help="download a model")
    pull.add_argument("model", metavar="MODEL", help=MODEL)
    pull.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of the repository, in place of the newest commit"
    )
    pull.add_argument("--dry-run", action="store_true", help="name the files and download nothing")
    pull.add_argument("--json", action="store_true", help="print repository, revision, files, bytes and path as JSON")
    pull.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    pull.set_defaults(command=lambda parsed, _: _pull(parsed))

    rm = commands.add_parser("rm", help="remove a downloaded model from the disk")
    rm.add_argument(
        "model", metavar="MODEL", help="a name of the catalogue, ORG/REPO:QUANT, or ORG/REPO for all its files"
    )
    rm.add_argument("--yes", action="store_true", help="do not ask")
    rm.add_argument("--json", action="store_true", help="print repository, files and freed bytes as JSON")
    rm.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    rm.set_defaults(command=lambda parsed, _: _rm(parsed))


def download_of(name: str, revision: str | None = None) -> Download:
    """Choose the files to download for a name of the catalogue or of a repository.

    Raises:
        ModelNotFound: there is no such model, or no file of it is known.
        DoesNotFit: no quantisation is named, and none fits.
        EdgeMoEError: the hub refuses or does not answer.
    """
    from ..models.hub import Download, RemoteFile, parse, plan_download
    from ..models.hub.records import MAIN

    if "/" in name:
        repo, quantisation = parse(name)
        return plan_download(repo, quantisation, revision=revision or MAIN)
    model, variant = of_catalogue(name)
    files = tuple(RemoteFile(file.name, file.bytes, file.sha256) for file in variant.files)
    choice = f"{model.name} in {variant.quantisation} from {variant.repository}"
    return Download(variant.repository, revision or variant.revision, files, variant.quantisation, choice)


class Paused(Exception):
    """The user has stopped a download."""


def fetch(name: str, told: Callable[[float, str], bool]) -> None:
    """Download a model for the chat.

    Args:
        name: a name of the catalogue or of a repository.
        told: called with the share done and a line of text. The download stops when it returns False.

    Raises:
        EdgeMoEError: see `edgemoe.models.hub.download.download`.
    """
    from ..models.hub.download import download

    def report(progress: Progress) -> None:
        if not told(progress.share, in_words(progress)):
            raise Paused

    with contextlib.suppress(Paused):
        download(download_of(name), report)


def removed(name: str, really: bool) -> int:
    """Count the bytes that the removal of a downloaded model frees. ``really`` also removes the model.

    Raises:
        EdgeMoEError: the model is not on the disk, or it is in use.
    """
    from ..models.hub.cache import remove

    what = removal_of(name)
    if really:
        remove(what)
    return what.freed_bytes


def removal_of(name: str) -> Removal:
    """Plan the removal of a downloaded model.

    Raises:
        ModelNotFound: the model is not on the disk.
    """
    from ..models.hub import parse
    from ..models.hub.cache import removal

    if "/" in name:
        return removal(*parse(name))
    _, variant = of_catalogue(name, there=True)
    return removal(variant.repository, names={file.name for file in variant.files})


def of_catalogue(name: str, there: bool = False) -> tuple[Model, Variant]:
    """Find a model of the catalogue and its variant.

    Args:
        name: name of the model, with or without ``:QUANT``.
        there: without ``:QUANT``, True chooses the first variant on the disk, False the first that fits into memory.
    """
    from ..models.catalog import load

    model, variant = load().resolve(name)
    if not model.variants:
        hint = "edgemoe demo builds it" if model.id == "demo" else "edgemoe pull ORG/REPO:QUANT"
        raise ModelNotFound(f"no file of {model.name} is known", hint)
    if variant is not None:
        return model, variant
    if there:
        from ..models.find import downloaded

        return model, next((v for v in model.variants if downloaded(v)), model.variants[0])
    from .. import limits

    room = limits.memory().available
    return model, next((v for v in model.variants if (v.bytes or 0) < room), model.variants[0])


def _pull(parsed: argparse.Namespace) -> int:
    plan = download_of(parsed.model, parsed.revision)
    from ..text.display import visible

    if plan.choice:
        talk(visible(plan.choice))

    from ..models.hub.download import download, missing_bytes

    missing = missing_bytes(plan)
    if parsed.dry_run:
        _print_plan(plan, missing, parsed.json)
        return 0
    try:
        path = download(plan, _show)
    except KeyboardInterrupt:
        show_progress(1.0, "")
        talk(f"interrupted: all bytes so far are kept; edgemoe pull {parsed.model} continues from them")
        return INTERRUPTED
    finally:
        show_progress(1.0, "")
    print(json.dumps(_facts(plan, missing) | {"path": str(path)}) if parsed.json else path)
    return 0


def _print_plan(plan: Download, missing: int, as_json: bool) -> None:
    from ..text.display import size, visible

    if as_json:
        print(json.dumps(_facts(plan, missing)))
        return
    for file in plan.files:
        print(f"{visible(file.name)}  {size(file.bytes or 0)}")
    talk(f"{size(missing)} of {size(plan.bytes)} would be downloaded from {plan.repo}")


def _rm(parsed: argparse.Namespace) -> int:
    from ..text.display import size, visible

    what = removal_of(parsed.model)

    from ..models.hub.cache import remove

    for name in what.files:
        talk(visible(name))
    if not parsed.yes and not _agrees(f"Remove from {what.repo} and free {size(what.freed_bytes)}?"):
        talk("nothing was removed")
        return 1
    remove(what)
    if parsed.json:
        print(json.dumps({"repo": what.repo, "files": list(what.files), "freed_bytes": what.freed_bytes}))
    else:
        talk(f"freed {size(what.freed_bytes)}")
    return 0


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("the removal must be confirmed", "--yes removes without a question")
    talk(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _facts(plan: Download, missing: int) -> dict[str, Any]:
    files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in plan.files]
    facts = {"repo": plan.repo, "revision": plan.revision, "files": files, "bytes": plan.bytes}
    return facts | {"missing_bytes": missing, "path": None}


def _show(progress: Progress) -> None:
    # A full bar would be cleared, but the last file must still be checked.
    show_progress(min(progress.share, 0.999), in_words(progress))


def in_words(progress: Progress) -> str:
    """Describe the progress: bytes, then speed and time left, or the current activity."""
    from ..text.display import size

    left = progress.seconds_left
    step = f"{size(progress.done_bytes)} of {size(progress.total_bytes)}"
    if progress.note:
        step += f", {progress.note}"
    elif left is not None:
        step += f", {size(progress.bytes_per_second)}/s, {_clock(left)} left"
    return step


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 359999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
