"""Download files from the hub into huggingface_hub's cache, over any number of interruptions.

huggingface_hub downloads to a file with a random name and removes the file if the transfer breaks off (2.4.0,
file_download.py: ``_download_to_tmp_and_move``). Forty gigabytes should not begin anew, so this module transfers the
bytes itself. Under huggingface_hub's own lock it writes ``blobs/<hash>.incomplete``, as huggingface_hub 1.0 did. A file
gets its final name when its hash is right. huggingface_hub does the rest: listing, metadata, links.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import sleep
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url

# The base of all errors of the HTTP library, which is httpx or httpx2 depending on the version.
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from ...errors import EdgeMoEError, ModelNotFound
from . import cache
from .failures import DiskTooSmall, explained, is_passing, wait_asked_for
from .meter import Meter, Progress
from .records import Download, RemoteFile

QUESTIONS = 4  # attempts before a request fails: 3.5 s in all
TRANSFERS = 8  # attempts in a row without a new byte before a download fails: one minute in all
PAUSE_S = 0.5  # before the second attempt; then twice as long each time
LONGEST_PAUSE_S = 30.0
LONGEST_WAIT_S = 300.0  # longest wait that a server may ask for; above it the download fails
SILENT_WAIT_S = 10.0  # longest such wait before any progress is shown
RESERVE = 1 << 30  # bytes of the disk that stay free for other programs
NO_HUB, NO_HUB_HINT = "{} does not answer like the hub", "check the model's name, HF_ENDPOINT and the proxy"
DISK_HINT = "free some space (edgemoe rm), or set HF_HOME to a folder on a larger disk"
BLOCK = 1 << 22  # bytes hashed at a time
LOCK_S = 1.0  # seconds between two looks of a waiting process at the other's progress

_COMMIT = re.compile(r"^[0-9a-f]{40}\Z")
_DIGEST = re.compile(r"^(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")  # git's sha1, or sha256 for a large file

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """Describe a file on the hub and its place on the disk.

    Attributes:
        name: path in the repository.
        what: name of repository and file in messages.
        url: address of the file.
        digest: sha256 of a large file, or git's sha1 of a small one.
        bytes: size of the file.
        commit: commit that the file belongs to.
        blob: path of the complete content in the cache.
    """

    name: str
    what: str
    url: str
    digest: str
    bytes: int
    commit: str
    blob: Path

    @property
    def partial(self) -> Path:
        """Give the path of the content while it is incomplete."""
        return self.blob.with_name(f"{self.digest}.incomplete")

    def size_here(self) -> int:
        """Count the bytes on the disk so far."""
        return self.bytes if self.blob.exists() else _size(self.partial)


def listing(repo: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """List the commit and the files of ``repo`` on the hub.

    Raises:
        ModelNotFound: the hub has no such repository or revision.
        EdgeMoEError: the hub refuses or does not answer.
    """
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = insist(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout), repo)
    files = [
        RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()
    ]
    return _commit(info.sha), files


def download(plan: Download, progress: Callable[[Progress], None] | None = None) -> Path:
    """Download the missing files of ``plan`` and return the path of its first file.

    After an error or Ctrl+C all downloaded bytes are kept, and the next call continues from them. If two processes
    download the same file, one of them waits for the other.

    Args:
        plan: the files to download. Its sizes and hashes, if known, must match the hub's.
        progress: called about ten times a second, in this thread.

    Raises:
        ModelNotFound: the hub lacks a file.
        DoesNotFit: the disk is too small.
        EdgeMoEError: the hub refuses, does not answer, or sends wrong content twice.
    """
    if _COMMIT.match(plan.revision) and all(cache.path_of(plan, file).is_file() for file in plan.files):
        return _named(plan, plan.branch)
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(f"offline, and {plan.repo} is not whole on this disk", "unset HF_HUB_OFFLINE to get it")
    # All files are looked up before the first byte, so that a missing shard is not found after an hour.
    remotes = [remote_of(plan, file) for file in plan.files]
    at_commit = replace(plan, revision=remotes[0].commit)
    _check_disk(remotes, RESERVE)
    meter = Meter({remote.name: remote.size_here() for remote in remotes}, sum(r.bytes for r in remotes), progress)
    try:
        for remote in remotes:
            _bring(at_commit, remote, meter)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # another program has filled the disk meanwhile
            raise DiskTooSmall(*_needed_and_free(remotes), DISK_HINT) from error
        raise
    return _named(at_commit, plan.branch or plan.revision)


def _named(plan: Download, branch: str) -> Path:
    """Give the path of the first file of a complete download, and record its branch for offline lookups."""
    if branch and not _COMMIT.match(branch):
        cache.name_commit(plan.repo, branch, plan.revision)
    return cache.path_of(plan, plan.files[0])


def missing_bytes(plan: Download) -> int:
    """Count the bytes of ``plan`` that are not on the disk, as far as sizes and hashes are known."""
    missing = 0
    for file in plan.files:
        if file.bytes and not cache.path_of(plan, file).is_file():
            blob = cache.folder(plan.repo) / "blobs" / (file.sha256 or "unknown")
            missing += 0 if blob.is_file() else file.bytes - _size(blob.with_name(f"{blob.name}.incomplete"))
    return missing


def remote_of(plan: Download, file: RemoteFile) -> Remote:
    """Look up a file on the hub and check its size and hash.

    Raises:
        ModelNotFound: the hub has no such file.
        EdgeMoEError: the hub refuses, does not answer, or has another file by now.
    """
    what, url = f"{plan.repo}: {file.name}", hf_hub_url(plan.repo, file.name, revision=plan.revision)
    found = insist(lambda: get_hf_file_metadata(url), what)
    digest = str(found.etag)
    if found.size is None or not _DIGEST.match(digest):
        raise EdgeMoEError(NO_HUB.format(constants.ENDPOINT), NO_HUB_HINT)
    if file.sha256 not in (None, digest) or file.bytes not in (None, found.size):
        raise EdgeMoEError(f"{what} is not the expected file", "the hub has another version by now: give --revision")
    blob = cache.folder(plan.repo) / "blobs" / digest
    return Remote(file.name, what, url, digest, found.size, _commit(found.commit_hash), blob)


def _commit(text: str | None) -> str:
    """Check a commit from a server. It becomes the name of a folder, so it may not be a path."""
    if text is None or not _COMMIT.match(text):
        raise EdgeMoEError(NO_HUB.format(constants.ENDPOINT), NO_HUB_HINT)
    return text


def _check_disk(remotes: Iterable[Remote], reserve: int) -> None:
    needed, free = _needed_and_free(remotes)
    if needed > max(free - reserve, 0):
        raise DiskTooSmall(needed, free, DISK_HINT)


def _needed_and_free(remotes: Iterable[Remote]) -> tuple[int, int]:
    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    return sum(remote.bytes - remote.size_here() for remote in remotes), shutil.disk_usage(place).free


def _bring(plan: Download, remote: Remote, meter: Meter) -> None:
    """Bring one file to its place in the cache."""
    remote.blob.parent.mkdir(parents=True, exist_ok=True)
    # Without this folder huggingface_hub considers a repository with only incomplete files damaged.
    (cache.folder(plan.repo) / "snapshots" / remote.commit).mkdir(parents=True, exist_ok=True)
    with _lock(plan, remote, meter):
        if not remote.blob.exists():
            _fetch(remote, meter)
    meter.at(remote.name, remote.bytes)
    # The blob is there: this only links it into the snapshot.
    link = partial(hf_hub_download, plan.repo, remote.name, revision=remote.commit)
    insist(link, remote.what, lambda note: meter.at(remote.name, remote.bytes, note))


@contextmanager
def _lock(plan: Download, remote: Remote, meter: Meter) -> Iterator[None]:
    """Hold huggingface_hub's lock for this file. While another process holds it, show that process's progress."""
    path = Path(constants.HF_HUB_CACHE) / ".locks" / cache.folder(plan.repo).name / f"{remote.digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(WeakFileLock(path, timeout=LOCK_S))
                break
            except TimeoutError:
                meter.at(remote.name, remote.size_here(), "another process is at it")
        yield


def _fetch(remote: Remote, meter: Meter) -> None:
    """Download all bytes of a file, check them, and give the file its final name."""
    for _ in range(2):  # the first failure may come from an old partial file with wrong content
        _transfer(remote, meter)
        if _is_right(remote, meter):
            os.replace(remote.partial, remote.blob)
            return
        remote.partial.unlink()
        meter.at(remote.name, 0, "wrong content: once more")
    raise EdgeMoEError(
        f"{remote.what} arrived twice with a wrong hash: it was not kept", "the hub or a proxy damages it: try later"
    )


def _transfer(remote: Remote, meter: Meter) -> None:
    fruitless = 0
    remote.partial.touch()
    while (before := _size(remote.partial)) < remote.bytes:
        try:
            _stream(remote, before, meter)
            error: Exception = ConnectionError("ended early")
        except HTTPError as broken:
            error = broken
        if _size(remote.partial) > before:
            fruitless = 0
        else:
            fruitless += 1
            if fruitless >= TRANSFERS or not is_passing(error):
                raise explained(error, remote.what) from error
        if _size(remote.partial) < remote.bytes:
            _pause(fruitless, error, lambda note: meter.at(remote.name, _size(remote.partial), note))


def _stream(remote: Remote, have: int, meter: Meter) -> None:
    """Append the bytes that one connection brings."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    # Each attempt begins at the hub's own address. The address that it redirects to expires after some minutes.
    with get_session().stream(
        "GET", remote.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            have = 0  # the server ignored the range and sends the whole file
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return
        with remote.partial.open("ab" if have else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk[: remote.bytes - have])
                have = min(have + len(chunk), remote.bytes)
                meter.at(remote.name, have)
                if have == remote.bytes:  # later bytes do not belong to the file
                    return


def _is_right(remote: Remote, meter: Meter) -> bool:
    git = len(remote.digest) == 40
    digest = hashlib.sha1(b"blob %d\0" % remote.bytes) if git else hashlib.sha256()
    meter.at(remote.name, remote.bytes, "checking")
    with remote.partial.open("rb+") as file:
        os.fsync(file.fileno())  # the bytes that are checked below then survive a power cut
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == remote.digest


def insist(question: Callable[[], T], what: str, say: Callable[[str], None] | None = None) -> T:
    """Answer a request, and repeat it after an error that may pass.

    Raises:
        EdgeMoEError: the hub refuses or does not answer, or the server is no hub.
    """
    for attempt in range(1, QUESTIONS + 1):
        try:
            return question()
        except (HTTPError, LocalEntryNotFoundError) as error:
            cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
            if attempt == QUESTIONS or not is_passing(cause):
                raise explained(cause, what) from error
            _pause(attempt, cause, say)
        except (ValueError, TypeError, KeyError) as error:  # the server is no hub, or the name is impossible on a hub
            raise EdgeMoEError(NO_HUB.format(constants.ENDPOINT), NO_HUB_HINT) from error
    raise AssertionError


def _pause(attempt: int, error: BaseException, say: Callable[[str], None] | None) -> None:
    """Wait as long as the server asks, or longer with each attempt. Without ``say`` only short waits are accepted."""
    asked = wait_asked_for(error)
    if asked is not None and asked > (LONGEST_WAIT_S if say else SILENT_WAIT_S):
        raise EdgeMoEError(f"the hub takes no requests for {asked:.0f} s", "try again then: all bytes so far are kept")
    pause = min(PAUSE_S * 2 ** max(attempt - 1, 0), LONGEST_PAUSE_S) if asked is None else asked
    if say and pause >= 1:
        say(f"waiting {pause:.0f} s")
    sleep(pause)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
