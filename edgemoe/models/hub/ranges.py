"""Read parts of files on the hub, by range requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from ...errors import EdgeMoEError
from .download import insist, remote_of
from .records import Download, RemoteFile


def opened(plan: Download, file: RemoteFile) -> tuple[int, Callable[[int, int], bytes]]:
    """Give the size of a file on the hub, and a function that reads ``length`` bytes from ``offset``.

    Raises:
        ModelNotFound: the hub has no such file.
        EdgeMoEError: the hub refuses, does not answer, or sends whole files only. The function may raise it, too.
    """
    remote = remote_of(plan, file)

    def read(offset: int, length: int) -> bytes:
        return insist(partial(_get, remote.url, offset, length), remote.what) if length > 0 else b""

    return remote.bytes, read


def _get(url: str, offset: int, length: int) -> bytes:
    headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={offset}-{offset + length - 1}"}
    found = b""
    with get_session().stream(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != 206 and offset:
            raise EdgeMoEError("the server sends whole files only", "edgemoe pull gets the model, then fit reads it")
        for chunk in response.iter_bytes():
            found += chunk[: length - len(found)]
            if len(found) == length:  # a server may send more than the range
                break
    return found
