"""``edgemoe run``: print one answer on stdout, as text or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..text.console import talk, warnings_as_notes
from . import INTERRUPTED, OK
from .opening import OpenEngine, engine_keywords, find_model, sampling_of

if TYPE_CHECKING:
    from ..worker.protocol import Engine


def run_command(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    """Answer the prompt of ``edgemoe run``, from the command line or from stdin."""
    if parsed.prompt == "-" and sys.stdin.isatty():
        talk("reading the prompt from the terminal; Ctrl+D ends it")
    prompt = sys.stdin.read() if parsed.prompt == "-" else parsed.prompt
    return answer_once(parsed, open_engine, prompt, parsed.json)


def answer_once(parsed: argparse.Namespace, open_engine: OpenEngine, prompt: str, as_json: bool) -> int:
    """Open the model, print one answer, and return the exit code."""
    if not prompt.strip():
        raise ConfigError("the prompt is empty", "give it as an argument or on stdin")
    keywords = engine_keywords(parsed, parsed.model)
    path = find_model(parsed.model)
    system = [{"role": "system", "content": parsed.system}] if parsed.system else []
    messages = [*system, {"role": "user", "content": prompt}]
    with warnings_as_notes() as told:
        engine = open_engine(str(path), **keywords)
    try:
        for note in engine.experts.notes:
            if note not in told:
                talk(f"note: {note}")
        print_answer = _print_json if as_json else _print_text
        return print_answer(engine, messages, _keywords(parsed, engine, path))
    finally:
        engine.close()


def _keywords(parsed: argparse.Namespace, engine: Engine, path: Path) -> dict[str, Any]:
    """Make the keywords of the answer. They depend on the loaded model's levels of thinking."""
    from ..answer.effort import refusal
    from ..answer.sampling import keywords
    from ..worker.protocol import thinking_of

    thinking, think = thinking_of(engine), parsed.think
    if think and (why := refusal(think, thinking)):
        talk(f"note: {why}: --think {think} is left out")
        think = ""
    return keywords(sampling_of(parsed, parsed.model, path), thinking, think)


def _print_text(engine: Engine, messages: list[dict[str, str]], keywords: dict[str, Any]) -> int:
    from ..answer.written import Written
    from ..worker.interruptible import Interruptible

    def chunks() -> Iterator[Any]:
        return iter(engine.create_chat_completion(messages, stream=True, **keywords))

    written = Written(keywords["max_tokens"])
    with Interruptible(engine, chunks) as pieces:
        for chunk in pieces:
            written.add(chunk)
    written.end(pieces.interrupted)
    return INTERRUPTED if pieces.interrupted else OK


def _print_json(engine: Engine, messages: list[dict[str, str]], keywords: dict[str, Any]) -> int:
    import json

    from ..worker.interruptible import Interruptible

    def completion() -> Iterator[Any]:
        yield engine.create_chat_completion(messages, **keywords)

    with Interruptible(engine, completion) as answer:
        for whole in answer:
            print(json.dumps(whole, ensure_ascii=False, indent=2), flush=True)
    return INTERRUPTED if answer.interrupted else OK
