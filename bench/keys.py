"""Press every key and slash command of the chat in a real terminal (tmux), and look for the effect on the screen.

python bench/keys.py [MODEL.gguf] [--show]
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edgemoe.models.demo import build_demo

ROOT = Path(__file__).resolve().parent.parent
RUN = "from edgemoe.cli.main import main; raise SystemExit(main())"
SECONDS = 10.0
IDLE_SECONDS = 60.0  # seconds for a whole answer on a busy machine
EDITOR = "sed -i s/^/edited:/"
EMPTY = "Ask something, / for commands, @ for a file"
THOUGHT = '[{"role": "user", "content": "why"}, {"role": "assistant", "content": "<think>a secret</think>Because."}]'


class Terminal:
    """Run the chat in a separate tmux."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder, self.model = folder, model
        self._tmux = ["tmux", "-L", f"edgemoe-{os.getpid()}", "-f", "/dev/null"]
        environment = (
            f"EDGEMOE_HOME={folder / 'home'} PYTHONPATH={ROOT} COLORTERM=truecolor VISUAL={shlex.quote(EDITOR)}"
        )
        options = "--device sim --vram 50% --temperature 0 --max-tokens 40 --threads 1 --theme dark"
        command = f"env {environment} {sys.executable} -c {shlex.quote(RUN)} chat {model} {options}"
        self._call("new-session", "-d", "-x", "120", "-y", "40", "-c", str(folder), command)

    def _call(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=False).stdout

    def screen(self) -> str:
        return self._call("capture-pane", "-p")

    def keys(self, *names: str) -> None:
        self._call("send-keys", *names)

    def type(self, text: str, *then: str) -> None:
        self._call("send-keys", "-l", text)
        self.keys(*then)

    def command(self, text: str) -> None:
        self.type(text, "Enter")

    @property
    def runs(self) -> bool:
        return bool(self._call("list-sessions"))

    def until(self, condition: Callable[[str], bool], what: str, seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition(seen := self.screen()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}; on the screen:\n{seen}")
            time.sleep(0.02)  # an answer of the demo model takes 0.1 s

    def sees(self, *words: str) -> None:
        self.until(lambda seen: all(word in seen for word in words), f"never saw {words}")

    def misses(self, *words: str) -> None:
        self.until(lambda seen: not any(word in seen for word in words), f"still sees {words}")

    def prompt(self, text: str) -> None:
        """Tell whether the input line reads exactly ``text``."""
        self.until(
            lambda seen: text in (line.split("││")[0].strip("│ ") for line in seen.splitlines()[-6:]),
            f"prompt {text!r}",
        )

    def ask(self, text: str) -> None:
        self.command(text)
        self.until(lambda seen: "● answering" in seen or "◔ reading" in seen, "no answer begins")
        self.idle()

    def idle(self) -> None:
        self.until(lambda seen: "○ idle" in seen, "never idle", IDLE_SECONDS)

    def size(self, columns: int, rows: int) -> None:
        self._call("resize-window", "-x", str(columns), "-y", str(rows))

    def paste(self, text: str) -> None:
        """Paste as a terminal does, between marks."""
        self._call("set-buffer", text)
        self._call("paste-buffer", "-p")

    def shift_enter(self) -> None:
        """Press Shift+Enter as terminals with extended keys send it: tmux itself may not know the name."""
        self._call("send-keys", "-H", *["1b", "5b", "31", "33", "3b", "32", "75"])

    def end(self) -> None:
        self._call("kill-server")


def steps(there: Terminal) -> list[tuple[str, Callable[[], None]]]:
    """Name the steps, each with the text that has to appear."""

    def do(*actions: Callable[[], None]) -> Callable[[], None]:
        return lambda: [action() for action in actions] and None

    def press(*names: str) -> Callable[[], None]:
        return lambda: there.keys(*names)

    def write(text: str, *then: str) -> Callable[[], None]:
        return lambda: there.type(text, *then)

    def sees(*words: str) -> Callable[[], None]:
        return lambda: there.sees(*words)

    def misses(*words: str) -> Callable[[], None]:
        return lambda: there.misses(*words)

    def prompt(text: str) -> Callable[[], None]:
        return lambda: there.prompt(text)

    def paste(text: str) -> Callable[[], None]:
        return lambda: there.paste(text)

    def run(text: str, *words: str) -> Callable[[], None]:
        return do(write(text, "Enter"), sees(*words))

    idle, shift_enter = there.idle, there.shift_enter
    chat, file = there.folder / "thought.json", there.folder / "note.txt"
    chat.write_text(THOUGHT)
    file.write_text("The code word is heron.")
    picker = "Ctrl+F forecast"
    story = "Write a very long story about a river and a boat."
    france = "What is the capital of France?"
    clear = press(*["BSpace"] * 60)
    return [
        ("start", do(idle, sees("F1 help"))),
        ("Tab: a first question", do(press("Tab"), sees("Explain mixture"), press("C-c"), prompt(EMPTY))),
        ("Enter sends", do(lambda: there.ask(france), sees("Paris", "tok/s"))),
        ("Up: the last prompt", do(press("Up"), prompt(france), press("Down"))),
        ("Ctrl+J: a new line", do(write("one", "C-j"), write("two"), prompt("one"), prompt("two"), clear)),
        ("Shift+Enter: a new line", do(write("one"), shift_enter, write("two"), prompt("one"), prompt("two"), clear)),
        ("Ctrl+E: experts", do(press("C-e"), misses("experts · sim"), press("C-e"), sees("experts · sim"))),
        (
            "F3: pick an expert",
            do(press("F3"), sees("layer 0, expert 0"), press("Right"), sees("layer 0, expert 1")),
        ),
        ("Esc leaves the map", do(press("Escape"), misses("layer 0, expert 1"))),
        ("Ctrl+Y: copy", do(press("C-y"), sees("copied"))),
        (
            "Ctrl+C: asks before it quits",
            do(press("C-c"), sees("Ctrl+C again quits"), write("x"), misses("again quits")),
        ),
        ("Ctrl+C clears, Up brings back", do(press("C-c"), prompt(EMPTY), press("Up"), prompt("x"), press("C-c"))),
        ("Ctrl+_ takes typing back", do(write("wrong"), press("C-_"), misses("wrong"))),
        ("Ctrl+D deletes a letter", do(write("ab"), press("Home", "C-d"), prompt("b"), press("C-d"))),
        (
            "Tab stays in the prompt",
            do(write("tell me a"), press("Tab"), write("rest"), prompt("tell me arest"), clear),
        ),
        ("Ctrl+G: the editor", do(write("word"), press("C-g"), sees("edited:word"), clear)),
        ("a paste is there once", do(paste("pasted words"), prompt("pasted words"), clear)),
        ("Ctrl+F: find", do(press("C-f"), write("paris"), sees("1 of 1"), press("Escape"), misses("1 of 1"))),
        ("/find", do(run("/find capital", "2 of 2"), press("Escape"), misses("2 of 2"))),
        ("F1: help", do(press("F1"), sees("Keys", "this help"), press("Escape"), misses("this help"))),
        (
            "/ opens a menu",
            do(write("/"), sees("earlier chats, and a search"), press("Down", "Down"), sees("/history")),
        ),
        ("Esc closes it", do(press("Escape"), misses("earlier chats, and a search"), press("BSpace"))),
        ("/theme", do(run("/theme edgemoe-light", ""), run("/theme edgemoe-dark", ""))),
        (
            "Ctrl+Up: a message",
            do(press("C-Up"), sees("message 2/2", "C copy"), press("Up"), sees("message 1/2"), press("c")),
        ),
        ("C copies it", do(sees("copied 30 characters"), misses("message 1/2"))),
        ("E edits it", do(press("C-Up", "Up"), sees("message 1/2"), press("e"), prompt(france))),
        ("... again", do(press("Enter"), sees("answering"), idle, press("C-Up"), sees("message 2/2"))),
        ("R answers again", do(press("r"), sees("answering"), idle)),
        ("N continues", do(press("C-Up"), sees("message 2/2"), press("n"), sees("answering"), idle)),
        ("Ctrl+O: models", do(press("C-o"), sees(picker), press("Escape"), misses(picker))),
        ("Ctrl+P: palette", do(press("C-p"), sees("Search for commands"), write("light"), sees("Light or dark"))),
        ("Esc leaves the palette", do(press("Escape"), misses("Light or dark"))),
        (
            "Tab completes",
            do(
                write("/he", "Tab"),
                prompt("/help"),
                press("Enter"),
                sees("this help"),
                press("Escape"),
                misses("this help"),
            ),
        ),
        (
            "Tab completes a path",
            do(write(f"/file {there.folder}/not", "Tab"), sees(f"{there.folder}/note.txt"), clear),
        ),
        ("/stats twice", do(run("/stats", "uploads"), run("/stats", "uploads"))),
        ("PageUp, PageDown", do(press(*["PageUp"] * 9), sees(france), press(*["PageDown"] * 9), sees("uploads"))),
        ("Ctrl+Home, Ctrl+End", do(press("C-Home"), sees(france), press("C-End"), sees("uploads"))),
        ("/stats", run("/stats", "last answer:", "uploads")),
        ("/profile", run("/profile", "expert layers")),
        ("/set NAME VALUE", run("/set temperature 0.5", "temperature")),
        ("/set", do(run("/set", "Ctrl+S keep for this model"), press("Escape"), misses("Ctrl+S keep"))),
        ("/think", run("/think", "this model never thinks")),
        ("/system", run("/system You are a pirate.", "system prompt: You are a pirate.")),
        ("/rename", run("/rename The trip", "this conversation is called: The trip")),
        ("/experts", do(run("/experts"), misses("experts · sim"), run("/experts", "experts · sim"))),
        ("/vram", run("/vram 25%", "experts fit now")),
        ("/export", run(f"/export {there.folder}/out.md", "written to")),
        ("/copy", run("/copy", "copied")),
        ("/continue", do(write("/continue", "Enter"), sees("● answering"), idle)),
        ("/regen", do(write("/regen", "Enter"), sees("● answering"), idle)),
        ("/branch", run("/branch", "branch ")),
        ("Ctrl+N: new chat", do(press("C-n"), sees("F1 help"))),
        ("Ctrl+R: history", do(press("C-r"), sees("Search all", "The trip"), write("paris"), sees("The trip"))),
        (
            "Enter opens it",
            do(press("Enter"), misses("Ctrl+D delete"), sees("Up older"), press("Escape"), misses("Up older")),
        ),
        ("/file", do(run(f"/file {file}", "note.txt · 23 characters"), press("BSpace"), misses("23 characters"))),
        ("@ completes and attaches", do(write(f"see @{there.folder}/note"), sees("note.txt  "), press("Enter"))),
        ("... as a chip", do(sees("23 characters"), clear, run("/detach", ""), misses("23 characters"), clear)),
        ("... and goes along", do(run(f"/file {file}", "23 characters"), lambda: there.ask("What does it say?"))),
        (
            "/undo",
            do(write("/undo", "Enter"), prompt("What does it say?"), clear, press("C-u"), press(*["BSpace"] * 200)),
        ),
        ("/edit", do(write("/edit", "Enter"), prompt(france), sees("editing"), press("Escape"), misses("editing"))),
        ("/history", do(run("/history", "Search all"), press("Escape"), misses("Search all"))),
        ("/new", run("/new", "F1 help")),
        ("/import", run(f"/import {chat}", "Because.")),
        ("Ctrl+T: thinking", do(misses("a secret"), press("C-t"), sees("a secret"), press("C-t"), misses("a secret"))),
        ("/model", do(run("/model", picker), press("Escape"), misses(picker))),
        ("/model FILE", do(run(f"/model {there.model}", "loading"), idle)),
        ("Esc stops", do(run("/set max_tokens 2000", "2000"), write(story, "Enter"), sees("answering"))),
        ("... at once", do(press("Escape"), sees("□ stopped", "stopped ·"))),
        ("unknown command", do(run("/hepl", "did you mean /help?"), press(*["BSpace"] * 9))),
        (
            "a resize while it answers",
            do(write(story, "Enter"), lambda: there.size(80, 24), sees("answering")),
        ),
        (
            "a message waits, Backspace takes it back",
            do(write("later", "Enter"), sees("next  later"), press("BSpace"), prompt("later"), clear),
        ),
        ("... and back", do(lambda: there.size(120, 40), sees("answering"), press("Escape"), sees("□ stopped"))),
        ("Ctrl+Q quits", do(press("C-q"), lambda: there.until(lambda _: not there.runs, "still runs"))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="the demo model by default")
    parser.add_argument("--show", action="store_true", help="print the screen after each step")
    options = parser.parse_args()
    if shutil.which("tmux") is None:
        raise SystemExit("tmux is not installed")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        there = Terminal((options.model or build_demo()).resolve(), Path(folder))
        try:
            for name, step in steps(there):
                try:
                    step()
                    print(f"ok      {name}", flush=True)
                except AssertionError as error:
                    failed.append(name)
                    there.keys("Escape", *["BSpace"] * 60)  # the next step begins with an empty prompt
                    print(f"FAILED  {name}: {error}", flush=True)
                if options.show:
                    print(there.screen(), flush=True)
        finally:
            there.end()
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
