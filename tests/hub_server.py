"""Run a Hugging Face hub in one process: enough of its protocol for the real client, and the faults of real networks.

There are two hosts, as on the hub. ``127.0.0.1`` answers the API and ``/resolve``, which redirects to the "CDN"
``localhost``.
Both are one server. For a client they are two origins, so it must not send its token to the second.

Files have no Xet hash, as on a mirror, so the client uses plain HTTP. Xet is a second service, which only the hub
runs.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

STEP = 1 << 16


class Request(NamedTuple):
    """Describe a client's request."""

    method: str
    path: str
    range: str
    token: str


class Answer(NamedTuple):
    """Describe an answer in place of the right one."""

    status: int
    headers: dict[str, str] = {}


@dataclass
class Faults:
    """Count the faults to come. Each fault lowers its counter.

    Attributes:
        cuts: answers of the CDN that break off.
        cut_after: bytes of the body before the cut.
        wrong: answers of the CDN with one byte changed.
        more: bytes that the CDN sends beyond the end of a file.
        api: next answers of the API instead of the right ones; None is a right answer.
        resolve: next answers of ``/resolve`` instead of the right ones.
        cdn: next answers of the CDN instead of the right ones.
        ignore_ranges: True: the CDN only sends whole files.
        pause_after: bytes after which the CDN waits for ``resume``; 0 for never.
    """

    cuts: int = 0
    cut_after: int = 0
    wrong: int = 0
    more: bytes = b""
    api: list[Answer | None] = field(default_factory=list)
    resolve: list[Answer | None] = field(default_factory=list)
    cdn: list[Answer | None] = field(default_factory=list)
    ignore_ranges: bool = False
    pause_after: int = 0
    paused: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


@dataclass
class Repository:
    """Hold files by name at one commit. ``gated`` needs a token; ``unlisted`` files are not in the listing."""

    files: dict[str, bytes | Sparse]
    gated: bool = False
    missing: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        return hashlib.sha1("".join(f"{name}{sha256(data)}" for name, data in self.files.items()).encode()).hexdigest()


class Sparse(mmap.mmap):
    """Describe a file that is too large for a hash. Its digest is artificial."""

    digest = "5" * 64


@lru_cache(64)
def sha256(data: bytes | Sparse) -> str:
    return data.digest if isinstance(data, Sparse) else hashlib.sha256(data).hexdigest()


class HubServer:
    """Run the server inside a ``with`` block.

    Attributes:
        repositories: repositories by name ``org/repo``.
        token: the only token with every licence accepted.
        faults: faults to inject.
        requests: all requests in order.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.token = "hf_" + "t" * 34
        self.faults = Faults()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.resume.set()
        self._server.shutdown()
        self._server.server_close()

    def serve_client(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Point huggingface_hub, which reads its environment once, to this server and to a cache in ``folder``."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """List the requests with ``part`` in their path."""
        with self.lock:
            return [r for r in self.requests if part in r.path and r.method == method]


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        with hub.lock:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.requests.append(Request(self.command, path, self.headers.get("Range") or "", token))
        parts = path.strip("/").split("/")
        try:
            if parts[:2] == ["api", "models"] and len(parts) >= 4:
                self._instead(hub.faults.api) or self._api("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            elif len(parts) > 4 and parts[2] == "resolve":
                repo, name = "/".join(parts[:2]), "/".join(parts[4:])
                self._instead(hub.faults.resolve) or self._resolve(repo, parts[3], name)
            elif parts[0] == "cdn" and len(parts) == 2:
                self._instead(hub.faults.cdn) or self._cdn(parts[1])
            else:
                self._error(404, "")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _instead(self, answers: list[Answer | None]) -> bool:
        with self.server_hub.lock:
            answer = answers.pop(0) if answers else None
        if answer is not None:
            self._send(answer.status, answer.headers, b"{}")
        return answer is not None

    def _api(self, name: str, revision: str) -> None:
        if (repo := self._repository(name, revision)) is None:
            return
        siblings = [
            {
                "rfilename": file,
                "size": len(data),
                "blobId": sha256(data)[:40],
                "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 134},
            }
            for file, data in repo.files.items()
        ]
        facts = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "private": False, "tags": []}
        facts["gated"] = "manual" if repo.gated else False
        self._send(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if (repo := self._repository(name, revision)) is None:
            return
        token = self.headers.get("Authorization") or ""
        if repo.gated and token != f"Bearer {self.server_hub.token}":
            self._error(403 if token else 401, "GatedRepo")
        elif file in repo.missing or file not in repo.files:
            self._error(404, "EntryNotFound")
        else:
            data = repo.files[file]
            headers = {
                "Location": f"http://localhost:{self.server_hub.port}/cdn/{sha256(data)}?signature=secret",
                "X-Repo-Commit": repo.commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{sha256(data)}"',
                "ETag": f'"{sha256(data)[:40]}"',
            }
            self._send(302, headers, b"")

    def _repository(self, name: str, revision: str) -> Repository | None:
        repo = self.server_hub.repositories.get(name)
        if repo is None:  # the hub does not reveal private names to a client without a token
            self._error(401, "RepoNotFound")
        elif revision not in ("main", repo.commit):
            self._error(404, "RevisionNotFound")
            return None
        return repo

    def _cdn(self, digest: str) -> None:
        files = (data for repo in self.server_hub.repositories.values() for data in repo.files.values())
        data = next((data for data in files if sha256(data) == digest), None)
        if data is None:
            return self._error(404, "")
        faults = self.server_hub.faults
        with self.server_hub.lock:
            cut = faults.cut_after if faults.cuts else None
            wrong = faults.wrong > 0
            faults.cuts -= cut is not None
            faults.wrong -= wrong
        if wrong:
            data = bytes([data[0] ^ 1]) + data[1:]
        asked = "" if faults.ignore_ranges else self.headers.get("Range") or ""
        start, _, end = asked.removeprefix("bytes=").partition("-")
        first, last = int(start or 0), min(int(end or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if asked else {}
        self._send(206 if asked else 200, headers, data[first : last + 1] + faults.more, cut)

    def _error(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code} if code else {}, b"{}")

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        faults = self.server_hub.faults
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        for at in range(0, len(sent), STEP):
            if faults.pause_after and at >= faults.pause_after:
                faults.paused.set()
                faults.resume.wait(30)
            self.wfile.write(sent[at : at + STEP])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
