"""Write docs/options.md from the docstrings and the parser of the command line.

python -m docs.options            writes the file
python -m docs.options --check    says with its exit code whether the file is up to date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemoe import Llama
from edgemoe.cli.main import _parser
from edgemoe.config import OffloadConfig, SimConfig

# Commands that load a model to run it: most of their options are the same.
LOADING = ("chat", "demo", "run", "profile")
FILE = Path(__file__).with_name("options.md")
HEAD = """\
# Options

`python -m docs.options` writes this page from the docstrings and from `--help`. A test fails if the page is old.

Contents: [OffloadConfig](#offloadconfig), [SimConfig](#simconfig), [Llama](#llama),
[environment variables](#environment-variables), [the command line](#the-command-line).
"""

# Nobody declares these: config, huggingface_hub, ggml and the terminal read them where they need them.
ENVIRONMENT = {
    "EDGEMOE_HOME": "Folder for everything that EdgeMoE keeps: settings, chats, routing profiles, measurements, "
    "prompts. Without it the system's own folders for settings, data and cache are used.",
    "EDGEMOE_KERNELS": "CPU kernels for experts: `auto` (the best that the processor has), `off` (ggml's kernels), "
    "`avx2`, `avxvnni`, `avx512` or `neon`.",
    "EDGEMOE_API_KEY": "Key that requests to `edgemoe serve` must give, as with `--api-key`. Other users can "
    "read a command line, but not this variable.",
    "HF_HOME, HF_HUB_CACHE": "Folder of downloaded models, as in huggingface_hub.",
    "HF_HUB_OFFLINE": "`1`: never connect to the hub.",
    "HF_TOKEN": "Token of the hub, for models that need one.",
    "GGML_CUDA_REGISTER_HOST": "With any value, ggml pins host memory for CUDA. EdgeMoE sets this variable before it "
    "pins memory; with `OffloadConfig(pin=False)` it does not.",
    "NO_COLOR": "Any value: the chat uses no colours.",
    "TERM": "`dumb`: the chat is line by line, as with `--plain`.",
}


def page() -> str:
    """Give the text of the page."""
    parts = [HEAD]
    for record in (OffloadConfig, SimConfig):
        parts.append(f"## {record.__name__}\n\n{_summary(record)}\n\n{_table(_fields(record))}")
    parts.append(f"## Llama\n\n{_summary(Llama)}\n\n{_methods()}")
    rows = [[f"`{name}`", text] for name, text in ENVIRONMENT.items()]
    parts.append("## Environment variables\n\n" + _rows(["variable", "meaning"], rows))
    parts.append("## The command line\n\n" + "\n\n".join(_commands()))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(thing: Any) -> str:
    """Take the docstring's text above its first section."""
    text = inspect.cleandoc(thing.__doc__ or "")
    return _plain(re.split(r"\n\n(?:Args|Attributes|Raises|Returns):\n", text)[0])


def _section(thing: Any, name: str) -> dict[str, str]:
    """Read one section of a docstring: the text of each name."""
    text = inspect.cleandoc(thing.__doc__ or "")
    found = re.search(rf"^{name}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    body = textwrap.dedent(found[1]) if found else ""
    entries = re.findall(r"^([\w*]+): (.*(?:\n +.*)*)", body, re.MULTILINE)
    return {entry: _plain(re.sub(r"\s+", " ", text)) for entry, text in entries}


def _plain(text: str) -> str:
    """Turn reStructuredText's double backticks into Markdown's single ones."""
    return text.replace("``", "`").replace("|", "\\|")


def _fields(record: Any) -> Iterator[list[str]]:
    texts = _section(record, "Attributes")
    for field in dataclasses.fields(record):
        default = "see below" if dataclasses.is_dataclass(field.default) else repr(field.default).replace("'", '"')
        yield [
            f"`{field.name}`",
            f"`{default}`" if default != "see below" else "[SimConfig](#simconfig)",
            texts[field.name],
        ]


def _table(rows: Iterator[list[str]]) -> str:
    return _rows(["field", "default", "meaning"], list(rows))


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _methods() -> str:
    rows = []
    for method in (Llama, Llama.create_chat_completion):
        name = "Llama" if method is Llama else method.__name__
        for argument, text in _section(method, "Args").items():
            if not argument.startswith("*"):
                rows.append([f"`{name}`", f"`{argument}`", text])
    return _rows(["call", "keyword", "meaning"], rows)


def _commands() -> Iterator[str]:
    commands = [(name, text, _options(parser)) for name, text, parser in subcommands()]
    shared = [row for row in commands[0][2] if all(row in rows for name, _, rows in commands if name in LOADING)]
    yield f"### Options of {', '.join(LOADING[:-1])} and {LOADING[-1]}\n\n{_rows(['option', 'meaning'], shared)}"
    for name, text, rows in commands:
        own = [row for row in rows if row not in shared] if name in LOADING else rows
        yield f"### edgemoe {name}\n\n{_sentence(text)}\n\n{_rows(['option', 'meaning'], own)}"


def subcommands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Give name, help text and parser of each command."""
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            yield from ((name, helps[name], action.choices[name]) for name in helps)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _options(parser: argparse.ArgumentParser) -> list[list[str]]:
    rows = []
    for action in parser._actions:
        if action.help in (argparse.SUPPRESS, None) and not action.option_strings:
            continue
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
        value = action.metavar or action.dest.upper()
        value = " ".join(value) if isinstance(value, tuple) else value
        value = f" `{value}`" if action.option_strings and action.nargs != 0 else ""
        text = parser._get_formatter()._expand_help(action) if action.help else ""
        rows.append([names + value, text.replace("|", "\\|")])
    return rows


def main() -> int:
    """Write the page, or compare it with the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the file is stale")
    if not parser.parse_args().check:
        FILE.write_text(page(), encoding="utf-8")
        return 0
    return 0 if FILE.is_file() and FILE.read_text(encoding="utf-8") == page() else 1


if __name__ == "__main__":
    sys.exit(main())
