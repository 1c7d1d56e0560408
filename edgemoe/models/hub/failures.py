"""Turn failures of the hub and of the network into our errors, with a hint."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...errors import DoesNotFit, EdgeMoEError, ModelNotFound

_RESET = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
PASSING = (408, 429, 500, 502, 503, 504)  # with these statuses the next attempt may succeed


class DiskTooSmall(DoesNotFit):
    """The files do not fit the disk that holds the cache."""

    def __init__(self, needed_bytes: int, free_bytes: int, suggestion: str) -> None:
        """Build the message, which names the disk. The figures are those of :class:`DoesNotFit`."""
        super().__init__(needed_bytes, free_bytes, suggestion)
        needed, free = needed_bytes / 2**20, free_bytes / 2**20
        self.args = (f"the download needs {needed:.0f} MiB, the disk of the cache has {free:.0f} MiB free",)

    def __reduce__(self) -> tuple[type[DoesNotFit], tuple[int, int, str]]:
        """Support pickling, so that the error crosses process boundaries."""
        return DiskTooSmall, (self.needed_bytes, self.free_bytes, self.suggestion)


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed in a moment."""
    status = status_of(error)
    return status in PASSING if status is not None else not isinstance(error, OfflineModeIsEnabled)


def wait_asked_for(error: BaseException) -> float | None:
    """Read how many seconds the server wants us to wait; None without such a header.

    **Source**: ``Retry-After`` of RFC 9110; the hub itself sends ``RateLimit: "api";r=0;t=55`` (2.4.0, utils/_http.py).
    """
    headers = getattr(getattr(error, "response", None), "headers", {})
    if status_of(error) == 429 and (reset := _RESET.search(headers.get("RateLimit", ""))):
        return float(reset[1])
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def status_of(error: BaseException) -> int | None:
    """Give the HTTP status behind ``error``; None if there was no answer."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def explained(error: BaseException, what: str) -> EdgeMoEError:
    """Make our error from one of huggingface_hub's. ``what`` names the repository or the file of the request.

    huggingface_hub's text is left out, because it may contain signed addresses.
    """
    status = status_of(error)
    page = f"{constants.ENDPOINT}/{what.split(':')[0]}"
    if isinstance(error, GatedRepoError):
        return EdgeMoEError(
            f"{what} is gated: its owner wants a licence accepted first",
            f"accept it at {page}, then set HF_TOKEN to a token of that account (or run: hf auth login)",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(f"the hub has no repository {what}", "check the spelling; a private one needs HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{what} has no such revision", "leave --revision out for the newest")
    if isinstance(error, EntryNotFoundError) or status == 404:
        return ModelNotFound(
            f"the hub does not have {what}", "the upload may be unfinished: choose another quantisation"
        )
    if status in (401, 403):
        return EdgeMoEError(f"the hub refuses {what} ({status})", "HF_TOKEN is missing or wrong, or may not read it")
    if status == 429:
        return EdgeMoEError(f"the hub takes no more requests for now ({status})", "wait some minutes, or set HF_TOKEN")
    if status is not None:
        return EdgeMoEError(f"the hub answers {status} for {what}", "try again later: all bytes so far are kept")
    return EdgeMoEError(
        f"no connection to {constants.ENDPOINT} ({type(error).__name__})",
        "check the network; HF_HUB_OFFLINE=1 uses the files on the disk",
    )
