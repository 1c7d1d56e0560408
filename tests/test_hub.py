"""Downloads and their removal, with the real huggingface_hub client and a hub in this process."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Answer, HubServer, Repository, sha256
from huggingface_hub import constants, scan_cache_dir

from edgemoe.cli import pull as command
from edgemoe.cli.main import main
from edgemoe.config import home
from edgemoe.errors import DoesNotFit, EdgeMoEError, ModelNotFound
from edgemoe.models.hub import Download, RemoteFile, cache, download, parse, plan_download
from edgemoe.models.hub.meter import Progress
from tests.zoo import build

ROOT = Path(__file__).resolve().parent.parent
REPO = "org/Tiny-MoE-GGUF"
MIB = 1 << 20
Captured = pytest.CaptureFixture[str]
Usage = namedtuple("Usage", "total used free")


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


FILES = {
    "README.md": b"# Tiny",
    "Tiny-MoE-Q4_K_M.gguf": content(1, 3 * MIB + 17),
    "Q8_0/Tiny-MoE-Q8_0-00001-of-00002.gguf": content(2, 2 * MIB),
    "Q8_0/Tiny-MoE-Q8_0-00002-of-00002.gguf": content(3, 1 * MIB),
    "Tiny-MoE-IQ2_XS.gguf": content(4, MIB),
    "mmproj-F16.gguf": b"no model",
}
Q4 = FILES["Tiny-MoE-Q4_K_M.gguf"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a hub with one repository, and point huggingface_hub to it."""
    with HubServer() as server:
        server.repositories[REPO] = Repository(dict(FILES))
        server.serve_client(monkeypatch, tmp_path)
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses instead of waiting."""
    made: list[float] = []
    monkeypatch.setattr(download, "sleep", made.append)
    return made


def pull(name: str = f"{REPO}:Q4_K_M", progress: Any = None) -> Path:
    return download.download(plan_download(*parse(name)), progress)


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").rglob("*.incomplete"))


# Downloads.


def test_a_download_is_whole_and_in_the_cache_of_huggingface_hub(hub: HubServer) -> None:
    path = pull(f"{REPO}:q8_0")
    assert path.name == "Tiny-MoE-Q8_0-00001-of-00002.gguf" and path.read_bytes() == FILES["Q8_0/" + path.name]
    second = path.with_name("Tiny-MoE-Q8_0-00002-of-00002.gguf")
    assert second.read_bytes() == FILES["Q8_0/" + second.name]
    scanned = scan_cache_dir(constants.HF_HUB_CACHE)
    assert not scanned.warnings
    (cached,) = scanned.repos
    assert cached.repo_id == REPO and cached.refs["main"].commit_hash == hub.repositories[REPO].commit


def test_what_is_there_is_not_fetched_again(hub: HubServer) -> None:
    pull()
    before = len(hub.asked("/cdn/"))
    assert pull().read_bytes() == Q4
    assert len(hub.asked("/cdn/")) == before
    hub.repositories[REPO].files["README.md"] = b"another commit, the same model"
    assert pull().read_bytes() == Q4
    assert len(hub.asked("/cdn/")) == before


def test_progress_counts_all_shards(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.models.hub.meter.EVERY_S", 0.0)
    seen: list[Progress] = []
    pull(f"{REPO}:Q8_0", seen.append)
    assert {p.total_bytes for p in seen} == {3 * MIB}
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)
    assert seen[-1].done_bytes == 3 * MIB and any(p.note == "checking" for p in seen)


def test_a_download_resumes_after_twenty_cuts(hub: HubServer, waits: list[float]) -> None:
    hub.faults.cuts, hub.faults.cut_after = 20, 150_000
    assert pull().read_bytes() == Q4
    ranges = [request.range for request in hub.asked("/cdn/")]
    assert ranges == ["", *(f"bytes={150_000 * n}-" for n in range(1, 21))]
    assert max(waits) <= download.PAUSE_S  # each connection brought bytes, so no pause was needed


def test_a_connection_that_brings_nothing_is_given_up_in_the_end(
    hub: HubServer, waits: list[float], tmp_path: Path
) -> None:
    hub.faults.cdn = [Answer(502)] * 50
    with pytest.raises(EdgeMoEError, match="answers 502"):
        pull()
    assert waits == sorted(waits) and sum(waits) > 30
    hub.faults.cdn = []
    hub.faults.cuts, hub.faults.cut_after = 50, 0
    with pytest.raises(EdgeMoEError, match="no connection"):
        pull()
    assert hub.faults.cuts == 50 - download.TRANSFERS
    hub.faults.cuts = 0
    hub.faults.cdn = []
    assert pull().read_bytes() == Q4 and not partials(tmp_path)


def test_a_part_that_is_not_the_one_asked_for_is_not_kept(hub: HubServer, waits: list[float]) -> None:
    hub.faults.cuts, hub.faults.cut_after = 1, MIB
    hub.faults.cdn = [None, Answer(206, {"Content-Range": f"bytes 0-1/{len(Q4)}"}), Answer(206)]
    assert pull().read_bytes() == Q4
    assert [request.range for request in hub.asked("/cdn/")] == ["", *[f"bytes={MIB}-"] * 3]


def test_a_server_that_sends_the_whole_file_each_time(hub: HubServer, waits: list[float]) -> None:
    hub.faults.cuts, hub.faults.cut_after, hub.faults.ignore_ranges = 2, MIB, True
    assert pull().read_bytes() == Q4
    assert len(hub.asked("/cdn/")) == 3


def test_what_comes_after_the_end_is_not_kept(hub: HubServer) -> None:
    hub.faults.more = b"and more" * 1000
    assert pull().read_bytes() == Q4
    assert len(hub.asked("/cdn/")) == 1


def test_wrong_content_is_refused_and_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.wrong = 1
    assert pull().read_bytes() == Q4
    assert len(hub.asked("/cdn/")) == 2
    hub.faults.wrong = 2
    with pytest.raises(EdgeMoEError, match="wrong hash"):
        pull(f"{REPO}:IQ2_XS")
    assert not partials(tmp_path) and not list((tmp_path / "hub").rglob(sha256(FILES["Tiny-MoE-IQ2_XS.gguf"])))


def test_a_damaged_partial_file_is_no_trap(hub: HubServer) -> None:
    blobs = cache.folder(REPO) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(Q4)}.incomplete").write_bytes(b"x" * (4 * MIB))  # longer than the file, and wrong
    assert pull().read_bytes() == Q4


def test_another_file_than_the_one_planned_is_refused(hub: HubServer) -> None:
    wrong = Download(REPO, "main", (RemoteFile("Tiny-MoE-Q4_K_M.gguf", len(Q4), "0" * 64),))
    with pytest.raises(EdgeMoEError, match="not the expected file"):
        download.download(wrong)
    bare = Download(REPO, "main", (RemoteFile("Tiny-MoE-Q4_K_M.gguf"),))
    assert download.download(bare).read_bytes() == Q4


def test_a_missing_shard_is_named_before_the_first_byte(hub: HubServer) -> None:
    hub.repositories[REPO].missing.add("Q8_0/Tiny-MoE-Q8_0-00002-of-00002.gguf")
    with pytest.raises(ModelNotFound, match="00002-of-00002"):
        pull(f"{REPO}:Q8_0")
    assert not hub.asked("/cdn/")


def test_a_hash_that_is_a_path_is_refused(hub: HubServer) -> None:
    for etag in ("../../../evil", "", "main"):
        hub.faults.resolve = [Answer(200, {"X-Repo-Commit": "a" * 40, "X-Linked-Size": "3", "ETag": f'"{etag}"'})]
        with pytest.raises(EdgeMoEError, match="does not answer like the hub"):
            pull()


def test_a_commit_or_a_name_that_is_a_path_is_refused(hub: HubServer, tmp_path: Path) -> None:
    headers = {"X-Repo-Commit": "../../../evil", "X-Linked-Size": "3", "ETag": f'"{"a" * 64}"'}
    hub.faults.resolve = [Answer(200, headers)]
    with pytest.raises(EdgeMoEError, match="does not answer like the hub"):
        download.download(Download(REPO, "main", (RemoteFile("Tiny-MoE-Q4_K_M.gguf"),)))
    hub.repositories[REPO].files["../../../../evil-Q3_K_M.gguf"] = b"evil"
    with pytest.raises(ModelNotFound, match="no quantisation Q3_K_M"):
        pull(f"{REPO}:Q3_K_M")
    with pytest.raises(EdgeMoEError):
        download.download(Download(REPO, "main", (RemoteFile("../../../../evil-Q3_K_M.gguf"),)))
    assert not list(tmp_path.rglob("*evil*"))


def test_a_full_disk_is_reported_before_the_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 << 30, 0, download.RESERVE + 2 * MIB))
    with pytest.raises(DoesNotFit, match="disk") as caught:
        pull()
    assert "HF_HOME" in caught.value.hint and not hub.asked("/cdn/")
    assert pull(f"{REPO}:IQ2_XS").is_file()


def test_a_disk_that_fills_up_meanwhile(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download, "_stream", full)
        with pytest.raises(DoesNotFit, match="disk"):
            pull()
    assert pull().read_bytes() == Q4


# Possible answers of a hub.


def test_statuses_are_explained(hub: HubServer, waits: list[float]) -> None:
    hub.faults.api = [Answer(403)]
    with pytest.raises(EdgeMoEError, match="refuses") as caught:
        pull()
    assert "HF_TOKEN" in caught.value.hint and not waits
    with pytest.raises(ModelNotFound, match="no repository org/none") as caught:
        pull("org/none")
    assert "HF_TOKEN" in caught.value.hint
    with pytest.raises(ModelNotFound, match="revision"):
        plan_download(REPO, "Q4_K_M", revision="v9")
    hub.faults.api = [Answer(404)]
    with pytest.raises(ModelNotFound):
        pull()


@pytest.mark.parametrize("part", ["api", "resolve", "cdn"])
def test_a_hub_that_is_busy_is_asked_again_when_it_says(hub: HubServer, waits: list[float], part: str) -> None:
    setattr(hub.faults, part, [Answer(429, {"Retry-After": "7"}), Answer(503), Answer(504)])
    assert pull().read_bytes() == Q4
    assert waits[0] == 7 and all(0 < wait < 7 for wait in waits[1:])


def test_a_wait_is_shown_or_short(hub: HubServer, waits: list[float]) -> None:
    busy = Answer(429, {"RateLimit": '"resolvers";r=0;t=55'})
    hub.faults.api = [busy]
    with pytest.raises(EdgeMoEError, match="for 55 s"):
        pull()
    seen: list[Progress] = []
    hub.faults.cdn = [busy]
    assert pull(progress=seen.append).read_bytes() == Q4
    assert waits == [55] and "waiting 55 s" in {progress.note for progress in seen}


def test_a_connection_that_falls_silent_is_taken_up_again(
    hub: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults.pause_after = MIB
    assert pull().read_bytes() == Q4
    assert len(hub.asked("/cdn/")) == 4


def test_a_hub_that_stays_busy(hub: HubServer, waits: list[float]) -> None:
    hub.faults.api = [Answer(429)] * 20
    with pytest.raises(EdgeMoEError, match="no more requests"):
        pull()
    hub.faults.api = [Answer(500)] * 20
    with pytest.raises(EdgeMoEError, match="answers 500"):
        pull()
    hub.faults.api = [Answer(429, {"Retry-After": "3600"})]
    with pytest.raises(EdgeMoEError, match="3600 s"):
        pull()
    assert max(waits) < 60


def test_a_server_that_is_no_hub(hub: HubServer) -> None:
    hub.faults.api = [Answer(200)]
    with pytest.raises(EdgeMoEError, match="does not answer like the hub"):
        pull()


def test_no_server_at_all(hub: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EdgeMoEError, match="no connection") as caught:
        pull()
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_gated_model(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[REPO].gated = True
    for token in (None, "hf_" + "z" * 34):  # without a token, and with one that has accepted no licence
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(EdgeMoEError, match="gated") as caught:
            pull()
        assert f"{hub.url}/{REPO}" in caught.value.hint and "HF_TOKEN" in caught.value.hint
        assert token is None or token not in str(caught.value) + caught.value.hint
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert pull().read_bytes() == Q4
    assert hub.asked("/cdn/") and all(request.token == "" for request in hub.asked("/cdn/"))


def test_offline_finds_files_on_the_disk(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull()
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull() == path and pull(REPO) == path
    with pytest.raises(ModelNotFound, match="no quantisation Q8_0"):
        pull(f"{REPO}:Q8_0")
    with pytest.raises(ModelNotFound, match="offline") as caught:
        pull("org/other")
    assert "HF_HUB_OFFLINE" in caught.value.hint
    with pytest.raises(ModelNotFound, match="offline"):
        download.download(Download(REPO, "main", (RemoteFile("Tiny-MoE-IQ2_XS.gguf"),)))
    assert len(hub.requests) == asked


# Other processes.


def run(hub: HubServer, home: Path, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
    """Run the command line in its own process, with the environment of a user."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "edgemoe.cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment | keywords.pop("env", {}),
        # A background shell starts programs that ignore Ctrl+C, and their children inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_two_processes_fetch_the_same_file_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LOCK_S", 0.05)
    hub.faults.pause_after = MIB
    other = run(hub, tmp_path, "pull", f"{REPO}:Q4_K_M")
    assert hub.faults.paused.wait(20)
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if "another process" in progress.note and progress.done_bytes:  # the other process's progress is shown as ours
            hub.faults.resume.set()

    assert pull(progress=watch).read_bytes() == Q4
    out, err = other.communicate(timeout=30)
    assert other.returncode == 0, err
    assert Path(out.strip()).read_bytes() == Q4 and any("another process" in progress.note for progress in seen)
    assert len(hub.asked("/cdn/")) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on(hub: HubServer, tmp_path: Path, how: signal.Signals) -> None:
    hub.faults.pause_after = 2 * MIB
    process = run(hub, tmp_path, "pull", f"{REPO}:Q4_K_M")
    assert hub.faults.paused.wait(20)
    deadline = time.monotonic() + 20
    while sum(path.stat().st_size for path in partials(tmp_path)) < MIB and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert out == ""
    if how == signal.SIGINT:
        assert process.returncode == 130 and f"edgemoe pull {REPO}:Q4_K_M" in err
    hub.faults.pause_after = 0
    hub.faults.resume.set()
    assert main(["pull", f"{REPO}:Q4_K_M"]) == 0
    assert (tmp_path / "hub").is_dir() and not partials(tmp_path)
    (begun, again) = hub.asked("/cdn/")
    assert begun.range == "" and int(again.range.removeprefix("bytes=").rstrip("-")) >= MIB


# The command line, in this process.


def test_pull_prints_the_path_and_says_why(hub: HubServer, capsys: Captured) -> None:
    assert main(["pull", REPO]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).read_bytes() == Q4 and err.startswith("Q4_K_M") and len(err.splitlines()) == 1


def test_pull_for_programs(hub: HubServer, capsys: Captured) -> None:
    assert main(["pull", f"{REPO}:Q4_K_M", "--json"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert err == "" and Path(facts.pop("path")).read_bytes() == Q4
    assert facts == {
        "repo": REPO,
        "revision": hub.repositories[REPO].commit,
        "files": [{"name": "Tiny-MoE-Q4_K_M.gguf", "bytes": len(Q4), "sha256": sha256(Q4)}],
        "bytes": len(Q4),
        "missing_bytes": len(Q4),
    }


def test_the_bar_tells_bytes_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, str]] = []
    monkeypatch.setattr(command, "show_progress", lambda share, step: drawn.append((share, step)))
    command._show(Progress(2 * MIB, 8 * MIB))
    command._show(Progress(2 * MIB, 8 * MIB, MIB / 100))
    command._show(Progress(8 * MIB, 8 * MIB, MIB, "checking"))
    assert drawn == [
        (0.25, "2.0 MiB of 8.0 MiB"),
        (0.25, "2.0 MiB of 8.0 MiB, 0.0 MiB/s, 10:00 left"),
        (0.999, "8.0 MiB of 8.0 MiB, checking"),
    ]


def test_pull_dry_run_fetches_nothing(hub: HubServer, capsys: Captured, tmp_path: Path) -> None:
    assert main(["pull", f"{REPO}:Q8_0", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "3.0 MiB of 3.0 MiB would be downloaded" in err
    assert main(["pull", f"{REPO}:Q8_0", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] is None and facts["missing_bytes"] == 3 * MIB
    assert not hub.asked("/cdn/") and not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["pull", "nothing"], 3),
        (["pull", "org/none"], 3),
        (["pull", f"{REPO}:Q1"], 3),
        (["pull", REPO, "--revision", "v9"], 3),
        (["rm", REPO, "--yes"], 3),
        (["pull"], 2),
    ],
)
def test_exit_codes(hub: HubServer, capsys: Captured, arguments: list[str], code: int) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "hint: " in err


def test_a_disk_too_small_is_exit_code_four(hub: HubServer, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 << 30, 0, 1 << 20))
    assert main(["pull", f"{REPO}:Q4_K_M"]) == 4
    assert "disk" in capsys.readouterr().err


# Removal.


def test_rm_frees_one_quantisation_and_leaves_the_other(hub: HubServer, capsys: Captured, tmp_path: Path) -> None:
    kept = pull()
    gone = pull(f"{REPO}:Q8_0")
    capsys.readouterr()
    assert main(["rm", f"{REPO}:q8_0", "--yes", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["freed_bytes"] == 3 * MIB and len(facts["files"]) == 2
    assert kept.read_bytes() == Q4 and not gone.exists() and not gone.is_symlink()
    assert len(list((tmp_path / "hub").rglob("blobs/*"))) == 1 and not scan_cache_dir(constants.HF_HUB_CACHE).warnings
    assert main(["rm", f"{REPO}:Q4_K_M", "--yes"]) == 0
    assert not cache.folder(REPO).exists()


def test_content_that_another_file_shares_stays(hub: HubServer) -> None:
    hub.repositories[REPO].files["copy-Q5_K_M.gguf"] = Q4
    first, second = pull(), pull(f"{REPO}:Q5_K_M")
    what = cache.removal(REPO, "Q5_K_M")
    assert what.freed_bytes == 0
    cache.remove(what)
    assert first.read_bytes() == Q4 and not second.exists()


def test_rm_takes_all_revisions_and_unfinished_files(hub: HubServer) -> None:
    pull()
    hub.repositories[REPO].files["README.md"] = b"a second commit"
    pull()
    (cache.folder(REPO) / "blobs" / ("a" * 64 + ".incomplete")).write_bytes(b"x" * 1000)
    what = cache.removal(REPO)
    assert what.freed_bytes == len(Q4) + 1000
    cache.remove(what)
    assert not cache.folder(REPO).exists()


def test_rm_removes_a_download_that_never_was_whole(hub: HubServer) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done_bytes >= MIB // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(progress=interrupt)
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings
    what = cache.removal(REPO)
    assert what.files == () and what.freed_bytes >= MIB // 2
    cache.remove(what)
    assert not cache.folder(REPO).exists()


def test_rm_refuses_open_files(hub: HubServer, capsys: Captured) -> None:
    path = pull()
    with path.open("rb"):
        assert main(["rm", f"{REPO}:Q4_K_M", "--yes"]) == 1
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err and path.is_file()
    assert main(["rm", f"{REPO}:Q4_K_M", "--yes"]) == 0 and not path.exists()


def test_rm_refuses_mapped_files(hub: HubServer, capsys: Captured) -> None:
    path = pull()
    libc = ctypes.CDLL(None, use_errno=True)  # Python's own mmap keeps the file open, too; llama.cpp does not
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with path.open("rb") as file:
        address = libc.mmap(None, len(Q4), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    assert main(["rm", f"{REPO}:Q4_K_M", "--yes"]) == 1
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err and path.is_file()
    libc.munmap(address, len(Q4))
    assert main(["rm", f"{REPO}:Q4_K_M", "--yes"]) == 0 and not path.exists()


def test_rm_wants_a_yes(hub: HubServer, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull()
    assert main(["rm", REPO]) == 2 and "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    assert main(["rm", REPO]) == 1
    assert "3.0 MiB" in capsys.readouterr().err and path.is_file()


# Start-up.


def test_importing_the_commands_loads_no_huggingface_hub() -> None:
    names = "('huggingface_hub', 'numpy', 'psutil')"
    code = f"import sys, edgemoe.cli.main, edgemoe.models.hub; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_thread_may_download(hub: HubServer) -> None:
    paths: list[Path] = []
    thread = threading.Thread(target=lambda: paths.append(pull()))
    thread.start()
    thread.join(20)
    assert paths and paths[0].read_bytes() == Q4


# All commands together.


def test_a_model_of_the_users_catalogue_from_list_to_rm(hub: HubServer, tmp_path: Path, capsys: Captured) -> None:
    weights = build("qwen3moe", tmp_path).read_bytes()
    hub.repositories["me/Mine-GGUF"] = Repository({"Mine-Q4_K_M.gguf": weights})
    mine = home("config") / "models.toml"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(
        f"""
        [[model]]
        id = "mine"
        name = "My model"
        family = "Qwen3"
        licence = "MIT"
        description = "Trained last night."
        total_parameters = 1_000_000
        active_parameters = 500_000
        layers = 2
        expert_layers = 2
        width = 64
        expert_width = 32
        vocabulary = 264
        experts = 8
        experts_used = 2
        context = 128
        source = "myself"
        checked = "2026-11-23"

        [[model.variants]]
        quantisation = "Q4_K_M"
        repository = "me/Mine-GGUF"
        source = "myself"
        checked = "2026-11-23"
        files = [{{ name = "Mine-Q4_K_M.gguf", bytes = {len(weights)}, sha256 = "{sha256(weights)}" }}]
        """
    )

    def printed(*arguments: str, code: int = 0) -> Any:
        assert main([*arguments, "--json"]) == code
        out = capsys.readouterr()
        return json.loads(out.out) if code == 0 else out.err

    assert "edgemoe pull mine" in printed("show", "mine", code=3)
    assert printed("pull", "mine")["bytes"] == len(weights)
    assert printed("show", "mine")["architecture"] == "qwen3moe"
    assert any(row["id"] == "mine" for row in printed("list", "mine")["models"])
    assert main(["rm", "mine", "--yes"]) == 0
    assert "edgemoe pull mine" in printed("show", "mine", code=3)
    assert "edgemoe demo builds it" in printed("pull", "demo", code=3)
