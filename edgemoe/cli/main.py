"""The command line: parses, prints, sets exit codes. What it starts is imported when it is started.

Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 model not found, 4 does not fit,
130 interrupted. An error is one line ``error: ...`` and, where something can be done, a line ``hint: ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tui.effort import LEVELS
from tui.sampling import MAX_TOKENS

from . import __version__
from .commands import MODEL, catalog, doctor, fit, profile, pull, routing, show
from .console import mend_streams, readable, show_progress, talk
from .errors import ConfigError, DoesNotFit, EdgeMoEError, ModelNotFound

RUN_EPILOG = """\
The answer goes to stdout. What the model thinks (where stderr is a terminal), the tools it calls and the figures go to
stderr. --json prints all of it on stdout as one chat completion: reasoning_content, content, tool_calls, timings.
"""

if TYPE_CHECKING:
    from tui.records import ChatSettings, ModelCard
    from tui.session import Engine, EngineSource

    from .config import OffloadConfig

    OpenEngine = Callable[..., Engine]

OK, FAILED, USAGE, NOT_FOUND, DOES_NOT_FIT, INTERRUPTED = 0, 1, 2, 3, 4, 130

DEMO = "demo"
DEMO_QUESTION = "What is a mixture of experts? Answer in two sentences."
# A PCIe 4.0 x16 link in practice: the sim device shall not flatter.
SIM_BANDWIDTH = 20 * 10**9
CONTEXT = 4096
THEMES = ("auto", "dark", "light", "16", "16-light")


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing, so that a usage error looks like every other error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None, open_engine: OpenEngine | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: without the program's name; those of the process when None.
        open_engine: takes the arguments of :class:`edgemoe.Llama`, which it is when None.
    """
    verbose = False
    mend_streams()
    try:
        given = readable(sys.argv[1:] if arguments is None else arguments)
        parsed = _parser().parse_args(given or ["chat"])
        verbose = getattr(parsed, "verbose", False)
        command: Callable[[argparse.Namespace, OpenEngine], int] = parsed.command
        return command(parsed, open_engine or _open_engine)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        talk("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if verbose:
            raise
        return _complain(error)


def _open_engine(*arguments: Any, **keywords: Any) -> Engine:
    from .engine import Llama

    engine: Engine = Llama(*arguments, **keywords)
    return engine


def _complain(error: Exception) -> int:
    from tui.failures import in_words

    text, hint = in_words(error)
    if not isinstance(error, EdgeMoEError) and not hint:
        hint = "the same command with --verbose shows where it happened"
    talk(f"error: {text}")
    if hint:
        talk(f"hint: {hint}")
    codes = {ModelNotFound: NOT_FOUND, DoesNotFit: DOES_NOT_FIT, ConfigError: USAGE}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)


# What can be asked for.


def _parser() -> _Parser:
    parser = _Parser(prog="edgemoe", description="Chat with Mixture-of-Experts models on a small GPU.")
    parser.add_argument("--version", action="version", version=f"edgemoe {__version__}")
    common, thinking, chatting = _common_options(), _thinking_options(), _chat_options()
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    chat = commands.add_parser("chat", parents=[common, thinking, chatting], help="chat in the terminal")
    chat.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    chat.set_defaults(command=_chat)

    demo = commands.add_parser(
        DEMO, parents=[common, thinking, chatting], help="build a small demo model once and chat with it"
    )
    demo.add_argument("--ask", metavar="QUESTION", help="answer once on stdout instead of opening the chat")
    demo.set_defaults(command=_demo, model=DEMO)

    run = commands.add_parser("run", parents=[common, thinking], help="answer one prompt on stdout", epilog=RUN_EPILOG)
    run.add_argument("model", metavar="MODEL", help=MODEL)
    run.add_argument("prompt", nargs="?", default="-", metavar="PROMPT", help="read from stdin when missing or '-'")
    run.add_argument("--json", action="store_true", help="print the chat completion with timings and edgemoe")
    run.set_defaults(command=_run)
    profile.add_parser(commands, common, _find, lambda parsed: _offload(parsed, parsed.model))
    routing.add_parsers(commands, _find)
    show.add_parser(commands, _find)
    catalog.add_parser(commands)
    pull.add_parsers(commands)
    fit.add_parser(commands, _find)
    doctor.add_parser(commands)
    return parser


def _common_options() -> _Parser:
    common = _Parser(add_help=False)
    place = common.add_argument_group("where experts live")
    place.add_argument("--device", help="auto, none, sim, or a ggml device such as CUDA0")
    place.add_argument("--vram", metavar="SIZE", help="device memory for experts: auto, 6GiB, 50%% of the experts")
    place.add_argument("--policy", help="adaptive, static, lru, lfu or off")
    place.add_argument(
        "--cache", metavar="WHERE", help="states of prompts that were read: auto (in RAM), off, or also in this folder"
    )
    model = common.add_argument_group("the model")
    model.add_argument("--ctx", type=_positive, default=CONTEXT, metavar="N", help="context in tokens (%(default)s)")
    model.add_argument("--threads", type=_positive, metavar="N", help="threads of the CPU")
    usual = f"of an answer ({MAX_TOKENS}; the rest of the context where the model thinks first)"
    model.add_argument("--max-tokens", type=_positive, metavar="N", help=usual)
    model.add_argument("--temperature", type=_temperature, metavar="T", help="0 is greedy")
    model.add_argument("--seed", type=int, metavar="N")
    model.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    common.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    return common


def _thinking_options() -> _Parser:
    thinking = _Parser(add_help=False)
    group = thinking.add_argument_group("thinking")
    levels = f"how much the model thinks before it answers, where it can be switched: {', '.join(LEVELS)}"
    group.add_argument("--think", choices=LEVELS, metavar="LEVEL", default="", help=levels)
    return thinking


def _chat_options() -> _Parser:
    chatting = _Parser(add_help=False)
    screen = chatting.add_argument_group("the chat")
    screen.add_argument("--resume", action="store_true", help="open the conversation that was used last")
    screen.add_argument("--theme", choices=THEMES, default="auto", help="%(choices)s (16: the terminal's own colours)")
    screen.add_argument("--plain", action="store_true", help="line by line, for screen readers; at TERM=dumb always")
    screen.add_argument("--serve", action="store_true", help="in a web browser, on this machine only")
    screen.add_argument("--served", action="store_true", help=argparse.SUPPRESS)  # what --serve starts
    return chatting


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a temperature")
    return value


# The commands.


def _chat(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    if not _can_chat(parsed):
        raise ConfigError("the chat needs a terminal", "edgemoe run MODEL PROMPT answers without one, --plain too")
    if parsed.model is None and _is_plain(parsed):  # the other chat shows the models there are
        question = "No model is given. Build a small demo model (some seconds) and chat with it?"
        if not (_on_terminal() and _agrees(question)):
            hint = "edgemoe demo is a small one to try, edgemoe list shows what can be pulled"
            raise ConfigError("no model given", hint)
        parsed.model = DEMO
    return _open_chat(parsed, open_engine)


def _demo(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    if parsed.ask is None and _can_chat(parsed):
        return _open_chat(parsed, open_engine)
    question = DEMO_QUESTION if parsed.ask is None else parsed.ask
    return _answer(parsed, open_engine, question, as_json=False)


def _run(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    if parsed.prompt == "-" and sys.stdin.isatty():
        talk("reading the prompt from the terminal; Ctrl+D ends it")
    prompt = sys.stdin.read() if parsed.prompt == "-" else parsed.prompt
    return _answer(parsed, open_engine, prompt, parsed.json)


def _open_chat(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    if parsed.serve:
        return _serve()

    from functools import partial

    from tui.keys import load as load_keys
    from tui.presets import Presets
    from tui.recent import Recent
    from tui.records import ChatSettings, Opened

    from .commands.choices import offered
    from .config import home
    from .gguf import shards
    from .worker import Worker, open_llama

    # A function of the main module has another name in the child.
    opener = open_llama if open_engine is _open_engine else open_engine

    recent = Recent(home("data") / "recent.json")

    if parsed.cache is None:  # --resume goes on where a conversation was left
        parsed.cache = str(home("cache") / "prompts")
    presets, chats = Presets(home("config") / "presets.json"), home("data") / "chats.db"
    keys = load_keys(home("config") / "keys.toml")

    def model(name: str) -> Opened:
        file = _find(name)
        if name != DEMO:
            recent.add(file)
        engines = Worker(partial(opener, str(file), **_engine_keywords(parsed, name)), shards(file))
        return Opened(file.stem, engines, _sampling(parsed, name, file, presets.of(file.stem).sampling))

    first = model(parsed.model) if parsed.model else Opened()
    kept = presets.of(first.title)
    system, think = parsed.system or kept.system, parsed.think or kept.think
    settings = ChatSettings(first.title, system, first.sampling, parsed.resume, parsed.theme, think)
    if _is_plain(parsed):
        assert first.engines is not None
        return _chat_in_lines(first.engines, settings, chats)

    from tui.app import ChatApp
    from tui.fetching import Fetcher
    from tui.forecasts import Forecasts
    from tui.screens.chat import Services

    services = Services(
        open_model=model,
        choices=lambda: offered(recent.files()),
        presets=presets,
        keys=keys,
        fetcher=Fetcher(pull.fetch),
        remove=pull.removed,
        forecasts=lambda card: Forecasts(lambda: _placed_as(parsed, card()), fit.in_short),
    )
    app = ChatApp(first.engines, settings, chats, services)
    app.run()
    return app.return_code or OK


def _placed_as(parsed: argparse.Namespace, card: ModelCard | None) -> list[str]:
    """Options of ``edgemoe fit`` for another model in the place of the open one, which leaves its memory then."""
    given = {"device": parsed.device, "vram": parsed.vram, "ctx": parsed.ctx, "threads": parsed.threads}
    if card is not None and card.free_before is not None:
        given["device-free"], given["ram-free"] = card.free_before
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _chat_in_lines(engines: EngineSource, settings: ChatSettings, chats: Path) -> int:
    from tui.archive import Archive
    from tui.plain import PlainChat

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
        from textual_serve.server import Server
    except ModuleNotFoundError as error:
        raise ConfigError("the browser needs textual-serve", "pip install textual-serve") from error
    arguments = ["--served" if argument == "--serve" else argument for argument in sys.argv[1:]]
    Server(shlex.join([sys.executable, "-m", "edgemoe.cli", *arguments]), title="EdgeMoE").serve()
    return OK


def _can_chat(parsed: argparse.Namespace) -> bool:
    return _on_terminal() or _is_plain(parsed) or bool(parsed.serve or parsed.served)


def _is_plain(parsed: argparse.Namespace) -> bool:
    from .config import terminal_is_dumb

    return bool(parsed.plain) or (terminal_is_dumb() and not parsed.served)


def _answer(parsed: argparse.Namespace, open_engine: OpenEngine, prompt: str, as_json: bool) -> int:
    if not prompt.strip():
        raise ConfigError("the prompt is empty", "give it as an argument or on stdin")
    keywords = _engine_keywords(parsed, parsed.model)
    path = _find(parsed.model)
    system = [{"role": "system", "content": parsed.system}] if parsed.system else []
    messages = [*system, {"role": "user", "content": prompt}]
    engine = open_engine(str(path), **keywords)
    try:
        for note in engine.experts.notes:
            talk(f"note: {note}")
        print_answer = _print_json if as_json else _print_text
        return print_answer(engine, messages, _keywords(parsed, engine, path))
    finally:
        engine.close()


def _keywords(parsed: argparse.Namespace, engine: Engine, path: Path) -> dict[str, Any]:
    """Keywords of the answer: the model is loaded by now and knows whether it thinks."""
    from tui.effort import refusal
    from tui.sampling import keywords
    from tui.session import thinking_of

    thinking, think = thinking_of(engine), parsed.think
    if think and (why := refusal(think, thinking)):
        talk(f"note: {why}: --think {think} is left out")
        think = ""
    return keywords(_sampling(parsed, parsed.model, path), thinking, think)


def _print_text(engine: Engine, messages: list[dict[str, str]], keywords: dict[str, Any]) -> int:
    from tui.interruptible import Interruptible
    from tui.written import Written

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

    from tui.interruptible import Interruptible

    def completion() -> Iterator[Any]:
        yield engine.create_chat_completion(messages, **keywords)

    with Interruptible(engine, completion) as answer:
        for whole in answer:
            print(json.dumps(whole, ensure_ascii=False, indent=2), flush=True)
    return INTERRUPTED if answer.interrupted else OK


# From options to the engine's arguments.


def _engine_keywords(parsed: argparse.Namespace, name: str) -> dict[str, Any]:
    keywords: dict[str, Any] = {"n_ctx": parsed.ctx, "offload": _offload(parsed, name)}
    if parsed.threads is not None:
        keywords["n_threads"] = parsed.threads
    if parsed.seed is not None:
        keywords["seed"] = parsed.seed
    return keywords


def _offload(parsed: argparse.Namespace, name: str) -> OffloadConfig:
    """The command line's word first, then what the catalogue says of the model ``name``, then the defaults."""
    from dataclasses import asdict

    from .config import OffloadConfig, SimConfig
    from .models import entry

    model = entry(name)
    hints = asdict(model.offload) if model else {}
    given = {option: getattr(parsed, option) for option in ("device", "vram", "policy", "cache")}
    layers: tuple[Mapping[str, Any], ...] = (hints, given)
    config = OffloadConfig(**{k: value for layer in layers for k, value in layer.items() if value is not None})
    if name != DEMO:
        return config
    if parsed.device is None and not _gpus():
        config = replace(config, device="sim")
    if config.device == "sim":
        config = replace(config, sim=SimConfig(bandwidth=SIM_BANDWIDTH))
    return config


def _gpus() -> list[str]:
    from .engine import devices

    return list(devices())


def _sampling(
    parsed: argparse.Namespace, name: str, path: Path, kept: Mapping[str, float | int] | None = None
) -> dict[str, float | int]:
    """The command line's word first, then what was ``kept`` for the model, its publisher's, then the defaults."""
    from .models import recommended_sampling

    recommended = recommended_sampling(name, path)
    given = {"max_tokens": parsed.max_tokens, "temperature": parsed.temperature}
    layers: tuple[Mapping[str, Any], ...] = (recommended, kept or {}, given)
    return {name: value for layer in layers for name, value in layer.items() if value is not None}


def _find(model: str) -> Path:
    from .models import find

    return find(model, _build_demo)


def _build_demo() -> Path:
    from .demo import build_demo

    try:
        return build_demo(progress=show_progress)
    finally:
        show_progress(1.0, "")


def _agrees(question: str) -> bool:
    talk(f"{question} [Y/n] ", end="")
    answer = sys.stdin.readline()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def _on_terminal() -> bool:
    # Textual draws on stderr.
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


if __name__ == "__main__":
    raise SystemExit(main())
