"""Models of the hub on this disk, in huggingface_hub's cache, and their removal."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
from huggingface_hub import CachedRepoInfo, constants, scan_cache_dir

from ...errors import EdgeMoEError, ModelNotFound
from .records import MAIN, Download, RemoteFile, names_of, whole_models

SHA256 = re.compile(r"^[0-9a-f]{64}$")


def folder(repo: str) -> Path:
    """Give the folder of a repository in the cache, which need not exist."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def path_of(download: Download, file: RemoteFile) -> Path:
    """Give the path of ``file`` in the cache, which need not exist. The download's revision must be a commit."""
    return folder(download.repo) / "snapshots" / download.revision / file.name


def listing(repo: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """List the commit and the files of ``repo`` on the disk.

    Raises:
        ModelNotFound: no file of the repository is on the disk.
    """
    ref = folder(repo) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = folder(repo) / "snapshots" / commit
    paths = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    if not paths:
        raise ModelNotFound(f"offline, and {repo} is not on this disk", "unset HF_HUB_OFFLINE to download it")
    return commit, [RemoteFile(str(path.relative_to(snapshot)), path.stat().st_size, _digest(path)) for path in paths]


@dataclass(frozen=True)
class Cached:
    """Describe a model on this disk.

    Attributes:
        name: ``org/repo:QUANT``.
        path: path of the first file.
        bytes: bytes of all files.
    """

    name: str
    path: Path
    bytes: int


def models() -> list[Cached]:
    """List the complete models of the hub on this disk, by name. Only the branch ``main`` is searched."""
    found = []
    for place in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repo = "/".join(place.name.removeprefix("models--").split("--", 1))
        try:
            commit, files = listing(repo, MAIN)
        except (ModelNotFound, OSError):
            continue
        for label, shards in whole_models(files):
            first = place / "snapshots" / commit / shards[0].name
            found.append(Cached(f"{repo}:{label}", first, sum(file.bytes or 0 for file in shards)))
    return found


def name_commit(repo: str, branch: str, commit: str) -> None:
    """Record that ``branch`` is ``commit``, in huggingface_hub's form, so that an offline lookup finds the model.

    A cache that this user may not write stays as it is: the model is there all the same.
    """
    ref = folder(repo) / "refs" / branch
    if ".." in Path(branch).parts or Path(branch).is_absolute():
        return
    with contextlib.suppress(PermissionError):
        if not ref.is_file() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)


@dataclass(frozen=True)
class Removal:
    """Plan the removal of a model. Nothing is removed until ``remove`` is called.

    Attributes:
        repo: ``org/repo``.
        files: names of the files in the repository.
        freed_bytes: bytes of the disk that become free. Content that another file shares stays and does not count.
        paths: paths of the removed content, complete or partial.
        execute: function that removes the files.
    """

    repo: str
    files: tuple[str, ...]
    freed_bytes: int
    paths: tuple[Path, ...]
    execute: Callable[[], None]


def removal(repo: str, quantisation: str | None = None, names: Collection[str] | None = None) -> Removal:
    """Plan the removal of a repository, or of one quantisation or some files of it, in all its revisions.

    Raises:
        ModelNotFound: the model is not on the disk.
    """
    cached = _scan(repo)
    everywhere = {
        (str(file.file_path.relative_to(revision.snapshot_path)), file)
        for revision in cached.revisions
        for file in revision.files
    }
    if quantisation is not None:
        names = names_of({RemoteFile(name) for name, _ in everywhere}, quantisation)
    chosen = {(name, file) for name, file in everywhere if names is None or name in names}
    if not chosen and names is not None:
        there = ", ".join(sorted({name for name, _ in everywhere})) or "an unfinished download only"
        raise ModelNotFound(
            f"{repo}: these files are not on this disk", f"there is {there}; edgemoe rm {repo} removes all"
        )
    kept = {file.blob_path for _, file in everywhere - chosen}
    partials = [] if everywhere - chosen else sorted(cached.repo_path.glob("blobs/*.incomplete"))
    blobs = sorted({file.blob_path for _, file in chosen} - kept)
    paths = (*blobs, *partials)
    if everywhere - chosen:
        execute = _unlinking([file.file_path for _, file in chosen], blobs)
    else:
        commits = [revision.commit_hash for revision in cached.revisions]
        execute = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*commits).execute
    freed = sum(path.lstat().st_size for path in paths)
    return Removal(repo, tuple(sorted({name for name, _ in chosen})), freed, paths, execute)


def remove(what: Removal) -> None:
    """Remove the files of a planned removal.

    Raises:
        EdgeMoEError: a running process has one of the files open, or this user may not remove them.
    """
    if (holder := _holder(what.paths)) is not None:
        pid, name = holder
        raise EdgeMoEError(f"{what.repo} is in use by process {pid} ({name})", "close it first, then remove the model")
    if not all(os.access(path.parent, os.W_OK) for path in what.paths):
        hint = f"this user may not write in {constants.HF_HUB_CACHE}"
        raise EdgeMoEError(f"{what.repo} cannot be removed", hint)
    what.execute()


def _scan(repo: str) -> CachedRepoInfo:
    if folder(repo).is_dir():
        for cached in scan_cache_dir(constants.HF_HUB_CACHE).repos:
            if cached.repo_type == "model" and cached.repo_id == repo:
                return cached
    raise ModelNotFound(f"{repo} is not on this disk", f"the cache is {constants.HF_HUB_CACHE}")


def _unlinking(links: Iterable[Path], blobs: Iterable[Path]) -> Callable[[], None]:
    def unlink() -> None:
        for path in (*links, *blobs):  # links first, so that no link ever points to a removed file
            path.unlink(missing_ok=True)

    return unlink


def _holder(paths: Iterable[Path]) -> tuple[int, str] | None:
    """Find a process that has one of ``paths`` open or mapped: its id and name. Other users' processes are skipped."""
    wanted = {os.path.realpath(path) for path in paths}
    for process in psutil.process_iter():
        try:
            held = {file.path for file in process.open_files()} | _mapped(process.pid)
            if wanted & held:
                return process.pid, process.name()
        except (psutil.Error, OSError):
            continue
    return None


def _mapped(pid: int) -> set[str]:
    """List the files that a process has mapped. llama.cpp closes a model file but keeps it mapped."""
    maps = Path(f"/proc/{pid}/maps")  # psutil is slow here: it adds up every page of every mapping
    if not maps.exists():
        return set()
    fields = (line.split(maxsplit=5) for line in maps.read_text(errors="replace").splitlines())
    return {field[5] for field in fields if len(field) == 6}


def _digest(path: Path) -> str | None:
    name = path.resolve().name
    return name if SHA256.match(name) else None
