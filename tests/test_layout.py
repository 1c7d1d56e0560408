"""Order of the packages: contracts cover each, imports have no circle, and a user's folder never replaces one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgemoe.models import toml
from edgemoe.tui.forecasts import Forecasts
from tests.zoo import build

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgemoe"
GREETING = b"__GANGLION__\n"  # greeting of textual's driver for browsers; packets follow, D means data
HEADLESS = """
import sys
from edgemoe.cli.main import main
model, tests = sys.argv[1:]
sys.path.insert(0, tests)
from fake_engine import FakeLlama
for command in (["list"], ["show", model], ["fit", model, "--quick", "--device", "none", "--ctx", "256"]):
    assert main(command) == 0, command
assert main(["run", model, "hi"], FakeLlama) == 0
names = ("textual", "rich", "torch", "edgemoe.tui")
print([name for name in names if name in sys.modules], file=sys.stderr)
"""


def modules() -> dict[str, Path]:
    """List every module of the package. Links are followed, as in the wheel."""
    found = {}
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder) / file
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if file == "__init__.py" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """List our modules that the file imports anywhere, except for type checkers."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    tree = ast.parse(path.read_text("utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in typing:
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names}
        elif isinstance(node, ast.Import) and node not in typing:
            found |= {alias.name for alias in node.names}
    return {one for one in found if one in known and one != name}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Find one circle of the graph; empty without a circle."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def test_no_circle_of_imports_between_files() -> None:
    known = modules()
    graph = {name: imported(name, path, known) for name, path in known.items()}
    assert len(graph) > 150 and sum(map(len, graph.values())) > 400, "the files were read"
    assert circle(graph) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_every_room_is_in_the_contract_on_layers() -> None:
    contracts = toml.read(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {room for layer in layers for room in layer.split(" | ")}
    rooms = {name.split(".")[1] for name in modules() if name.count(".") >= 1}
    assert rooms == named


def test_headless_commands_load_no_terminal_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HEADLESS, str(build("llama", tmp_path)), str(ROOT / "tests")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


# A folder of the user that has the name of ours.


@pytest.fixture
def rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working directory with a package ``tui`` that ends every program that imports it."""
    (tmp_path / "tui").mkdir()
    (tmp_path / "tui" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(*arguments: str) -> str:
    """Give the stdout of the command line as a child starts it, with the working directory first among the imports."""
    command = [sys.executable, "-m", "edgemoe.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_in_a_folder_with_another_tui(rubbish: Path) -> None:
    assert "usage: edgemoe" in ran("--help")


def test_forecasts_in_a_folder_with_another_tui(rubbish: Path) -> None:
    name = str(build("llama", rubbish))
    forecasts = Forecasts(lambda: ["--device=none"], lambda found: str(found["schema"]))
    forecasts.look([name])
    if (thread := forecasts._thread) is not None:
        thread.join(60)
    assert forecasts.known[name] == "edgemoe.fit.v1"
    forecasts.close()


def test_the_served_chat_in_a_folder_with_another_tui(rubbish: Path) -> None:
    """--serve gives a browser its own process, which greets first and then draws."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver"}
    command = [sys.executable, "-m", "edgemoe.cli", "chat", "--served"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        assert process.stdout is not None
        greeting = process.stdout.read(len(GREETING) + 1)
        process.kill()
    assert greeting == GREETING + b"D"


@pytest.mark.slow
def test_the_demo_in_a_folder_with_another_tui(rubbish: Path) -> None:
    assert ran("demo", "--ask", "What is the capital of France?", "--max-tokens", "4").strip()


# The installed files.


@pytest.mark.slow
@pytest.mark.parametrize("source", ["the checkout", "the source archive"])
def test_one_package_is_installed(source: str, tmp_path: Path) -> None:
    """Both ways to a wheel follow the links to ``tui`` and to the catalogue."""
    pytest.importorskip("scikit_build_core")
    path = ROOT
    if source == "the source archive":
        code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
        made = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        path = tmp_path / made.stdout.decode().splitlines()[-1]
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    build_folder = f"--config-settings=build-dir={tmp_path / 'build'}"
    subprocess.run([*pip, build_folder, "-w", str(tmp_path), str(path)], check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {top for name in names if not (top := name.split("/")[0]).endswith(".dist-info")} == {"edgemoe"}
    assert {"edgemoe/tui/app.tcss", "edgemoe/models/models.toml", "edgemoe/engine/edgemoe_core.so"} <= names
    assert not [name for name in names if name.startswith("edgemoe/core/")]
