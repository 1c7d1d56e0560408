"""A cache of models that this user may not write: everything in it runs, and a removal says in one line why not."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, Repository

from tests.zoo import build

ROOT = Path(__file__).resolve().parent.parent
REPO, QUANTISATION = "org/Tiny-MoE-GGUF", "Q4_0"
MODEL = f"{REPO}:{QUANTISATION}"
# prctl(2) and capabilities(7): with these two, permissions do not bind root.
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tried with Linux' permissions")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that can be removed in the end."""
    yield tmp_path
    for place in [tmp_path, *(place for place in tmp_path.rglob("*") if not place.is_symlink())]:
        place.chmod(0o755)


def obey_permissions() -> None:
    """Take root's right to write everywhere from the program that this process becomes."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        content = build("llama", folder, "Q4_0").read_bytes()
        server.repositories[REPO] = Repository({f"Tiny-MoE-{QUANTISATION}.gguf": content})
        yield server


def edgemoe(hub: HubServer, folder: Path, *arguments: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line as somebody whom permissions bind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "EDGEMOE_HOME": str(folder / "home")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    return subprocess.run(
        [sys.executable, "-m", "edgemoe.cli", *arguments],
        capture_output=True, text=True, env=environment, cwd=folder, timeout=300, check=False,
        preexec_fn=obey_permissions,
    )  # fmt: skip


def make_read_only(place: Path) -> None:
    for path in [*place.rglob("*"), place]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_cache_that_nobody_may_write(hub: HubServer, folder: Path) -> None:
    pulled = edgemoe(hub, folder, "pull", MODEL)
    assert pulled.returncode == 0, pulled.stderr
    path = Path(pulled.stdout.strip())
    shutil.rmtree(folder / "hf" / "hub" / ".locks", ignore_errors=True)
    make_read_only(folder / "hf")

    again = edgemoe(hub, folder, "pull", MODEL)
    assert (again.returncode, again.stdout) == (0, pulled.stdout), again.stderr
    for arguments in (("run", MODEL, "Hi", "--max-tokens", "2", "--device", "none"), ("show", str(path)), ("list",)):
        done = edgemoe(hub, folder, *arguments)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    removed = edgemoe(hub, folder, "rm", MODEL, "--yes")
    assert removed.returncode not in (0, -signal.SIGABRT) and path.exists()
    assert f"{REPO} cannot be removed" in removed.stderr and "Traceback" not in removed.stderr
    assert len(removed.stderr.strip().splitlines()) <= 3
    branch = folder / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "refs" / "main"
    branch.chmod(0o644)
    branch.write_text("0" * 40)  # the branch has moved, and the file is the same
    branch.chmod(0o444)
    assert edgemoe(hub, folder, "pull", MODEL).stdout == pulled.stdout


def test_an_offline_run_from_a_read_only_cache(hub: HubServer, folder: Path) -> None:
    assert edgemoe(hub, folder, "pull", MODEL).returncode == 0
    make_read_only(folder / "hf")
    for arguments in (("pull", MODEL), ("run", MODEL, "Hi", "--max-tokens", "2", "--device", "none"), ("list",)):
        done = edgemoe(hub, folder, *arguments, offline=True)
        assert done.returncode == 0, done.stderr
        assert arguments[0] != "list" or REPO in done.stdout
