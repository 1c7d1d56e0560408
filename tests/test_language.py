"""The measure of plain English (tests/language.py) reads prose, all of it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import language

MOST_RIDDLES = 2.0  # of 1,000 words

PYTHON = '''"""What this module does. It has
two sentences."""

LIMIT = 3  # what a person may ask
# A comment on two lines, for
# those that read it.
TEXT = "what is this?"


def run(parser: object) -> None:
    """Run `what` the user asked for.

    Args:
        parser: whoever parses.
    """
    parser.add_argument("--x", help=f"what {LIMIT} is")
    raise ValueError("what is meant?")
'''
CPP = """// What this file does.
int a; // whose number
int b; /* plain */
int c = 1 / 2;
"""
MARKDOWN = """# What it is

Text with `what` in code, a [link](what.md) and "what" in quotes.

```sh
what
```

- Those that come in lists.
- Plain.
"""


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.py", PYTHON, [(1, "what"), (4, "what"), (5, "those that"), (14, "whoever"), (16, "what"), (17, "what")]),
        ("a.cpp", CPP, [(1, "what"), (2, "whose")]),
        ("a.md", MARKDOWN, [(1, "what"), (9, "those that")]),
        ("Makefile", "# what\nrun: # plain\n\techo what\n", [(1, "what")]),
    ],
)
def test_riddles_are_found_where_they_are(name: str, text: str, found: list[tuple[int, str]], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert sorted((s.line, riddle) for s in language.sentences(path) for riddle in s.riddles) == found


def test_every_folder_of_the_project_is_read() -> None:
    read = {path.relative_to(language.ROOT).as_posix() for path in language.files([])}
    assert {"README.md", "Makefile", "edgemoe/config.py", "tui/app.py", "bench/cpu.py", "tests/parity.py"} <= read
    assert "docs/log.md" not in read and any(path.endswith(".cpp") for path in read)


def test_the_project_is_plain() -> None:
    read = [sentence for path in language.files([]) for sentence in language.sentences(path)]
    assert language.per_thousand(read) <= MOST_RIDDLES, "python -m tests.language PATH lists them"
