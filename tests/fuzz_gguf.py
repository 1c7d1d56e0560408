"""Damage headers of model files in many ways, and check that each file is refused clearly or runs.

python -m tests.fuzz_gguf [rounds] [seed]     prints every crash with the round that repeats it
"""

from __future__ import annotations

import collections
import math
import os
import random
import resource
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgemoe.cli.main import main
from tests.zoo import ARCHITECTURES, HEADLESS, WITH_MTP, build

SECONDS = 60
MEMORY = 12 << 30
# Models of the zoo to damage. True adds an MTP head.
MODELS = [(name, False) for name in (*ARCHITECTURES, *HEADLESS)] + [(name, True) for name in WITH_MTP]
INTERESTING = (0, 1, 2, 3, 5, 7, 31, 33, 64, 127, 255, 256, 1000, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Header:
    """Hold a file and the places in its header: (place, struct code) of numbers, (place, length) of texts."""

    data: bytes
    end: int
    values: list[tuple[int, str]]
    tensors: list[tuple[int, str]]
    structure: list[tuple[int, str]]
    texts: list[tuple[int, int]]


def walk(data: bytes) -> Header:
    """Find all places. In an array, only the first and last few elements count."""
    header = Header(data, 0, [], [], [(4, "I"), (8, "Q"), (16, "Q")], [])
    at = 24

    def number(code: str, places: list[tuple[int, str]] = header.structure) -> int:
        nonlocal at
        places.append((at, code))
        value: int = struct.unpack_from("<" + code, data, at)[0]
        at += struct.calcsize(code)
        return value

    def text() -> None:
        nonlocal at
        size = number("Q")
        header.texts.append((at, size))
        at += size

    def value(kind: int) -> None:
        if kind == 8:
            text()
        else:
            number(SCALARS[kind], header.values)

    tensors, keys = struct.unpack_from("<QQ", data, 8)
    for _ in range(keys):
        text()
        kind = number("I")
        if kind != 9:
            value(kind)
            continue
        element, length = number("I"), number("Q")
        for i in range(length):
            value(element)
            if 4 < i < length - 4:
                places = (header.structure, header.texts) if element == 8 else (header.values,)
                for kept in places:
                    kept.pop()
    for _ in range(tensors):
        text()
        for _ in range(number("I")):
            number("Q", header.tensors)
        number("I", header.tensors)
        number("Q")
    return replace(header, end=at)


def damage(header: Header, rng: random.Random) -> bytes:
    """Make one to three changes: of a number, a text, some bytes, or the length of the file."""
    out = bytearray(header.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.7:
            at, code = rng.choice(header.values if kind < 0.45 else header.tensors if kind < 0.6 else header.structure)
            change_number(out, at, code, rng)
        elif kind < 0.85:
            at, size = rng.choice(header.texts)
            for _ in range(min(size, rng.choice((1, 1, 3)))):
                out[at + rng.randrange(size)] = rng.choice(b"abz019._\x00\xff")
        elif kind < 0.95:
            for _ in range(rng.choice((1, 2, 8))):
                out[rng.randrange(header.end)] ^= 1 << rng.randrange(8)
        else:
            del out[rng.randrange(len(out)) :]
            break
    return bytes(out)


def change_number(out: bytearray, at: int, code: str, rng: random.Random) -> None:
    if at + struct.calcsize(code) > len(out):
        return
    if code in "fd":
        new = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), rng.uniform(-10, 10)))
        struct.pack_into("<" + code, out, at, new if code == "d" or abs(new) < 1e38 or new != new else 1e38)
        return
    bits = 8 * struct.calcsize(code)
    old = int.from_bytes(out[at : at + bits // 8], "little")
    new = rng.choice((rng.choice(INTERESTING), -rng.choice(INTERESTING), old + 1, old - 1, old * 2, old // 2, old ^ 1))
    out[at : at + bits // 8] = (int(new) % (1 << bits)).to_bytes(bits // 8, "little")


def verdict(path: Path) -> tuple[str, float]:
    """Show, load and run the file in a child: ``runs``, ``refused: why`` or ``CRASH ...``, and milliseconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _in_child(path, write)
    os.close(write)
    deadline = time.monotonic() + SECONDS
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = 0
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        last_words = [line for line in path.with_suffix(".stderr").read_text(errors="replace").splitlines() if line]
        return f"CRASH {signal.Signals(os.WTERMSIG(status)).name} {' / '.join(last_words[:1])}", math.nan
    shown_ms, _, said = said.partition(" ")
    return said or f"CRASH exit {os.WEXITSTATUS(status)}", float(shown_ms or math.nan)


def _in_child(path: Path, write: int) -> None:
    """Run the child, and never return. ``SIGALRM`` ends a hang, which counts as a crash."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    said = "CRASH without a word"
    try:
        talk = os.open(path.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(talk, 1)
        os.dup2(talk, 2)
        started = time.perf_counter()
        shown = main(["show", str(path), "--json"])
        shown_ms = 1e3 * (time.perf_counter() - started)
        said = _load_and_run(path)
        if shown not in (0, 1) or (shown != 0 and said == "runs"):
            said = f"CRASH show gave {shown}, loading: {said}"
        said = f"{shown_ms:.2f} {said}"
    finally:
        os.write(write, said.encode())
        os._exit(0)


def _load_and_run(path: Path) -> str:
    from edgemoe import Llama, OffloadConfig
    from edgemoe.errors import EdgeMoEError

    try:
        offload = OffloadConfig(device="none", profile="off")
        llm = Llama(path, offload=offload, n_ctx=64, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)
        llm.eval([1, 2, 3])
        llm.eval([4])
        llm.detokenize(llm.tokenize(b"The end."))
        llm.close()
    except EdgeMoEError as error:
        return f"refused: {error}"
    except BaseException as error:
        return f"CRASH {type(error).__name__}: {error}"
    return "runs"


def rounds(count: int, seed: int, folder: Path) -> Iterator[tuple[int, str, str, float]]:
    """Yield number, model, verdict and milliseconds of each round. A round does not depend on earlier rounds."""
    import edgemoe.engine.llama
    import edgemoe.models.find
    import edgemoe.routing.history
    import edgemoe.routing.predictor  # noqa: F401

    headers: dict[tuple[str, bool], Header] = {}
    victim = folder / f"victim-{os.getpid()}.gguf"
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name, mtp = model = MODELS[rng.randrange(len(MODELS))]
        if model not in headers:
            headers[model] = walk(build(name, folder, mtp=mtp).read_bytes())
        victim.write_bytes(damage(headers[model], rng))
        yield number, name + ("-mtp" if mtp else ""), *verdict(victim)


def crashes(count: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> list[str]:
    """Collect all crashes of ``count`` rounds. ``tell`` gets each crash at once, and the tally at the end."""
    found = []
    tally: collections.Counter[str] = collections.Counter()
    shown = []
    for number, name, said, shown_ms in rounds(count, seed, folder):
        shown.append(shown_ms)
        tally[said.split(":")[0].split(" ")[0]] += 1
        if said.startswith("CRASH"):
            found.append(f"seed {seed} round {number} ({name}): {said}")
            tell(found[-1])
    tell(", ".join(f"{what} {times}" for what, times in tally.most_common()))
    tell(f"edgemoe show: {statistics.median(shown):.1f} ms in the median, at most {max(shown):.0f} ms")
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
        first_seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        sys.exit(bool(crashes(wanted, first_seed, Path(temporary), lambda line: print(line, flush=True))))
