"""Slash commands: their names, their help, and how a line becomes one. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: without the slash.
        argument: placeholder of its argument, empty when it takes none.
        needs_argument: an empty argument is an error.
        help: what it does.
    """

    name: str
    help: str
    argument: str = ""
    needs_argument: bool = False

    @property
    def usage(self) -> str:
        """For example ``/vram SIZE``."""
        return f"/{self.name} {self.argument}".rstrip()


COMMANDS = (
    Command("help", "keys and commands"),
    Command("new", "start a new chat"),
    Command("history", "earlier chats, and a search in all of them"),
    Command("rename", "give this chat a title", "TITLE", needs_argument=True),
    Command("model", "choose another model, or open one", "[FILE]"),
    Command("system", "the system prompt ('none'); --save keeps it", "[TEXT]"),
    Command("set", "temperature, top_p, max_tokens ...; --save keeps it", "[NAME VALUE]"),
    Command("think", "how much the model thinks: on, off, high ...", "[LEVEL]"),
    Command("stats", "counters of the experts and of the last answer"),
    Command("experts", "show or hide the expert map"),
    Command("vram", "device memory for experts: 4GiB, 50%", "SIZE", needs_argument=True),
    Command("profile", "where the time of the last answer went"),
    Command("file", "attach a text file to the next question", "PATH", needs_argument=True),
    Command("export", "write a .md or .json file; --thoughts with thinking", "[FILE]"),
    Command("import", "open a chat from a .md or .json file", "FILE", needs_argument=True),
    Command("undo", "take the last question and its answer back"),
    Command("edit", "change the last question (a new branch)"),
    Command("regen", "answer the last question again"),
    Command("branch", "show the next of several answers"),
    Command("continue", "let the last answer go on"),
    Command("copy", "copy the last answer, or its N-th code block", "[N]"),
    Command("quit", "leave the chat"),
)
_BY_NAME = {command.name: command for command in COMMANDS}


@dataclass(frozen=True)
class Call:
    """A command as the user gave it."""

    name: str
    argument: str


@dataclass(frozen=True)
class Unknown:
    """A line that looks like a command and is none, with what to do about it."""

    text: str
    hint: str


def parse(line: str) -> Call | Unknown | None:
    """Read ``line``; None when it is no command. A leading space keeps a slash from being one."""
    if not line.startswith("/"):
        return None
    name, _, argument = line[1:].partition(" ")
    name, argument = name.strip().lower(), argument.strip()
    command = _BY_NAME.get(name)
    if command is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        return Unknown(f"there is no command /{name}", f"{hint} (a space in front sends it as text)")
    if command.needs_argument and not argument:
        return Unknown(f"/{name} needs a value", f"{command.usage}: {command.help}")
    return Call(name, argument)


def matches(line: str) -> list[Command]:
    """Commands that a line which is being typed could become; empty when it is no command."""
    if not line.startswith("/") or "\n" in line:
        return []
    name, space, _ = line[1:].partition(" ")
    if space:
        return [_BY_NAME[name]] if name in _BY_NAME else []
    return [command for command in COMMANDS if command.name.startswith(name.lower())]


def completed(line: str) -> str:
    """``line`` with its command completed as far as it is clear, or else to the first that fits; for Tab."""
    found = matches(line)
    if not found or " " in line:
        return line
    first, last = min(command.name for command in found), max(command.name for command in found)
    same = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if len(found) > 1 and same > len(line) - 1:
        return f"/{first[:same]}"
    return f"/{found[0].name}" + (" " if found[0].argument else "")
