"""``edgemoe chat``: chat on the full screen, line by line, or in a browser. Only this command loads terminal code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..text.console import talk
from . import OK, fit, pull
from .opening import AUTO, DEMO, OpenEngine, engine_keywords, find_model, open_in_process, sampling_of

if TYPE_CHECKING:
    from ..tui.records import ChatSettings, ModelCard
    from ..worker.protocol import EngineSource

# Options that `edgemoe fit` has, too.
FIT_OPTIONS = ("device", "rpc", "vram", "ctx", "kv", "flash", "threads")


def chat_command(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    """Open the chat of ``edgemoe chat``. Without a model, offer the demo model."""
    if not can_chat(parsed):
        raise ConfigError("the chat needs a terminal", "edgemoe run MODEL PROMPT answers without one, --plain too")
    if parsed.model is None and _is_plain(parsed):  # the full-screen chat shows a list of models instead
        question = "No model is given. Build a small demo model (some seconds) and chat with it?"
        if not (_on_terminal() and _agrees(question)):
            hint = "edgemoe demo is a small one to try, edgemoe list shows what can be pulled"
            raise ConfigError("no model given", hint)
        parsed.model = DEMO
    return open_chat(parsed, open_engine)


def open_chat(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    """Open the chat on a model, on the terminal or in a browser, and return the exit code."""
    if parsed.serve:
        return _serve()

    from functools import partial

    from ..config import home
    from ..models.gguf import shards
    from ..tui.keys import load as load_keys
    from ..tui.presets import Presets
    from ..tui.recent import Recent
    from ..tui.records import ChatSettings, Opened
    from ..worker import Worker, open_llama
    from .choices import offered

    # A function of the main module has another name in the child.
    opener = open_llama if open_engine is open_in_process else open_engine

    recent = Recent(home("data") / "recent.json")

    if parsed.cache is None:  # the cache on disk lets --resume continue without computing the conversation again
        parsed.cache = str(home("cache") / "prompts")
    parsed.ctx = parsed.ctx or AUTO
    presets, chats = Presets(home("config") / "presets.json"), home("data") / "chats.db"
    keys = load_keys(home("config") / "keys.toml")

    def model(name: str) -> Opened:
        parsed.model = name
        file = find_model(name)
        if name != DEMO:
            recent.add(file)
        engines = Worker(partial(opener, str(file), **engine_keywords(parsed, name)), shards(file))
        return Opened(file.stem, engines, sampling_of(parsed, name, file, presets.of(file.stem).sampling))

    def with_context(length: int | str) -> Opened:
        parsed.ctx = length
        return model(parsed.model)

    first = model(parsed.model) if parsed.model else Opened()
    kept = presets.of(first.title)
    system, think = parsed.system or kept.system, parsed.think or kept.think
    settings = ChatSettings(first.title, system, first.sampling, parsed.resume, parsed.theme, think)
    if _is_plain(parsed):
        assert first.engines is not None
        return _chat_in_lines(first.engines, settings, chats)

    from ..setup.advice import advice
    from ..tui.app import ChatApp
    from ..tui.fetching import Fetcher
    from ..tui.forecasts import Forecasts
    from ..tui.screens.chat import Services

    services = Services(
        open_model=model,
        with_context=with_context,
        choices=lambda: offered(recent.files()),
        presets=presets,
        keys=keys,
        fetcher=Fetcher(pull.fetch),
        remove=pull.removed,
        forecasts=lambda card: Forecasts(lambda: _placed_as(parsed, card()), fit.in_short),
        advice=advice(),
    )
    app = ChatApp(first.engines, settings, chats, services)
    app.run()
    return app.return_code or OK


def _placed_as(parsed: argparse.Namespace, card: ModelCard | None) -> list[str]:
    """Give the options of ``edgemoe fit`` for a model that replaces the open one and gets its memory."""
    given = {option: getattr(parsed, option) for option in FIT_OPTIONS}
    if card is not None and card.free_before is not None:
        given["device-free"], given["ram-free"] = card.free_before
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _chat_in_lines(engines: EngineSource, settings: ChatSettings, chats: Path) -> int:
    from ..tui.archive import Archive
    from ..tui.plain import PlainChat

    archive = Archive(chats, talk)
    try:
        PlainChat(engines, settings, archive).run()
    finally:
        engines.abort()
        archive.close()
    return OK


def _serve() -> int:
    import shlex

    try:
        from .web import ChatServer, free_port
    except ModuleNotFoundError as error:
        raise ConfigError("the browser needs textual-serve", "pip install textual-serve") from error
    arguments = ["--served" if argument == "--serve" else argument for argument in sys.argv[1:]]
    ChatServer(shlex.join([sys.executable, "-m", "edgemoe.cli", *arguments]), free_port()).serve()
    return OK


def can_chat(parsed: argparse.Namespace) -> bool:
    """Tell whether there is a terminal to chat on, or an option that needs none."""
    return _on_terminal() or _is_plain(parsed) or bool(parsed.serve or parsed.served)


def _is_plain(parsed: argparse.Namespace) -> bool:
    from ..config import terminal_is_dumb

    return bool(parsed.plain) or (terminal_is_dumb() and not parsed.served)


def _agrees(question: str) -> bool:
    talk(f"{question} [Y/n] ", end="")
    answer = sys.stdin.readline()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def _on_terminal() -> bool:
    # Textual draws on stderr.
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
