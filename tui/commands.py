"""Slash commands: their names, their help, and how a line becomes one. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from edgemoe.answer import sampling


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: without the slash.
        argument: placeholder of its argument, empty when it takes none.
        needs_argument: an empty argument is an error.
        help: its effect.
        aliases: names that other programs give it.
    """

    name: str
    help: str
    argument: str = ""
    needs_argument: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """For example ``/vram SIZE``."""
        return f"/{self.name} {self.argument}".rstrip()


COMMANDS = (
    Command("help", "keys and commands", aliases=("?", "keys", "commands")),
    Command("new", "start a new chat", aliases=("clear", "reset")),
    Command("history", "earlier chats, and a search in all of them", aliases=("search", "resume", "chats")),
    Command("find", "find words in this chat", "[TEXT]"),
    Command("rename", "give this chat a title", "TITLE", needs_argument=True),
    Command("model", "choose another model, or open one", "[FILE]", aliases=("models", "load")),
    Command("system", "the system prompt ('none'); --save keeps it", "[TEXT]", aliases=("prompt",)),
    Command("set", "temperature, top_p, max_tokens ...; --save keeps it", "[NAME VALUE]"),
    Command("think", "how much the model thinks: on, off, high ...", "[LEVEL]"),
    Command("stats", "counters of the experts and of the last answer", aliases=("info", "status")),
    Command("experts", "show or hide the expert map"),
    Command("vram", "device memory for experts: 4GiB, 50%", "SIZE", needs_argument=True),
    Command("ctx", "length of the context: 16384, 32k, auto", "[TOKENS]", aliases=("context",)),
    Command("profile", "where the time of the last answer went"),
    Command("file", "attach a text file to the next question", "PATH", needs_argument=True, aliases=("attach", "add")),
    Command("detach", "take an attachment away again: the last, number N, or all", "[N]", aliases=("drop",)),
    Command("export", "write a .md or .json file; --thoughts with thinking", "[FILE]", aliases=("save",)),
    Command("import", "open chats from a .md or .json file, also ChatGPT's, LM Studio's", "FILE", needs_argument=True),
    Command("editor", "edit the prompt in $EDITOR", aliases=("vi", "vim")),
    Command("theme", "change the colours, and keep them", "[NAME]"),
    Command("undo", "take the last question and its answer back"),
    Command("edit", "change the last question (a new branch)"),
    Command("regen", "answer the last question again", aliases=("retry", "again", "regenerate")),
    Command("branch", "show the next of several answers"),
    Command("continue", "let the last answer go on"),
    Command("copy", "copy the last answer, or its N-th code block", "[N]"),
    Command("quit", "leave the chat", aliases=("exit", "q", "bye")),
)
_BY_NAME = {command.name: command for command in COMMANDS}
_NAMED = _BY_NAME | {alias: command for command in COMMANDS for alias in command.aliases}
_SETTINGS = {setting.name for setting in sampling.SETTINGS}  # each is short for /set NAME
_NEAR = 0.6  # how alike two names must be
_UNSUGGESTED = ("undo", "edit")  # a wrong guess would take a question back


@dataclass(frozen=True)
class Call:
    """A command as the user gave it."""

    name: str
    argument: str


@dataclass(frozen=True)
class Unknown:
    """A line that looks like a command and is none, with a remedy."""

    text: str
    hint: str


def parse(line: str) -> Call | Unknown | None:
    """Read ``line``; None when it is no command. A leading space keeps a slash from being one."""
    if not line.startswith("/"):
        return None
    name, _, argument = line[1:].partition(" ")
    name, argument = name.strip().lower(), argument.strip()
    if name in _SETTINGS:
        return Call("set", f"{name} {argument}".rstrip())
    command = _NAMED.get(name)
    if command is None:
        known = [known for known in _NAMED if known not in _UNSUGGESTED]
        near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        return Unknown(f"there is no command /{name}", f"{hint} (a space in front sends it as text)")
    if command.needs_argument and not argument:
        return Unknown(f"/{name} needs a value", f"{command.usage}: {command.help}")
    return Call(command.name, argument)


def matches(line: str) -> list[Command]:
    """Commands that a line which is being typed could become; empty when it is no command."""
    if not line.startswith("/") or "\n" in line:
        return []
    name, space, _ = line[1:].partition(" ")
    if space:
        return [_NAMED[name]] if name in _NAMED else []
    begun = name.lower()
    by_name = [command for command in COMMANDS if command.name.startswith(begun)]
    by_alias = [command for command in COMMANDS if any(alias.startswith(begun) for alias in command.aliases)]
    return by_name + [command for command in by_alias if begun and command not in by_name]
