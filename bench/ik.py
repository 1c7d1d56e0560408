"""ik_llama.cpp for bench/cpu.py: reads lists of token ids from standard input, computes each, and answers ``done``.

    python bench/ik.py FILE THREADS

An empty list empties the context. It runs in an environment of its own, with ik-llama-cpp-python: a process holds one
ggml.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from ik_llama_cpp import IkLlama
    from ik_llama_cpp import _ctypes_api as api
    from ik_llama_cpp._internals import make_batch_range

    llm = IkLlama(sys.argv[1], n_ctx=1024, n_threads=int(sys.argv[2]), flash_attn=False, verbose=False)
    position = 0
    for line in sys.stdin:
        tokens = json.loads(line)
        if tokens:
            batch = make_batch_range(tokens, pos_start=position, logits_last=True)
            failed = llm._context.decode(batch)
            api.llama_batch_free(batch)
            if failed:
                raise SystemExit(f"llama_decode gave {failed}")
            position += len(tokens)
        else:
            llm._context.kv_cache_clear()
            position = 0
        print("done", flush=True)


if __name__ == "__main__":
    main()
