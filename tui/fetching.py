"""A download that goes on while its user chats: one at a time, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from edgemoe.errors import EdgeMoEError

# Fetches a model by name: tells the share done, and where it is in words; told no, it stops and keeps the bytes so far.
Fetch: TypeAlias = Callable[[str, Callable[[float, str], bool]], None]


@dataclass(frozen=True)
class FetchState:
    """Where the latest download is.

    Attributes:
        name: of the model, empty before the first.
        share: of the bytes, 0..1.
        words: bytes, speed, time left.
        running: it goes on.
        error: the reason for its end and the remedy; empty without a failure.
    """

    name: str = ""
    share: float = 0.0
    words: str = ""
    running: bool = False
    error: str = ""

    @property
    def complete(self) -> bool:
        """All of it is here."""
        return bool(self.name) and not self.running and self.share >= 1.0


class Fetcher:
    """Downloads models, one after the other; ``state`` may be read from any thread."""

    def __init__(self, fetch: Fetch) -> None:
        """Nothing is fetched yet."""
        self.state = FetchState()
        self._fetch, self._stopping = fetch, threading.Event()

    def start(self, name: str, ended: Callable[[FetchState], None]) -> bool:
        """Begin or go on with a model; False while another one is fetched. ``ended`` is called in the thread."""
        if self.state.running:
            return False
        self._stopping = threading.Event()
        self.state = FetchState(name, self.state.share if self.state.name == name else 0.0, "asking the hub", True)
        # A daemon: the bytes so far are kept whenever the process ends.
        threading.Thread(target=self._run, args=(name, ended, self._stopping), daemon=True).start()
        return True

    def pause(self) -> None:
        """Stop soon; ``start`` goes on from there."""
        self._stopping.set()

    def _run(self, name: str, ended: Callable[[FetchState], None], stopping: threading.Event) -> None:
        def told(share: float, words: str) -> bool:
            self.state = replace(self.state, share=min(share, 0.999), words=words)
            return not stopping.is_set()

        try:
            self._fetch(name, told)
            whole = not stopping.is_set()
            self.state = replace(
                self.state, running=False, share=1.0 if whole else self.state.share, words="" if whole else "paused"
            )
        except (EdgeMoEError, OSError) as error:
            hint = getattr(error, "hint", "")
            self.state = replace(self.state, running=False, error=f"{error}. {hint}".strip(". "))
        ended(self.state)
