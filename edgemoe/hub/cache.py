"""What of the hub lies on this disk, in huggingface_hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants

from ..errors import ModelNotFound
from .plan import Download, RemoteFile

SHA256 = re.compile(r"^[0-9a-f]{64}$")


def folder(repo: str) -> Path:
    """Folder of a repository in the cache; it need not exist."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def listing(repo: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """Commit and files of ``repo`` on the disk.

    Raises:
        ModelNotFound: none of it is there.
    """
    snapshots = folder(repo) / "snapshots"
    ref = folder(repo) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    files = files_of(snapshots / commit)
    if not files:
        raise ModelNotFound(f"offline, and {repo} is not on this disk", "unset HF_HUB_OFFLINE to download it")
    return commit, files


def files_of(snapshot: Path) -> list[RemoteFile]:
    """Whole files of one snapshot."""
    paths = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    return [RemoteFile(str(path.relative_to(snapshot)), path.stat().st_size, _digest(path)) for path in paths]


def path_of(download: Download, file: RemoteFile) -> Path:
    """Where ``file`` is on the disk, or would be; the revision must be a commit."""
    return folder(download.repo) / "snapshots" / download.revision / file.name


def name_commit(repo: str, branch: str, commit: str) -> None:
    """Remember that ``branch`` is ``commit``, as huggingface_hub does, so that it is found offline."""
    refs = folder(repo) / "refs"
    if ".." not in Path(branch).parts and not Path(branch).is_absolute():
        (refs / branch).parent.mkdir(parents=True, exist_ok=True)
        (refs / branch).write_text(commit)


def _digest(path: Path) -> str | None:
    name = path.resolve().name
    return name if SHA256.match(name) else None
