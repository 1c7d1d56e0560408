"""schemathesis asks the server as its own description allows, and as it does not: no answer is a surprise."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx2")

from serving import build_model, serving  # noqa: E402

from edgemoe.serve.app import Settings  # noqa: E402

EXAMPLES = int(os.environ.get("EDGEMOE_SCHEMA_EXAMPLES", "20"))  # of each path and phase
MUTATIONS = int(os.environ.get("EDGEMOE_MUTATIONS", "300"))
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
BODY: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "stop": ["x"],
    "n": 2,
    "seed": 1,
    "temperature": 0.5,
    "logit_bias": {"1": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "stream": False,
    "max_tokens": 3,
    "chat_template_kwargs": {"enable_thinking": False},
}
ODD = (None, True, -1, 0, 1.5, 10**20, "", "x" * 5000, "\ud800", "<|im_end|>", [], {}, [[]], {"type": "x"}, [None], "1")


@pytest.mark.slow
def test_every_answer_is_as_described(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    settings = Settings(usual={"max_tokens": 4})
    with serving(build_model(tmp_path), parallel=4, queue=64, settings=settings, n_ctx=512) as served:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json", "--checks", CHECKS]
        command += [
            "--max-examples",
            str(EXAMPLES),
            "--generation-deterministic",
            "--no-color",
            "--request-timeout",
            "120",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        print(done.stdout[-600:])
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert served.desk.restarts == 0


@pytest.mark.slow
def test_mutated_bodies_are_answered_or_refused(tmp_path: Path) -> None:
    chance = random.Random(5)
    with (
        serving(build_model(tmp_path), parallel=2, queue=64, settings=Settings(usual={}), n_ctx=512) as served,
        httpx.Client(base_url=served.url, timeout=120) as client,
    ):
        for _ in range(MUTATIONS):
            body = mutated(BODY, chance)
            response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code in (200, 400), (response.status_code, response.text[:300], body[:2000])
        assert served.desk.restarts == 0


def mutated(body: dict[str, Any], chance: random.Random) -> bytes:
    """Change one to three values of a body, or its bytes."""
    import copy
    import json

    changed = copy.deepcopy(body)
    for _ in range(chance.randint(1, 3)):
        place: Any = changed
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.3:
                place[key] = copy.deepcopy(chance.choice(ODD))
                break
            place = place[key]
    text = bytearray(json.dumps(changed).encode())
    if chance.random() < 0.2:
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.randrange(256)
    return bytes(text)
