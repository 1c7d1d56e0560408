"""Measure the server: tokens per second of several requests at once, and the wait for a token beside a long prompt.

    PYTHONPATH=. python bench/serve.py MODEL.gguf [--device none] [--theirs .../examples/server/server.py]

``--theirs`` names the batch server of llama-cpp-python's source archive. It then runs beside ours, with the same file,
threads and context; the rounds of both alternate (A B A B), and the table gives medians. Tokens per second of processor
time also mean something on a busy machine. The second table reads a
prompt of 4,000 tokens while three answers run; it gives the percentiles of the time from one token to the next.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil

CONTEXT = 8192
Rate = tuple[float, float]
SUBJECTS = ("a cat", "the sea", "a train", "the moon", "an old house", "bread", "a river", "winter")
# Beside a long prompt: answers long enough to last until the prompt is read.
LONG_WORDS, LONG_ANSWER = 650, 1000


@dataclass
class Running:
    """A server that answers at ``port``."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Give the processor time of the server and its children so far."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)


def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """Start a server and wait until it answers."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            complete(port, "Hi", 1)
            return process
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{command[0]} did not start")


@contextmanager
def ours(parsed: argparse.Namespace, parallel: int) -> Iterator[Running]:
    """Run our server."""
    port = free_port()
    command = [sys.executable, "-m", "edgemoe.cli", "serve", parsed.model, "--port", str(port)]
    command += ["--parallel", str(parallel), "--ctx", str(CONTEXT // parallel), "--threads", str(parsed.threads)]
    command += ["--device", parsed.device, *(["--vram", parsed.vram] if parsed.vram else [])]
    process = start(command, port)
    try:
        yield Running(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


@contextmanager
def theirs(parsed: argparse.Namespace, parallel: int) -> Iterator[Running]:
    """Run llama-cpp-python's batch server."""
    port, threads = free_port(), parsed.threads
    model = {"path": parsed.model, "alias": "tiny", "n_ctx": CONTEXT, "n_seq_max": parallel, "n_gpu_layers": 0}
    model |= {"threads": threads, "threads_batch": threads, "n_batch": 512, "n_ubatch": 512}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"server": {"host": "127.0.0.1", "port": port}, "model": model}, file)
        file.flush()
        process = start([sys.executable, parsed.theirs, "-C", file.name], port)
    try:
        yield Running(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def complete(port: int, prompt: str, tokens: int, gaps: list[float] | None = None) -> int:
    """Stream one completion; return its tokens, and add the times between them to ``gaps``."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", data, headers)
    count, before = 0, 0.0
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            found = re.match(rb"data: (\{.*)", line)
            choice = json.loads(found[1])["choices"][0] if found is not None else {}
            if choice.get("finish_reason") == "length":
                return tokens
            if not choice.get("text"):
                continue
            now, count = time.perf_counter(), count + 1
            if before and gaps is not None:
                gaps.append(now - before)
            before = now
    return count


def complete_whole(port: int, prompt: str) -> int:
    """Make one token of a completion; return the tokens of its prompt."""
    data = json.dumps({"prompt": prompt, "max_tokens": 1, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return int(json.load(response)["usage"]["prompt_tokens"])


def at_once(server: Running, count: int, begin: int, tokens: int) -> Rate:
    """Ask ``count`` questions at once; return all tokens per second, and per second of processor time."""
    made = [0] * count

    def ask(number: int) -> None:
        subject = SUBJECTS[(begin + number) % len(SUBJECTS)]
        made[number] = complete(server.port, f"Story {begin + number} tells of {subject}. Once upon a time", tokens)

    began, cpu = time.perf_counter(), server.cpu_seconds()
    run([lambda number=number: ask(number) for number in range(count)])  # type: ignore[misc]
    return sum(made) / (time.perf_counter() - began), sum(made) / (server.cpu_seconds() - cpu)


def run(works: Sequence[Any]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def beside(port: int) -> list[float]:
    """Read a long prompt beside three answers; return the gaps between tokens while it was read, in milliseconds."""
    gaps: list[list[float]] = [[], [], []]
    words = " ".join(f"{SUBJECTS[n % 8]} {n}" for n in range(LONG_WORDS))
    answers = [
        threading.Thread(target=complete, args=(port, f"Tale {n}. Once upon", LONG_ANSWER, gaps[n])) for n in range(3)
    ]
    for thread in answers:
        thread.start()
    while not all(len(found) > 3 for found in gaps):
        time.sleep(0.01)
    begins = [len(found) for found in gaps]
    read = complete_whole(port, words)
    within = [gap * 1e3 for found, begin in zip(gaps, begins, strict=True) for gap in found[begin:]]
    print(f"a prompt of {read} tokens was read beside {len(within)} tokens of three answers")
    for thread in answers:
        thread.join()
    return sorted(within)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="none")
    parser.add_argument("--vram", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--theirs", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", default="1,2,4,8")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--no-long", action="store_true", help="leave out the long prompt")
    parsed = parser.parse_args()
    counts = [int(count) for count in parsed.counts.split(",")]
    with ExitStack() as stack:
        servers = {"ours": stack.enter_context(ours(parsed, max(counts)))}
        if parsed.theirs:
            servers["theirs"] = stack.enter_context(theirs(parsed, max(counts)))
        rates: dict[tuple[str, int], list[Rate]] = {}
        for number in range(parsed.rounds):
            for count in counts:
                for name, server in servers.items():
                    rates.setdefault((name, count), []).append(
                        at_once(server, count, 100 * number + 10 * count, parsed.tokens)
                    )
                    now, cpu = rates[name, count][-1]
                    print(f"{name}, {count} at once: {now:.2f} tok/s, {cpu:.2f} tok/cpu-s", file=sys.stderr, flush=True)
        for place, unit in enumerate(("tok/s", "tok/cpu-s")):
            for count in counts:
                found = {name: [rate[place] for rate in rates[name, count]] for name in servers}
                rows = [f"{name} {median(found[name]):7.2f} {unit}" for name in servers]
                first = [rate[place] for rate in rates["ours", counts[0]]]
                one = median(a / b for a, b in zip(found["ours"], first, strict=True))
                pairs = zip(found["ours"], found.get("theirs", ()), strict=False)
                ratio = f", ours / theirs {median(a / b for a, b in pairs):.2f}" if parsed.theirs else ""
                print(f"{count} at once: {', '.join(rows)}, {one:.2f} x one request{ratio}", flush=True)
        if not parsed.no_long:
            for name, server in servers.items():
                gaps = beside(server.port)
                p50, p95 = (gaps[int(share * (len(gaps) - 1))] for share in (0.5, 0.95))
                print(f"beside a long prompt, {name}: {len(gaps)} tokens, {p50:.0f} ms median, {p95:.0f} ms p95")


if __name__ == "__main__":
    main()
