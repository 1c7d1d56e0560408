"""Measure the wait of `Llama.cancel` for the running computation, in a prefill with layers of their real size.

    python bench/twin.py gpt-oss-20b FOLDER --layers 3
    python bench/cancel.py FOLDER/gpt-oss-20b-3-layers-twin.gguf --device none
    python bench/cancel.py FOLDER/gpt-oss-20b-twin.gguf --device CUDA0 --backend libggml-cuda.so --vram 25% --within 0.5

The prompt of 2,000 tokens is cancelled at a random moment, from another thread, again and again.
"""

import argparse
import random
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.gpu import devices
from edgemoe import Llama, OffloadConfig

PROMPT = list(range(100, 2100))


def cancelled_after(llm: Llama, seconds: float) -> float:
    """Measure the milliseconds from the cancel until the call returns."""
    asked = []

    def cancel() -> None:
        asked.append(time.perf_counter())
        llm.cancel()

    llm.reset()
    timer = threading.Timer(seconds, cancel)
    timer.start()
    llm.create_completion(PROMPT, max_tokens=1)
    returned = time.perf_counter()
    timer.join()
    assert returned > asked[0], "the prompt was done before"
    return (returned - asked[0]) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="sim")
    parser.add_argument("--vram", default="50%")
    parser.add_argument("--stops", type=int, default=15)
    parser.add_argument("--within", type=float, default=1.5, help="seconds; shorter than the time of the prompt")
    parser.add_argument("--backend", type=Path, help="a ggml backend library to load")
    options = parser.parse_args()
    if options.backend:
        devices.load(options.backend)
    offload = OffloadConfig(device=options.device, vram=options.vram, profile="off")
    llm = Llama(options.model, n_ctx=4096, offload=offload, verbose=False)
    spread = random.Random(4)
    llm.eval(PROMPT[:64])  # warm-up: lazy allocations
    waits = [cancelled_after(llm, spread.uniform(0.05, options.within)) for _ in range(options.stops)]
    print(f"{options.device}: median {statistics.median(waits):.0f} ms, worst {max(waits):.0f} ms of {len(waits)}")


if __name__ == "__main__":
    main()
