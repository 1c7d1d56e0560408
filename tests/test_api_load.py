"""Mixed load: every request is answered or refused, though clients go and engines are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx2")

from serving import Served, build_model, serving  # noqa: E402

SECONDS = float(os.environ.get("EDGEMOE_LOAD_SECONDS", "60"))
KILLS = int(os.environ.get("EDGEMOE_LOAD_KILLS", "3"))
CLIENTS, PARALLEL, QUESTIONS = 8, 4, 12
# The server itself may grow by this much: buffers of connections, and memory that Python does not give back.
GROWTH_BYTES = 64 << 20


def question(number: int) -> dict[str, Any]:
    text = f"Question {number}: " + "tell me more. " * (number * 7 % 40)
    messages = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": 8 + number, "temperature": 0}


class Load:
    """Asks at random until the end.

    Attributes:
        ends: how the requests ended, counted.
        wrong: answers that differ from the answers of one request alone.
    """

    def __init__(self, served: Served, expected: list[Any]) -> None:
        self._served, self._expected = served, expected
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.end = time.monotonic() + SECONDS

    def client(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self._served.url, timeout=120) as client:
            while time.monotonic() < self.end:
                ask = chance.choice((self._whole, self._streamed, self._left, self._cut))
                kind = ask(client, chance)
                with self._lock:
                    self.ends[kind] += 1

    def _whole(self, client: Any, chance: random.Random) -> str:
        number = chance.randrange(QUESTIONS)
        response = client.post("/v1/chat/completions", json=question(number))
        if response.status_code != 200:
            return f"{response.status_code} {response.json()['error']['code']}"
        self._check(number, response.json()["choices"][0]["message"]["content"])
        return "answered"

    def _streamed(self, client: Any, chance: random.Random) -> str:
        number, text = chance.randrange(QUESTIONS), ""
        with client.stream("POST", "/v1/chat/completions", json=question(number) | {"stream": True}) as response:
            for line in response.iter_lines():
                if response.status_code != 200:
                    return f"{response.status_code} {json.loads(line)['error']['code']}"
                if line == "data: [DONE]":
                    self._check(number, text)
                    return "answered"
                if line.startswith("data: "):
                    data = json.loads(line[6:])
                    if "error" in data:
                        return f"500 {data['error']['code']}"
                    text += data["choices"][0]["delta"].get("content", "")
        return "a stream that ended early"

    def _left(self, client: Any, chance: random.Random) -> str:
        """Leave a stream in any of its phases."""
        body = question(chance.randrange(QUESTIONS)) | {"stream": True, "max_tokens": 300}
        stay = chance.randrange(6)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            for _, _line in zip(range(stay), response.iter_lines(), strict=False):
                pass
        return "left"

    def _cut(self, client: Any, chance: random.Random) -> str:
        """Give up waiting for a whole answer."""
        try:
            body = question(chance.randrange(QUESTIONS)) | {"max_tokens": 300}
            client.post("/v1/chat/completions", json=body, timeout=chance.uniform(0.005, 0.2))
        except httpx.TimeoutException:
            return "cut"
        return "cut too late"

    def _check(self, number: int, text: str) -> None:
        if text != self._expected[number]:
            self.wrong.append(f"{number}: {text!r} instead of {self._expected[number]!r}")

    def kill(self) -> None:
        pause = threading.Event()
        for _ in range(KILLS):
            pause.wait(SECONDS / (KILLS + 1))
            engine = self._served.desk._engine
            if engine is not None:
                os.kill(engine.pid, signal.SIGKILL)


@pytest.mark.slow
def test_mixed_load(tmp_path: Path) -> None:
    with serving(build_model(tmp_path), parallel=PARALLEL, queue=4) as served:
        expected = [
            httpx.post(f"{served.url}/v1/chat/completions", json=question(number), timeout=120).json()
            for number in range(QUESTIONS)
        ]
        load = Load(served, [answer["choices"][0]["message"]["content"] for answer in expected])
        before = psutil.Process().memory_info().rss
        threads = [threading.Thread(target=load.client, args=(seed,)) for seed in range(CLIENTS)]
        threads.append(threading.Thread(target=load.kill))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS + 240)
        print(dict(load.ends))
        grown = psutil.Process().memory_info().rss - before
        died = load.ends.pop("500 engine_died", 0)
        assert load.ends.keys() <= {"answered", "left", "cut", "cut too late", "429 queue_full"}
        assert died <= KILLS * PARALLEL and served.desk.restarts == KILLS
        assert not load.wrong, load.wrong[:3]
        assert grown < GROWTH_BYTES
        end = time.monotonic() + SECONDS
        while served.desk.running or served.desk.waiting:  # the last client that cut its answer is noticed soon
            assert time.monotonic() < end
            time.sleep(0.1)
        facts = httpx.get(f"{served.url}/props", timeout=60).json()
        assert facts["running"] == facts["waiting"] == 0
