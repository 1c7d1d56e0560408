"""``edgemoe profile``: measure memory and latency of a model on this machine, beside llama.cpp."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, EdgeMoEError
from ..text.console import show_progress, talk
from . import MODEL

if TYPE_CHECKING:
    from ..config import OffloadConfig
    from ..profiling.measure import Result

FORMATS = ("md", "json", "jsonl", "csv")
OK, INTERRUPTED = 0, 130


def add_parser(
    commands: Any, common: Any, find: Callable[[str], Path], offload: Callable[[argparse.Namespace], OffloadConfig]
) -> None:
    """Add the subcommand. ``common`` has the options of placement, and ``offload`` reads them."""
    profile = commands.add_parser(
        "profile", parents=[common], help="measure speed, latency and memory beside llama.cpp"
    )
    profile.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    profile.add_argument("-p", "--n-prompt", default="512", metavar="N,..", help="tokens of a prompt (%(default)s)")
    profile.add_argument("-n", "--n-gen", default="128", metavar="N,..", help="tokens to generate (%(default)s)")
    profile.add_argument(
        "-d", "--n-depth", default="0", metavar="N,..", help="tokens in the context before a test (%(default)s)"
    )
    profile.add_argument(
        "-r", "--repetitions", type=int, default=5, metavar="N", help="repetitions of each test (%(default)s)"
    )
    profile.add_argument("--synthetic", action="store_true", help="random tokens instead of text")
    profile.add_argument(
        "-o", "--output", choices=FORMATS, default="md", help="format of the report: %(choices)s (%(default)s)"
    )
    profile.add_argument("--html", metavar="FILE", type=Path, help="also write one page with plots")
    profile.add_argument("--trace", metavar="FILE", type=Path, help="also write trace events, which Perfetto opens")
    two = ("A.json", "B.json")
    profile.add_argument("--compare", nargs=2, metavar=two, type=Path, help="compare two profiles and run nothing")
    profile.set_defaults(command=lambda parsed, _: _profile(parsed, find, offload))


def _profile(
    parsed: argparse.Namespace, find: Callable[[str], Path], offload: Callable[[argparse.Namespace], OffloadConfig]
) -> int:
    if parsed.compare:
        from ..profiling import compare

        print(compare.report(*map(compare.read, parsed.compare)))
        return OK
    if parsed.model is None:
        raise ConfigError("no model given", "edgemoe profile MODEL.gguf, or edgemoe profile demo")
    prompts, gens, depths = (_numbers(getattr(parsed, f"n_{what}"), what) for what in ("prompt", "gen", "depth"))
    if parsed.repetitions < 1:
        raise ConfigError(f"-r {parsed.repetitions} is below 1")
    files = [file for file in (parsed.html, parsed.trace) if file is not None]
    for file in files:
        if not file.absolute().parent.is_dir() or file.is_dir():
            raise ConfigError(f"{file} cannot be written", "give a file in a folder that exists")
    config, path = offload(parsed), find(parsed.model)

    from .. import profiling
    from ..profiling import figures

    tests = [profiling.Test(prompt=n, depth=d) for d in depths for n in prompts if n]
    tests += [profiling.Test(generate=n, depth=d) for d in depths for n in gens if n]
    if not tests:
        raise ConfigError("nothing to measure", "give -p or -n above 0")
    threads = parsed.threads or figures.physical_cores()
    try:
        result = profiling.profile(path, tests, parsed.repetitions, config, threads, show_progress, parsed.synthetic)
    finally:
        show_progress(1.0, "")
    return _write(result, parsed)


def _write(result: Result, parsed: argparse.Namespace) -> int:
    from ..profiling import figures, page, report, trace_events

    whole = figures.as_dict(result)
    write = {"md": report.as_markdown, "json": report.as_json, "jsonl": report.as_jsonl, "csv": report.as_csv}
    print(write[parsed.output](whole))
    for file, make in ((parsed.html, page.page), (parsed.trace, lambda found: json.dumps(trace_events.trace(found)))):
        if file is not None:
            file.write_text(make(whole), "utf-8")
            talk(f"wrote {file}")
    if result.stopped and not result.interrupted:
        raise EdgeMoEError(result.stopped, "the measurements until then are on stdout")
    return INTERRUPTED if result.interrupted else OK


def _numbers(text: str, what: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{text!r} is no number of {what} tokens", "such as 512 or 128,512") from error
    if any(n < 0 for n in numbers):
        raise ConfigError(f"{text!r}: a number of tokens is not negative")
    return numbers
