"""The keys of the chat: their actions, and other keys that the user has chosen in ``keys.toml``.

The file has a line for each action, with one key or several::

    stop = "ctrl+x"
    newline = ["shift+enter", "alt+enter"]
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgemoe.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Action:
    """Something a key does: its name in the file, the binding it stands for, its keys, its purpose."""

    name: str
    binding: str
    keys: tuple[str, ...]
    help: str


ACTIONS = (
    Action("send", "prompt.send", ("enter",), "send"),
    Action("newline", "prompt.newline", ("ctrl+j", "shift+enter"), "newline"),
    Action("stop", "chat.stop", ("escape",), "stop the answer, or leave an edit"),
    Action("interrupt", "chat.interrupt", ("ctrl+c",), "copy, or stop, or quit"),
    Action("leave", "prompt.leave", ("ctrl+d",), "quit, in an empty prompt"),
    Action("suspend", "chat.suspend", ("ctrl+z",), "suspend the program"),
    Action("undo_typing", "prompt.undo", ("ctrl+underscore",), "undo typing"),
    Action("page_up", "chat.page_up", ("pageup",), "scroll up"),
    Action("page_down", "chat.page_down", ("pagedown",), "scroll down"),
    Action("top", "chat.top", ("ctrl+home",), "the first message"),
    Action("bottom", "chat.bottom", ("ctrl+end",), "the end"),
    Action("find", "chat.find", ("ctrl+f",), "find in this chat"),
    Action("new", "chat.new", ("ctrl+n",), "new chat"),
    Action("history", "chat.history", ("ctrl+r",), "history and search"),
    Action("models", "chat.models", ("ctrl+o",), "open another model"),
    Action("experts", "chat.experts", ("ctrl+e",), "experts"),
    Action("editor", "chat.editor", ("ctrl+g",), "edit the prompt in $EDITOR"),
    Action("pick", "chat.pick", ("f3",), "pick an expert"),
    Action("thinking", "chat.thinking", ("ctrl+t",), "thinking"),
    Action("copy", "chat.copy", ("ctrl+y",), "copy the answer"),
    Action("choose", "chat.choose", ("ctrl+up",), "choose a message"),
    Action("copy_message", "message.copy", ("c",), "copy the chosen one"),
    Action("edit_message", "message.edit", ("e",), "edit it"),
    Action("regenerate_message", "message.regenerate", ("r",), "answer it again"),
    Action("continue_message", "message.continue", ("n",), "continue it"),
    Action("palette", "app.palette", ("ctrl+p",), "commands"),
    Action("help", "chat.help", ("f1",), "this help"),
    Action("quit", "app.quit", ("ctrl+q",), "quit"),
)
_BY_NAME = {action.name: action for action in ACTIONS}
_KEY = re.compile(r"((ctrl|alt|shift|super)\+)*([a-z][a-z0-9_]*|\S)")
_SHORT = {"escape": "Esc", "pageup": "PageUp", "pagedown": "PageDown", "underscore": "_"}


@dataclass(frozen=True)
class Keys:
    """The keys in force: ``chosen`` names other keys for some actions."""

    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[str, ...]:
        """Keys of the action ``name``."""
        return self.chosen.get(name) or _BY_NAME[name].keys

    def shown(self, name: str) -> str:
        """The first key of the action ``name``, as people write it: ``Ctrl+N``."""
        return display(self.of(name)[0])

    def keymap(self) -> dict[str, str]:
        """For Textual: the chosen keys of each binding."""
        return {_BY_NAME[name].binding: ",".join(keys) for name, keys in self.chosen.items()}

    def taken(self) -> frozenset[str]:
        """Give every key that the chat acts on while the user writes: the text area must not act on it as well."""
        names = [action.name for action in ACTIONS if not action.binding.startswith("message.")]
        return frozenset(key for name in names for key in self.of(name))

    def rows(self) -> list[tuple[str, str]]:
        """List all keys, each with its effect."""
        rows = [(" or ".join(display(key) for key in self.of(action.name)), action.help) for action in ACTIONS]
        rows += [("Up, Down", "earlier prompts"), ("Tab", "complete a command or a path, or a first question")]
        return [*rows, ("Left, Right", "scroll wide code and tables of the chosen message")]


def display(key: str) -> str:
    """``ctrl+n`` as ``Ctrl+N``."""
    return "+".join(_SHORT.get(part, part.capitalize()) for part in key.split("+"))


def load(path: Path) -> Keys:
    """Read the user's choice; the defaults where there is no file.

    Raises:
        ConfigError: it is no TOML, names an action that does not exist, or gives one key to two actions.
    """
    try:
        chosen = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Keys()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}", str(path)) from error
    keys = Keys({name: _checked(path.name, name, value) for name, value in chosen.items()})
    taken: dict[str, str] = {}
    for action in ACTIONS:
        for key in keys.of(action.name):
            if (before := taken.setdefault(key, action.name)) != action.name:
                raise ConfigError(
                    f"{path.name}: {key} is both {before} and {action.name}", "give one of them another key"
                )
    return keys


def _checked(file: str, name: str, value: object) -> tuple[str, ...]:
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_BY_NAME)}"
        raise ConfigError(f"{file}: there is no action {name}", hint)
    keys = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    cleaned = tuple(key.strip().lower() for key in keys if isinstance(key, str) and _KEY.fullmatch(key.strip().lower()))
    if not cleaned or len(cleaned) != len(keys):
        raise ConfigError(f"{file}: {name} = {value!r} names no key", 'for example "ctrl+x", or a list of keys')
    return cleaned
