"""``edgemoe pull`` and ``edgemoe rm``: models of the hub, to this disk and off it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..console import show_progress, talk

if TYPE_CHECKING:
    from ..hub import Download
    from ..hub.meter import Progress

INTERRUPTED = 130
MODEL = "org/repo:QUANT, or org/repo for the quantisation that fits best"


def add_parsers(commands: Any) -> None:
    """Add the two subcommands."""
    pull = commands.add_parser("pull", help="download a model")
    pull.add_argument("model", metavar="MODEL", help=MODEL)
    pull.add_argument("--revision", metavar="REV", help="branch, tag or commit, in place of the newest")
    pull.add_argument("--dry-run", action="store_true", help="say what would be downloaded")
    pull.add_argument("--json", action="store_true", help="print repository, revision, files, bytes and path")
    pull.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    pull.set_defaults(command=lambda parsed, _: _pull(parsed))


def _download_of(name: str, revision: str | None) -> Download:
    from ..hub import parse, plan_download
    from ..hub.plan import MAIN

    repo, quantisation = parse(name)
    return plan_download(repo, quantisation, revision=revision or MAIN)


def _pull(parsed: argparse.Namespace) -> int:
    plan = _download_of(parsed.model, parsed.revision)
    if plan.choice:
        talk(plan.choice)

    from ..hub.fetch import download, missing_bytes

    missing = missing_bytes(plan)
    path = None
    if not parsed.dry_run:
        try:
            path = download(plan, _show)
        except KeyboardInterrupt:
            show_progress(1.0, "")
            talk(f"interrupted: what has arrived is kept; edgemoe pull {parsed.model} goes on from there")
            return INTERRUPTED
        finally:
            show_progress(1.0, "")
    if parsed.json:
        print(json.dumps(_facts(plan, None if path is None else str(path), missing)))
    elif path is not None:
        print(path)
    else:
        for file in plan.files:
            print(f"{file.name}  {_size(file.bytes or 0)}")
        talk(f"{_size(missing)} of {_size(plan.bytes)} would be downloaded")
    return 0


def _facts(plan: Download, path: str | None, missing: int) -> dict[str, Any]:
    files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in plan.files]
    return {
        "repo": plan.repo,
        "revision": plan.revision,
        "files": files,
        "bytes": plan.bytes,
        "missing_bytes": missing,
        "path": path,
    }


def _show(progress: Progress) -> None:
    left = progress.seconds_left
    step = f"{_size(progress.done_bytes)} of {_size(progress.total_bytes)}"
    if progress.note:
        step += f", {progress.note}"
    elif left is not None:
        step += f", {_size(progress.bytes_per_second)}/s, {_clock(left)} left"
    show_progress(min(progress.share, 0.999), step)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 359999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
