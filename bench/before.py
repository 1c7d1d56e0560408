"""Another checkout of EdgeMoE for bench/cpu.py: reads lists of token ids, computes each list, and answers ``done``.

    PYTHONPATH=CHECKOUT python bench/before.py FILE THREADS

An empty list empties the context. The checkout has its core built in edgemoe/engine.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from edgemoe import Llama, OffloadConfig

    threads = int(sys.argv[2])
    settings = {"n_ctx": 1024, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    llm = Llama(sys.argv[1], offload=OffloadConfig(device="none", profile="off"), **settings)
    for line in sys.stdin:
        tokens = json.loads(line)
        if tokens:
            llm.eval(tokens)
        else:
            llm.reset()
        print("done", flush=True)


if __name__ == "__main__":
    main()
