"""Measure how plain the English of comments, docstrings, help texts, errors and documents is.

python -m tests.language                 a table: words and riddles per 1,000 words, by folder
python -m tests.language PATH ...        every sentence with a riddle, by file:line
python -m tests.language PATH --long 25  sentences of more than 25 words, too

A riddle is a pronoun that stands for a noun the reader has to find: "what", "who", "those that" and their kin.
Code, quotations, the dated log (docs/log.md) and docs/options.md, which repeats docstrings, do not count.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RIDDLE = re.compile(r"\b(?:what|whatever|who|whoever|whom|whose|those (?:that|which)|that which)\b", re.IGNORECASE)
OPENER = re.compile(r"^(?:What|Who|Whose|Where|Of|How|Those)\b")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
CODE = re.compile(r"``.+?``|`[^`]+`|\"[^\"]*\"|https?://\S+|\]\([^)]*\)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z*`\"(\[])")
SHOWN_TO_PEOPLE = {"help", "description", "epilog", "hint"}
HASH_COMMENTS = {".toml", ".sh", ".cmake", ".yaml", ".yml"}
LEFT_OUT = {"docs/log.md", "docs/options.md", "tests/language.py", "tests/test_language.py"}
FOLDERS = ("edgemoe", "tui", "tests", "bench", "docs", ".ci")

Lines = list[tuple[int, str]]


@dataclass(frozen=True)
class Sentence:
    """One sentence: the file and line that it begins at, and its text."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> int:
        """Count the words, without code and quotations."""
        return len(WORD.findall(CODE.sub(" ", self.text)))

    @property
    def riddles(self) -> list[str]:
        """List the pronouns that stand for a noun."""
        return [found.lower() for found in RIDDLE.findall(CODE.sub(" ", self.text))]

    def __str__(self) -> str:
        """Give file:line, the riddles and the sentence."""
        marks = ", ".join(self.riddles) or f"{self.words} words"
        return f"{self.path.relative_to(ROOT)}:{self.line}: [{marks}] {self.text}"


def sentences(path: Path) -> list[Sentence]:
    """Read the sentences of one file's prose."""
    readers = {".py": _python, ".md": _markdown, ".cpp": _cplusplus, ".h": _cplusplus}
    text = path.read_text(encoding="utf-8")
    reader = readers.get(path.suffix, _hash_comments)
    return [sentence for block in reader(text) for sentence in _cut(path, block)]


def files(paths: list[Path]) -> list[Path]:
    """List the files with prose below some paths; without paths, of the whole repository."""
    tops = paths or [ROOT / folder for folder in FOLDERS] + [ROOT]
    found: set[Path] = set()
    for top in tops:
        if top.is_file():
            found.add(top)
        elif top.is_dir():
            found.update(file for file in (top.glob("*") if top == ROOT else top.rglob("*")) if _has_prose(file))
    return sorted(file for file in found if file.relative_to(ROOT).as_posix() not in LEFT_OUT)


def rates(read: list[Sentence]) -> dict[str, tuple[int, int]]:
    """Count the words and the riddles of each folder."""
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for sentence in read:
        place = sentence.path.relative_to(ROOT)
        folder = place.parent.as_posix() if place.suffix != ".md" else place.as_posix()
        words, riddles = counts[folder]
        counts[folder] = (words + sentence.words, riddles + len(sentence.riddles))
    return dict(sorted(counts.items()))


def per_thousand(read: list[Sentence]) -> float:
    """Give the riddles per 1,000 words."""
    return 1000 * sum(len(sentence.riddles) for sentence in read) / max(1, sum(sentence.words for sentence in read))


def _has_prose(file: Path) -> bool:
    if not file.is_file() or file.is_symlink() or "__pycache__" in file.parts:
        return False
    named = file.name in {"CMakeLists.txt", "Makefile"} or file.parent.name == ".ci"
    return named or file.suffix in {".py", ".md", ".cpp", ".h"} | HASH_COMMENTS


def _cut(path: Path, block: Lines) -> Iterator[Sentence]:
    """Cut a block of lines into sentences, each with the line that it begins at."""
    text, starts = "", []
    for number, line in block:
        starts.append((len(text), number))
        text += line.strip() + " "
    begin = 0
    for end in [match.end() for match in SENTENCE_END.finditer(text)] + [len(text)]:
        if WORD.search(text[begin:end]):
            number = max(number for start, number in starts if start <= begin)
            yield Sentence(path, number, text[begin:end].strip())
        begin = end


def _python(text: str) -> Iterator[Lines]:
    yield from _docstrings_and_messages(ast.parse(text))
    lines = text.splitlines()
    comments = (
        token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    )
    places = [(token.start[0], token.start[1], token.string.lstrip("#:! ")) for token in comments]
    yield from _joined(
        (line, column, not lines[line - 1][:column].strip(), comment) for line, column, comment in places
    )


def _docstrings_and_messages(tree: ast.Module) -> Iterator[Lines]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node, clean=False)):
            yield from _paragraphs([(node.body[0].lineno + i, line) for i, line in enumerate(text.splitlines())])
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from (text for argument in node.exc.args for text in _strings(argument))
        if isinstance(node, ast.keyword) and node.arg in SHOWN_TO_PEOPLE:
            yield from _strings(node.value)


def _strings(node: ast.expr) -> Iterator[Lines]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield [(node.lineno, node.value)]
    elif isinstance(node, ast.JoinedStr):
        yield [
            (node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values))
        ]


def _cplusplus(text: str) -> Iterator[Lines]:
    """Find // and /* */ comments; strings that hold such marks do not occur in the core."""
    found: list[tuple[int, int, bool, str]] = []
    for match in re.finditer(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL):
        first = text.count("\n", 0, match.start()) + 1
        code = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        for i, line in enumerate(match.group().splitlines()):
            found.append((first + i, len(code), not code.strip() or i > 0, line.strip("/* ")))
    yield from _joined(iter(found))


def _hash_comments(text: str) -> Iterator[Lines]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        code, mark, comment = line.partition("#")
        if mark and code.count('"') % 2 == 0 and code.count("'") % 2 == 0 and not line.startswith("#!"):
            found.append((number, len(code), not code.strip(), comment.lstrip("# ")))
    yield from _joined(iter(found))


def _joined(comments: Iterator[tuple[int, int, bool, str]]) -> Iterator[Lines]:
    """Join comments of one column, alone on lines that follow each other; each is (line, column, alone, text)."""
    block: Lines = []
    before = (0, 0)
    for line, column, alone, comment in comments:
        if block and not (alone and before == (line - 1, column)):
            yield block
            block = []
        block.append((line, comment))
        before = (line, column)
    if block:
        yield block


def _markdown(text: str) -> Iterator[Lines]:
    fenced, lines = False, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced, line = not fenced, ""
        lines.append((number, "" if fenced or re.fullmatch(r"[|:\- ]*", line) else line))
    yield from _paragraphs(lines)


def _paragraphs(lines: Lines) -> Iterator[Lines]:
    """Split at empty lines, list items, table rows, headings and the attributes of a docstring."""
    block: Lines = []
    for number, line in lines:
        begins = re.match(r"\s*(?:[-*|#]|\d+\.)\s|\s+\w+: ", line)
        if block and (not line.strip() or begins or block[-1][1].startswith("#")):
            yield block
            block = []
        if line.strip():
            block.append((number, re.sub(r"^\s*(?:[-*#]+|\d+\.)\s+", "", line)))
    if block:
        yield block


def main() -> int:
    """Print the table, or the sentences of some paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="*")
    parser.add_argument("--long", type=int, default=1000, metavar="WORDS", help="list longer sentences, too")
    parser.add_argument("--openers", action="store_true", help="list sentences that begin with What, Who, Of, How ...")
    options = parser.parse_args()
    read = [sentence for file in files([path.resolve() for path in options.path]) for sentence in sentences(file)]
    if options.path:
        for sentence in sorted(read, key=lambda sentence: -len(sentence.riddles)):
            opens = options.openers and OPENER.match(sentence.text)
            if sentence.riddles or opens or sentence.words > options.long:
                print(sentence)
    else:
        for folder, (words, riddles) in rates(read).items():
            print(f"{folder:32} {words:7} words {riddles:5} riddles {1000 * riddles / max(1, words):6.1f} per 1,000")
    openers = sum(OPENER.match(sentence.text) is not None for sentence in read)
    print(
        f"all: {per_thousand(read):.1f} per 1,000 words; {openers} of {len(read)} sentences open as a riddle",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
