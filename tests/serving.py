"""A server for tests: in a thread of this process, with its engine in a real child."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
from gguf import TokenType
from scripted import CONTEXT, CPU, ORDINARY, Asked, Forced, build_scripted, spelled

from edgemoe.engine.batching import Batching
from edgemoe.engine.seat import Seat
from edgemoe.engine.service import Service, open_service
from edgemoe.serve.app import Settings
from edgemoe.serve.desk import Desk
from edgemoe.serve.run import Server, listen

USUAL: dict[str, Any] = {"n_ctx": CONTEXT, "offload": CPU, "n_threads": 1, "n_threads_batch": 1}


# ChatML with calls as Hermes and Qwen write them, and thinking.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call: {{ tools | tojson }} as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == "tool" %}<tool_response>{{ message.content }}</tool_response>
{%- else %}{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
_SPECIAL = {"<|im_start|>": TokenType.CONTROL, "<|im_end|>": TokenType.CONTROL}
_SPECIAL |= dict.fromkeys(("<think>", "</think>", "<tool_call>", "</tool_call>"), TokenType.USER_DEFINED)
END = ORDINARY + list(_SPECIAL).index("<|im_end|>")


def build_model(folder: Path, **options: Any) -> Path:
    """Write a tiny model that chats; see `build_scripted`."""
    given = {"eos": "<|im_end|>", "architecture": "qwen3moe", "name": "tiny"} | options
    return build_scripted(folder, TEMPLATE, _SPECIAL, **given)


@dataclass(frozen=True)
class Served:
    """A server that listens at ``url``."""

    url: str
    desk: Desk
    server: Server


@contextmanager
def serving(
    path: Path,
    answers: Sequence[str] | None = None,
    *,
    parallel: int = 2,
    queue: int = 8,
    idle: float | None = None,
    settings: Settings | None = None,
    seconds: float = 5.0,
    **keywords: Any,
) -> Iterator[Served]:
    """Serve a model; with ``answers`` the model gives these raw texts, one after another."""
    opener = partial(open_scripted, str(path), answers, parallel, USUAL | keywords)
    desk = Desk("tiny", opener, parallel, queue, idle)
    listening = threading.Event()
    server = Server(desk, settings or Settings(usual={"temperature": 0.0}), seconds, listening.set)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_on, args=(listener,), name="server", daemon=True)
    thread.start()
    try:
        assert listening.wait(30), "the server did not start"
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", desk, server)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


def open_scripted(path: str, answers: Sequence[str] | None, parallel: int, keywords: dict[str, Any]) -> Service:
    """Open the engine in the child."""
    service = open_service(path, parallel, **keywords)
    if answers is not None:
        service.seat = partial(ScriptedSeat, answers=list(answers), asked=[])  # type: ignore[assignment]
    return service


class ScriptedSeat(Seat):
    """Makes a real answer with forced tokens."""

    def __init__(self, batching: Batching, answers: list[str], asked: list[Asked]) -> None:
        super().__init__(batching)
        self._answers, self._asked = answers, asked

    def create_completion(self, prompt: list[int], **keywords: Any) -> Any:
        special = tuple(spelled(self, [token]) for token in prompt if token >= ORDINARY)  # type: ignore[arg-type]
        self._asked.append(Asked(spelled(self, prompt), special))  # type: ignore[arg-type]
        script = self._llm.tokenize(self._answers.pop(0).encode(), add_bos=False, special=True)
        if not llama_cpp.llama_vocab_is_eog(self._model.vocab, script[-1]):
            script.append(self.token_eos())
        forced = llama_cpp.LogitsProcessorList([*(keywords.pop("logits_processor", None) or []), Forced(script)])
        return super().create_completion(prompt=prompt, logits_processor=forced, **keywords)
