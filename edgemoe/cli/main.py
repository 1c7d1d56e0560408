"""The command line: parse arguments, print, set exit codes. A command imports its modules when it starts.

Data goes to stdout, messages go to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 model not found, 4 does not fit,
130 interrupted. An error is one line ``error: ...`` and, if an action may help, a line ``hint: ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .. import __version__
from ..answer.effort import LEVELS
from ..answer.sampling import MAX_TOKENS
from ..errors import ConfigError, DoesNotFit, EdgeMoEError, ModelNotFound
from ..text.console import mend_streams, readable, talk
from . import (
    DOES_NOT_FIT,
    FAILED,
    INTERRUPTED,
    MODEL,
    NOT_FOUND,
    USAGE,
    catalog,
    doctor,
    fit,
    profile,
    pull,
    routing,
    rpc_server,
    serve,
    setup,
    show,
)
from .chat import can_chat, chat_command, open_chat
from .opening import AUTO, CONTEXT, DEMO, OpenEngine, add_context, find_model, offload_of, open_in_process
from .run import answer_once, run_command

RUN_EPILOG = """\
The answer goes to stdout. Thinking (if stderr is a terminal), tool calls and the figures go to stderr. --json prints
everything on stdout as one chat completion: reasoning_content, content, tool_calls, timings.
"""

ABOUT = "Run Mixture-of-Experts models that do not fit the GPU. Without a command, edgemoe opens the chat."
DEMO_QUESTION = "What is a mixture of experts? Answer in two sentences."

THEMES = ("auto", "dark", "light", "16", "16-light")


class _Parser(argparse.ArgumentParser):
    """Raise usage errors instead of printing them, so that they look like every other error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None, open_engine: OpenEngine | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: arguments without the program's name. None: the arguments of the process.
        open_engine: function with the arguments of :class:`edgemoe.Llama`. None: open the model in this process.
    """
    verbose = False
    mend_streams()
    try:
        given = readable(sys.argv[1:] if arguments is None else arguments)
        parsed = _parser().parse_args(given or ["chat"])
        verbose = getattr(parsed, "verbose", False)
        command: Callable[[argparse.Namespace, OpenEngine], int] = parsed.command
        return command(parsed, open_engine or open_in_process)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        talk("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has ended. Python would raise another error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if verbose:
            raise
        return _report_error(error)


def _report_error(error: Exception) -> int:
    from ..text.failures import in_words

    text, hint = in_words(error)
    if not isinstance(error, EdgeMoEError) and not hint:
        hint = "the same command with --verbose shows where it happened"
    talk(f"error: {text}")
    if hint:
        talk(f"hint: {hint}")
    codes = {ModelNotFound: NOT_FOUND, DoesNotFit: DOES_NOT_FIT, ConfigError: USAGE}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)


# The arguments.


def _parser() -> _Parser:
    parser = _Parser(prog="edgemoe", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"edgemoe {__version__}")
    common, thinking, chatting = _common_options(), _thinking_options(), _chat_options()
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    chat = commands.add_parser("chat", parents=[common, thinking, chatting], help="chat in the terminal")
    chat.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    chat.set_defaults(command=chat_command)

    demo = commands.add_parser(
        DEMO, parents=[common, thinking, chatting], help="build a small demo model once and chat with it"
    )
    demo.add_argument("--ask", metavar="QUESTION", help="answer once on stdout instead of opening the chat")
    demo.set_defaults(command=_demo, model=DEMO)

    run = commands.add_parser("run", parents=[common, thinking], help="answer one prompt on stdout", epilog=RUN_EPILOG)
    run.add_argument("model", metavar="MODEL", help=MODEL)
    run.add_argument(
        "prompt", nargs="?", default="-", metavar="PROMPT", help="the question; read from stdin if missing or '-'"
    )
    run.add_argument("--json", action="store_true", help="print the chat completion as JSON, with timings and figures")
    run.set_defaults(command=run_command)
    serve.add_parser(commands, common)
    profile.add_parser(commands, common, find_model, lambda parsed: offload_of(parsed, parsed.model))
    routing.add_parsers(commands, find_model)
    show.add_parser(commands, find_model)
    catalog.add_parser(commands)
    pull.add_parsers(commands)
    fit.add_parser(commands, find_model)
    doctor.add_parser(commands)
    setup.add_parser(commands)
    rpc_server.add_parser(commands)
    return parser


def _common_options() -> _Parser:
    common = _Parser(add_help=False)
    place = common.add_argument_group("placement of experts")
    place.add_argument("--device", help="auto, none, sim, or a ggml device such as CUDA0")
    place.add_argument("--rpc", metavar="HOST:PORT", help="use the device of ggml's RPC server on another machine")
    place.add_argument("--vram", metavar="SIZE", help="device memory for experts: auto, 6GiB, or 50%% (of the experts)")
    place.add_argument(
        "--policy", help="rule that chooses the experts on the device: adaptive, static, lru, lfu or off"
    )
    place.add_argument(
        "--cache", metavar="WHERE", help="storage of computed prompts: auto (RAM), off, or a folder (RAM and disk)"
    )
    model = common.add_argument_group("the model")
    add_context(model, f"{CONTEXT}; chat and demo: {AUTO}")
    model.add_argument("--threads", type=_positive, metavar="N", help="CPU threads that compute")
    model.add_argument(
        "--speculative",
        metavar="SOURCE",
        help="guess tokens and check several in a step: auto, off, mtp, ngram, or a small GGUF",
    )
    usual = f"longest answer in tokens ({MAX_TOKENS}; the rest of the context if the model thinks first)"
    model.add_argument("--max-tokens", type=_positive, metavar="N", help=usual)
    model.add_argument(
        "--temperature",
        type=_temperature,
        metavar="T",
        help="randomness of the choice of tokens; 0 always takes the likeliest token",
    )
    model.add_argument("--seed", type=int, metavar="N", help="seed of the choice of tokens")
    model.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    common.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    return common


def _thinking_options() -> _Parser:
    thinking = _Parser(add_help=False)
    group = thinking.add_argument_group("thinking")
    levels = f"amount of thinking, if the model's template has such a switch: {', '.join(LEVELS)}"
    group.add_argument("--think", choices=LEVELS, metavar="LEVEL", default="", help=levels)
    return thinking


def _chat_options() -> _Parser:
    chatting = _Parser(add_help=False)
    screen = chatting.add_argument_group("the chat")
    screen.add_argument("--resume", action="store_true", help="open the conversation that was used last")
    screen.add_argument(
        "--theme", choices=THEMES, default="auto", help="%(choices)s; 16 uses the terminal's own colours"
    )
    screen.add_argument(
        "--plain", action="store_true", help="chat line by line, for screen readers; always if TERM is dumb"
    )
    screen.add_argument("--serve", action="store_true", help="open the chat in a web browser, on this machine only")
    screen.add_argument("--served", action="store_true", help=argparse.SUPPRESS)  # --serve starts such a process
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


def _demo(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    if parsed.ask is None and can_chat(parsed):
        return open_chat(parsed, open_engine)
    question = DEMO_QUESTION if parsed.ask is None else parsed.ask
    return answer_once(parsed, open_engine, question, as_json=False)
