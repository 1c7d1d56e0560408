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
    Command("system", "show or set the system prompt; 'none' clears it", "[TEXT]"),
    Command("stats", "counters of the experts and of the last answer"),
    Command("experts", "show or hide the expert map"),
    Command("vram", "device memory for experts: 4GiB, 50%", "SIZE", needs_argument=True),
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
