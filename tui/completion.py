"""Completions of the text before the cursor: a command, the path after one, or a file after ``@``."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgemoe.text.display import size

from .commands import matches

MOST_ENTRIES = 2000  # of a folder that are looked at
MOST_CANDIDATES = 200
_PATH_COMMAND = re.compile(r"/(?:file|attach|add|import|export|save|model|models|load) +(?P<path>[^\n]*)")
_AT_PATH = re.compile(r"(?:^|(?<=\s))@(?P<path>\S*)$")
_AT_FILE = re.compile(r"(?:^|(?<=\s))@(\S+)")


@dataclass(frozen=True)
class Candidate:
    """One way to go on.

    Attributes:
        text: replaces the typed beginning.
        label: names it in the menu.
        detail: explains it in the menu.
        attaches: it is a file that goes along with the question.
    """

    text: str
    label: str
    detail: str = ""
    attaches: bool = False


@dataclass(frozen=True)
class PathBegun:
    """A path that is being typed: its ``text`` begins at ``start``; ``attaches`` after an ``@``."""

    start: int
    text: str
    attaches: bool


def commands(line: str) -> list[Candidate]:
    """Commands that ``line`` could become."""
    if " " in line:
        return []
    return [
        Candidate(f"/{command.name}" + (" " if command.argument else ""), command.usage, command.help)
        for command in matches(line)
    ]


def path_begun(line: str) -> PathBegun | None:
    """Find the path at the end of ``line``; None where no path is expected."""
    if found := _PATH_COMMAND.fullmatch(line):
        return PathBegun(found.start("path"), found["path"], False)
    if found := _AT_PATH.search(line):
        return PathBegun(found.start("path") - 1, found["path"], True)
    return None


def paths(begun: PathBegun) -> list[Candidate]:
    """List the files and folders that ``begun`` could become. It looks at a disk, so call it in a thread."""
    folder, _, name = begun.text.rpartition("/")
    shown = f"{folder}/" if "/" in begun.text else ""
    try:
        with os.scandir(Path(shown or ".").expanduser()) as entries:
            found = [entry for entry in itertools.islice(entries, MOST_ENTRIES) if _fits(entry.name, name)]
            found.sort(key=lambda entry: (not entry.is_dir(), entry.name.lower()))
            return [_candidate(entry, shown, begun.attaches) for entry in found[:MOST_CANDIDATES]]
    except OSError:
        return []


def _fits(entry: str, typed: str) -> bool:
    hidden = entry.startswith(".") and not typed.startswith(".")
    return not hidden and entry.lower().startswith(typed.lower())


def _candidate(entry: os.DirEntry[str], shown: str, attaches: bool) -> Candidate:
    mark = "@" if attaches else ""
    if entry.is_dir():
        return Candidate(f"{mark}{shown}{entry.name}/", f"{entry.name}/")
    try:
        detail = size(entry.stat().st_size)
    except OSError:
        detail = ""
    return Candidate(f"{mark}{shown}{entry.name}", entry.name, detail, attaches)


def common(candidates: Iterable[Candidate]) -> str:
    """Return the longest beginning that all ``candidates`` share."""
    texts = [candidate.text for candidate in candidates]
    first, last = min(texts), max(texts)
    return first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def files_named(text: str) -> list[str]:
    """List the paths after ``@`` in ``text`` that name a file. It looks at a disk."""
    return [path for path in _AT_FILE.findall(text) if Path(path).expanduser().is_file()]
