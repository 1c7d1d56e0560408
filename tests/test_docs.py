"""Generated documents are up to date, and written documents only name things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import options

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").glob("*.md") if page.name != "log.md")]


def test_options_are_current() -> None:
    assert options.FILE.read_text(encoding="utf-8") == options.page(), "python -m docs.options writes it again"


def test_every_environment_variable_is_documented() -> None:
    sources = [
        path for folder in ("edgemoe", "tui") for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".cpp")
    ]
    read = {name for path in sources for name in re.findall(r'"(EDGEMOE_[A-Z_]+)"', path.read_text(encoding="utf-8"))}
    assert read and read <= options.ENVIRONMENT.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    known = {name: set(parser._option_string_actions) for name, _, parser in options.subcommands()}
    for command, rest in re.findall(r"`edgemoe ([a-z-]+)([^`\n]*)`", page.read_text(encoding="utf-8")):
        given = set(re.findall(r"--[a-z-]+", rest))
        assert given <= known[command], f"{page.name}: edgemoe {command}{rest}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    places = [*PAGES, ROOT / ".ci" / "run"]
    named = {name for place in places for name in re.findall(r"(?:^|`)make ([a-z-]+)", place.read_text(), re.MULTILINE)}
    assert "check" in named and named <= targets


def test_ci_runs_the_readmes_test_command() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Test it")[2]
    command = re.search(r"```sh\n(.+)\n```", section)
    assert command and command[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_the_table_of_cards_is_current() -> None:
    from docs import cards

    assert cards.table() in (ROOT / "README.md").read_text(encoding="utf-8"), "python -m docs.cards prints it"
