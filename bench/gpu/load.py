"""Keep a machine's memory and its link to the card busy, so that the rest of it is as slow as a consumer's machine.

    python -m bench.gpu.load --copiers 6 --link -- python -m bench.gpu ...

Each copier copies one large array to another, without end. ``--link`` copies pinned memory to the card, through a torch
built for CUDA. The command after ``--`` runs meanwhile. At its end the copied gigabytes a second are printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

PIECE = 256 << 20  # bytes of a copy: far more than a processor's cache


class Copier:
    """Copy without end in a thread of its own, and count the bytes."""

    def __init__(self, copy: Callable[[], object]) -> None:
        """Start. ``copy`` moves `PIECE` bytes."""
        self._copy, self._copied, self._ended = copy, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._copy()
            self._copied += PIECE

    def end(self) -> int:
        """Stop, and give the bytes that were copied."""
        self._ended.set()
        self._thread.join()
        return self._copied


def in_memory() -> Callable[[], object]:
    """Give a copy within the RAM."""
    source, target = np.ones(PIECE, dtype=np.uint8), np.empty(PIECE, dtype=np.uint8)
    return lambda: np.copyto(target, source)


def to_card() -> Callable[[], object]:
    """Give a copy from pinned memory to the card.

    Raises:
        SystemExit: there is no torch that sees a card.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--link needs a torch that sees a card")
    source, target = (
        torch.empty(PIECE, dtype=torch.uint8).pin_memory(),
        torch.empty(PIECE, dtype=torch.uint8, device="cuda"),
    )

    def copy() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.current_stream().synchronize()

    return copy


def main() -> int:
    """Run a command beside the copies; give its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copiers", type=int, default=0, help="threads that copy within the RAM")
    parser.add_argument("--link", action="store_true", help="also copy to the card")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    copies = [in_memory() for _ in range(given.copiers)] + ([to_card()] if given.link else [])
    started, copiers = time.monotonic(), [Copier(copy) for copy in copies]
    try:
        code = subprocess.run(given.command, check=False).returncode
    finally:
        seconds = time.monotonic() - started
        rates = [copier.end() / seconds / 1e9 for copier in copiers]
    memory, link = sum(rates[: given.copiers]), sum(rates[given.copiers :])
    print(f"beside it: {memory:.1f} GB/s copied within the RAM (read and written), {link:.1f} GB/s to the card")
    return code


if __name__ == "__main__":
    sys.exit(main())
