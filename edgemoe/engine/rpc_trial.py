"""``python -m edgemoe.engine.rpc_trial HOST:PORT``: meets an RPC server. On a failure ggml ends this process."""

from __future__ import annotations

import sys

from .backends import connected
from .host import _ggml_libraries


def main() -> None:
    """Meet the server that the command names, and print the names of its devices."""
    print(*connected(_ggml_libraries()[0], sys.argv[1]))


if __name__ == "__main__":
    main()
