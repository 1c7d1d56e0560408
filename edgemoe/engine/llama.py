"""``Llama``: llama_cpp's class, with the experts of the model placed one by one."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from ..config import OffloadConfig, set_default
from ..errors import Cancelled, ComputeFailed, ConfigError, EdgeMoEError
from ..models.gguf import GgufFile
from ..planning.context import in_words
from ..planning.placement import slots_overhead
from ..types import Thinking
from . import host, lifetime, opening, third_tier
from .binding import NativeEngine
from .chat import DEFAULT, Chat, forgiving_templates
from .completion import Completion
from .contexts import Contexts
from .decoding import Decode, decode_rows
from .drafts import SNAPSHOTS, Drafts, Head, NGrams, SmallModel, Source, has_head
from .experts import Experts
from .hot_set import HotSet
from .keeper import Keeper, profile_folder
from .meter import Meter
from .opening import Attempt, Opening
from .prefix import Prefix, folder_of
from .routing import Routing
from .routing_log import RoutingLog
from .scheduler import Scheduler
from .signatures import shown_as
from .threads import Threads
from .tokenizer import Tokenizer
from .turns import Turn, Turns
from .watchdog import WATCHDOG_SAYS, BudgetChanged, Watchdog

# A third of the 200 ms in which an answer must stop. The checks for a stop come between graphs and between layers.
GRAPH_US = 60_000

# Longest wait, at the end, until a conversation is on the disk.
KEEP_SECONDS = 2.0

_COMPLETION = inspect.signature(llama_cpp.Llama.create_completion)
_GENERATE = inspect.signature(llama_cpp.Llama.generate)
_CHAT = inspect.signature(llama_cpp.Llama.create_chat_completion)


class Llama(llama_cpp.Llama):  # type: ignore[misc]
    """A drop-in for ``llama_cpp.Llama`` that keeps hot experts on a device and cold ones on the CPU.

    Every keyword of ``llama_cpp.Llama`` works. ``n_ctx="auto"`` makes the context as long as the model was trained for,
    unless that costs much speed or memory; a note says what it costs. Five keywords have other defaults:

    - ``n_threads`` is the number of physical cores. With a device, one or two processors stay free for its copies.
      Fewer threads decode while other programs need the processors.
    - ``n_threads_batch`` is the number of processors; with a device it equals ``n_threads``.
    - ``n_gpu_layers`` puts the dense part on the device if there is one.
    - ``flash_attn`` is on for contexts of more than 8192 tokens and for quantised values, see ``OffloadConfig.flash``.
    - ``verbose`` is off.

    Only processors that this process may use count. llama.cpp's messages go to the logger ``edgemoe.llama``, with
    ``verbose=True`` also to stderr. An error that is a ``ValueError`` or ``RuntimeError`` in llama_cpp is one here,
    too.

    Several threads may use one model: each answer, or token of a stream, waits for its turn. If a program ends or
    closes the model, the computations of its other threads end. After a fork the child has to open the model anew.

    Args:
        model_path: a GGUF file; any shard opens the whole model.
        offload: placement of the experts, see ``OffloadConfig``.
        sequences: number of sequences that the context can hold, for ``edgemoe.engine.batching``.
        **keywords: as in ``llama_cpp.Llama``.

    Attributes:
        experts: placement and figures, see ``Experts``.
        contexts: further contexts of the model, see ``Contexts``.
        drafts: source of drafts and their counts, see ``Drafts``; None if there are no drafts.

    Raises:
        ModelNotFound: no such file, or a shard is missing.
        BadGguf: the file is damaged, or llama.cpp refuses it.
        UnsupportedModel: the file is sound, but llama.cpp does not run such a model.
        LoadFailed: the file is sound, but llama.cpp could not load it.
        ContextFailed: llama.cpp cannot make a context with these settings.
        DoesNotFit: there is no memory for the context, not even with the smallest placement.
        ValueError: llama_cpp refuses a setting.
        BackendMismatch: llama-cpp-python is too old, or a newer one has changed a part that the engine uses.
        ConfigError: a setting cannot be honoured.
    """

    _process = 0  # the process that opened the model; 0 before that
    _seeded = False  # the answer under way has a seed of its caller

    @shown_as(llama_cpp.Llama.__init__)
    def __init__(
        self, model_path: str | Path, *, offload: OffloadConfig | None = None, sequences: int = 1, **keywords: Any
    ) -> None:
        """Load the model; resident experts are filled in the background while it already answers."""
        self._process, self._closing = os.getpid(), contextlib.ExitStack()
        self._offload, self._given, self._asked_context = offload, frozenset(keywords), keywords.get("n_ctx")
        self._sequences = sequences
        config = offload or OffloadConfig()
        file = opening.read(model_path, bool(keywords.get("vocab_only")))
        core = host.core()
        if config.device == "sim":
            core.configure_sim(config.sim)
        with contextlib.ExitStack() as closing:
            if config.speculative == "mtp" and not has_head(file):
                raise ConfigError(f"{file.path.name} has no MTP head that can run", "speculative='ngram' needs none")
            small = _small_model(file, config, keywords, closing)  # before the free memory is divided
            prepared = opening.prepare(file, config, keywords, sequences)
            warnings = opening.announce(prepared)
            self._native, attempt = self._load(prepared, closing)
            self._start(prepared, attempt, small, closing)
            self._closing = closing.pop_all()
        self.experts.notes += self._notes(prepared, attempt, warnings)

    def _load(self, prepared: Opening, closing: contextlib.ExitStack) -> tuple[NativeEngine, Attempt]:
        """Load by the first placement that the machine has room for; ``closing`` frees the model."""
        if prepared.config.pin:  # ggml's CUDA backend pins foreign memory only if this is set
            set_default("GGML_CUDA_REGISTER_HOST", "1")
        for attempt in prepared.attempts:
            complaints: list[str] = []
            try:
                native = self._try(prepared, attempt, complaints)
            except ValueError as error:
                made = self.__dict__.pop("_model", None) is not None
                if attempt is prepared.attempts[-1] or not opening.out_of_memory(complaints):
                    raise opening.failure(prepared, attempt, error, complaints, made) from error
            else:
                break
        closing.callback(native.close)
        closing.callback(self._stack.close)  # frees the model of llama_cpp
        closing.callback(native.stop)  # copies end before the memory of the model goes
        if not prepared.vocab_only:
            shape = prepared.needs.shape if prepared.takes_experts else None
            expected = shape.expert_bytes if shape else ()
            if tuple(layer.expert_bytes for layer in native.layers()) != expected:
                name = prepared.file.path.name
                raise EdgeMoEError(f"{name}: llama.cpp did not hand its experts to the engine")
        return native, attempt

    def _try(self, prepared: Opening, attempt: Attempt, complaints: list[str]) -> NativeEngine:
        """Load by one placement; ``complaints`` gets the errors that llama.cpp logs."""
        config, slots = prepared.config, attempt.placement.stream_slots
        streamed = config.stream_tokens if slots else 0
        pins = config.pin and not third_tier.applies(prepared, attempt)
        pinned = opening.pin_bytes(prepared.needs, attempt.placement, prepared.machine) if pins else 0
        native = host.core().engine(prepared.device, config.prefill_tokens, streamed, pinned, slots, GRAPH_US)
        self._stack = contextlib.ExitStack()  # llama_cpp replaces it as soon as it begins
        on_device = prepared.on_device(attempt)
        try:
            native.set_blocks(max(1, prepared.file.run_blocks))
            if prepared.takes_experts and third_tier.applies(prepared, attempt):
                third_tier.read_dense(prepared.file)
                native.load_lazily()
            heads = config.speculative == "mtp"
            loading = host.loading(
                native,
                on_device=on_device,
                experts=prepared.takes_experts,
                sequences=self._sequences,
                head=() if heads else prepared.head_blocks,
                head_runs=heads,
                snapshots=0 if config.speculative in ("auto", "off") else SNAPSHOTS,
                verbose=prepared.verbose,
            )
            with lifetime.load_lock, forgiving_templates(), loading as errors:
                try:
                    super().__init__(str(prepared.file.path), **attempt.keywords)
                finally:
                    complaints += errors
        except BaseException:
            native.stop()
            self._stack.close()
            native.close()
            raise
        return native

    def _start(
        self, prepared: Opening, attempt: Attempt, small: SmallModel | None, closing: contextlib.ExitStack
    ) -> None:
        """Make the parts of an open model; ``closing`` ends them in reverse order."""
        native, config, verbose = self._native, prepared.config, prepared.verbose
        self._turns, self._inside, self._generating = Turns(native, verbose), False, False
        self._evaluated: int | None = None  # tokens of the latest eval
        self._owner: object | None = None  # the answer whose tokens the context holds
        self._on_device = prepared.on_device(attempt)
        states = 0 if config.cache == "off" else attempt.placement.states_bytes
        folder = None if prepared.vocab_only else folder_of(config.cache, self, prepared.identity, prepared.device)
        self._prefix = Prefix(weakref.proxy(self), states, prepared.keywords.get("swa_full") is not False, folder)
        closing.callback(self._prefix.close, KEEP_SECONDS)
        self.contexts = Contexts(self.model, self.context_params, native, self._on_device, verbose)
        closing.callback(self.contexts.close_all)
        self.drafts, self._row = self._open_drafts(prepared, small), -1
        self._open_chat(chosen=any(prepared.keywords.get(name) for name in ("chat_format", "chat_handler")))
        self._open_experts(prepared, attempt, closing)
        abort = ctypes.cast(host.core().abort_callback(), llama_cpp.ggml_abort_callback)
        with host.computing(verbose):
            llama_cpp.llama_set_abort_callback(self._ctx.ctx, abort, ctypes.c_void_p(native.handle))
        threads = None if "n_threads" in self._given else Threads(int(prepared.keywords["n_threads"]))
        head = self.drafts.source if self.drafts is not None and isinstance(self.drafts.source, Head) else None
        follow = head.follow if head is not None else None
        self._ctx.decode = Decode(host.core(), self._ctx.ctx, self._scheduler, verbose, threads, follow)
        closing.callback(lifetime.opened(self))
        closing.callback(self._turns.close)

    def _open_drafts(self, prepared: Opening, small: SmallModel | None) -> Drafts | None:
        """Open the source of drafts that the settings name, None for no drafts."""
        asked, automatic = prepared.config.speculative, prepared.config.speculative == "auto"
        if asked == "off" or prepared.vocab_only or self._sequences > 1:
            return None
        if automatic and prepared.config.synchronous:
            return None
        if self.draft_model is not None:
            if automatic:
                return None
            raise ConfigError(f"speculative={asked!r} and draft_model exclude each other", "leave one of them out")
        if small is not None:
            small.require_vocabulary_of(self)
        if not self._prefix.cuttable and not self._prefix.snapshots:
            return None
        source: Source = small if small is not None else self._open_head() if asked == "mtp" else NGrams()
        return Drafts(weakref.proxy(self), source)

    def _open_head(self) -> Head:
        kind = {"ctx_type": llama_cpp.LLAMA_CONTEXT_TYPE_MTP, "ctx_other": self.ctx, "n_rs_seq": 0}
        return Head(weakref.proxy(self), self.contexts.open(n_ctx=self.n_ctx(), **kind))

    def _open_experts(self, prepared: Opening, attempt: Attempt, closing: contextlib.ExitStack) -> None:
        """Give the experts their slots, a scheduler and a watchdog."""
        notes: list[str] = []
        native, config, needs = self._native, prepared.config, prepared.needs
        if prepared.vocab_only:
            notes.append("Only the vocabulary is loaded: there are no experts, and nothing can be computed.")
        elif needs.shape is None:
            notes.append("This model has no routed experts: it runs as in llama_cpp.")
        elif not prepared.takes_experts:
            notes.append(opening.NOT_TAKEN)
            needs = replace(needs, shape=None)
        tiered = needs.shape is not None and third_tier.applies(prepared, attempt)
        watch = third_tier.open_ram(native, prepared, attempt, notes) if tiered else None
        hot = HotSet(native, prepared.machine, needs, attempt.placement, notes)
        blocks = [layer.block for layer in native.layers()]
        log = RoutingLog(native, Routing(blocks, hot.shape.experts, hot.shape.used, config.prefill_tokens))
        keeper = Keeper(profile_folder(config), prepared.identity, hot.shape, notes)
        self._scheduler = Scheduler(native, hot, log, keeper, config, notes)
        closing.callback(self._scheduler.close)
        if watch is not None:
            self._scheduler.follow(watch)
            third_tier.fill(native, keeper.profile.heat if keeper.profile else None)
        self.experts = Experts(native, hot, self._scheduler, log, prepared, notes)
        if self._on_device and hot.is_whole:
            notes.append(f"Every expert has a place on {hot.device}: it computes as llama.cpp does.")
        if prepared.looks_ahead:
            self._scheduler.look_ahead(prepared.file)
        most = needs.expert_bytes + slots_overhead(hot.shape)
        self._watchdog = Watchdog(self._scheduler, most, _noting(notes), attempt.placement.staging_of(needs))
        closing.callback(self._watchdog.stop)
        if hot.device and hot.shape.layers:
            self._watchdog.start()

    def _notes(self, prepared: Opening, attempt: Attempt, warnings: list[str]) -> list[str]:
        """List sentences about limits and about the parts of the placement that were given up."""
        notes = []
        if prepared.chosen is not None and not prepared.vocab_only:
            notes.append(in_words(prepared.chosen, prepared.needs, self.experts.device))
        if prepared.device == "sim" and prepared.config.sim.compute_rate > 0:
            notes.append("The sim device only pretends to compute: the answers mean nothing.")
        if not prepared.vocab_only:
            notes += opening.limit_notes("n_threads" in self._given)
            notes += opening.idle_notes(prepared.device, prepared.config)
            # The hot set has noted already how many experts have a slot.
            planned = attempt.placement.reason_without("experts", *(["dense"] if attempt.note else []))
            locked = opening.lock_note(prepared.keywords, attempt.placement)
            notes += [note for note in (*warnings, attempt.note, planned, locked, self._draft_note(prepared)) if note]
        if (problem := self._chat.problem()) is not None and self._chat_format:
            notes.append(f"{problem}. Completions work; for a chat: {problem.hint}.")
        return notes

    def _draft_note(self, prepared: Opening) -> str:
        """Say why drafts that were asked for are off; empty if they are on."""
        if prepared.config.speculative in ("auto", "off") or self.drafts is not None:
            return ""
        if self._sequences > 1:
            return "No drafts: several answers share a step already."
        return "No drafts: the memory of this model cannot take tokens back."

    # ---- computing ----

    @shown_as(llama_cpp.Llama.eval)
    def eval(self, tokens: Sequence[int]) -> None:
        """Compute ``tokens`` after those computed before; see ``llama_cpp.Llama.eval``.

        Raises:
            Cancelled: ``cancel`` was called meanwhile.
        """
        with self._computing():
            self._owner = None  # the context holds other tokens now
            self._evaluated = len(tokens)
            if self._meter is not None and not self._generating:
                self._meter.reads_part(len(tokens))
            self._prefix.cut_back()
            at = 0
            for count in self._prefix.stops(len(tokens)):
                self._eval_noted(tokens[at : at + count])
                at += count

    def _eval_rows(self, tokens: Sequence[int]) -> None:
        """Compute ``tokens`` in one batch after those computed before, and keep the logits of each.

        Raises:
            Cancelled: ``cancel`` was called meanwhile.
        """
        with self._computing():
            self._owner = None
            self._evaluated = len(tokens)
            self._prefix.cut_back()
            self._eval_noted(tokens, rows=True)

    def _eval_noted(self, tokens: Sequence[int], rows: bool = False) -> None:
        try:
            self._eval_part(tokens, rows)
        except BaseException:
            self._prefix.failed()
            raise
        self._prefix.passed(len(tokens) if rows else 1)

    def _eval_part(self, tokens: Sequence[int], rows: bool = False) -> None:
        if self._turns.cancelled:
            raise Cancelled("cancelled")
        started = time.perf_counter_ns()
        try:
            if rows and not self._logits_all:
                decode_rows(self, tokens)
            else:
                super().eval(tokens)
        except ComputeFailed as error:
            if self._turns.cancelled:
                raise Cancelled("cancelled") from error
            raise
        finally:
            if self._meter is not None:
                self._meter.computed(time.perf_counter_ns() - started)

    @shown_as(llama_cpp.Llama.embed)
    def embed(self, *args: Any, **keywords: Any) -> Any:
        """As in ``llama_cpp.Llama``.

        Raises:
            Cancelled: ``cancel`` was called meanwhile.
        """
        if not self.context_params.embeddings:
            return super().embed(*args, **keywords)  # llama_cpp refuses the call
        with self._computing():
            self._owner = None
            try:
                return super().embed(*args, **keywords)
            except Exception as error:
                self.reset()  # llama_cpp has cleared the memory
                if self._turns.cancelled and isinstance(error, ComputeFailed):
                    raise Cancelled("cancelled") from error
                raise
            finally:
                self._prefix.forget()

    @shown_as(llama_cpp.Llama.generate)
    def generate(
        self, tokens: Sequence[int], *args: Any, **keywords: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As ``llama_cpp.Llama.generate``; ends early, without an error, after ``cancel``.

        Tokens that the context or a kept state holds are not computed again. Another answer may compute between two
        tokens of this one.
        """
        given = _GENERATE.bind(self, tokens, *args, **keywords)
        given.apply_defaults()
        options = dict(given.arguments)
        del options["self"]
        prompt = [int(token) for token in options.pop("tokens")]
        turn = self._turns.current or Turn()
        with contextlib.suppress(Cancelled):
            try:
                yield from self._generated(turn, prompt, options)
            finally:
                if turn.meter is None:
                    self._turns.finish(turn)

    def _generated(
        self, turn: Turn, prompt: list[int], options: dict[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        me = object()
        drafts = self._drafts_for(options)
        made: Any = None
        held: Any = None
        sampler: Any = None
        sent: Sequence[int] | None = None
        with contextlib.ExitStack() as closing:
            while True:
                with self._turns.taking(turn):
                    first = made is None
                    if first:
                        made, held = self._begun(drafts, prompt, options)
                        closing.enter_context(contextlib.closing(made))
                        known = len(held)  # tokens, without guesses of a draft model
                    elif self._owner is not me:
                        self._come_back(held, known - 1)
                        self._sampler, self._mirostat_mu = sampler
                        if drafts:
                            made.lost()
                    self._evaluated, self._generating = None, True
                    try:
                        token = made.send(sent)
                    except StopIteration:
                        return
                    finally:
                        self._generating = False
                    if not first and self._meter is not None and (drafts or self.draft_model):
                        self._meter.drafted(self._evaluated, 1 if drafts else 1 + len(sent or ()))
                    known += 1
                    self._owner, sampler = me, (self._sampler, self._mirostat_mu)
                    ended = llama_cpp.llama_vocab_is_eog(self._model.vocab, token) or token in self._ends
                    if self._meter is not None:
                        self._meter.sampled(counts=not ended)
                    held = self.input_ids[: self.n_tokens].copy() if self.draft_model else held
                if token in self._ends:  # llama_cpp looks for llama.cpp's own end tokens only
                    yield self.token_eos()
                    return
                sent = yield token
                if not self.draft_model:
                    held += [token] if drafts else [token, *(sent or ())]

    def _drafts_for(self, options: dict[str, Any]) -> Drafts | None:
        """Give the drafts of an answer: by default none if the same answer is expected each time.

        A batch rounds differently from single tokens, and measured times choose the size of a batch.
        """
        expected = options["temp"] <= 0 or self._seeded
        automatic = (self._offload or OffloadConfig()).speculative == "auto"
        return None if self.draft_model is not None or (automatic and expected) else self.drafts

    def _begun(self, drafts: Drafts | None, prompt: list[int], options: dict[str, Any]) -> tuple[Any, Any]:
        """Begin an answer; return the source of its tokens, and the tokens that the context holds after the first."""
        held = list(prompt)
        begun = prompt
        if not options["reset"]:
            held = [*self.input_ids[: self.n_tokens].tolist(), *prompt]
        elif self._holds_exactly(prompt):
            self._account(0, len(prompt))
            begun = [] if drafts else prompt
        else:
            reach = self._prefix.begin(prompt)
            self._account(len(prompt) - reach, reach)
            begun, options["reset"] = prompt[reach:], False
        return (drafts.answer(begun, options) if drafts else super().generate(begun, **options)), held

    def _come_back(self, held: Sequence[int], sure: int) -> None:
        """Make the context hold the tokens of this answer again, after another answer has computed.

        Args:
            held: the tokens of this answer. Without a draft model the next step computes the last token.
            sure: number of tokens that are no guesses. The others are computed again, because their logits are needed.
        """
        before = [int(token) for token in (held if self.draft_model else held[:-1])]
        reach = self._prefix.begin([*before[:sure], -1])
        self._generating = True
        try:
            self.eval(before[reach:]) if reach < len(before) else None
        finally:
            self._generating = False

    def _holds_exactly(self, tokens: Sequence[int]) -> bool:
        """Tell whether the context holds ``tokens`` and nothing else, with the logits of the last token."""
        # llama_cpp before 0.3.32 does not record this, so the last token is computed again.
        fresh = not getattr(self, "_requires_eval", True) and self.n_tokens == len(tokens)
        return fresh and bool((self.input_ids[: len(tokens)] == tokens).all())

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Take a turn for a computation outside an answer; within an answer, do nothing."""
        if self._turns.current is not None:
            yield
            return
        turn = Turn()
        try:
            with self._turns.taking(turn):
                yield
        finally:
            self._turns.finish(turn)

    @property
    def _meter(self) -> Meter | None:
        turn = self._turns.current
        return turn.meter if turn is not None else None

    def _account(self, computed: int, cached: int) -> None:
        if self._meter is not None:
            self._meter.reads(computed, cached)

    def load_state(self, state: Any) -> None:
        """As in ``llama_cpp.Llama``."""
        try:
            super().load_state(state)
        finally:
            self._prefix.forget()
            self._owner = None

    def reset(self) -> None:
        """As in ``llama_cpp.Llama``."""
        super().reset()
        self._prefix.forget()

    def keep(self) -> None:
        """Write the conversation in the context to the folder of ``OffloadConfig.cache``, where there is one.

        The conversation is copied now, and written in the background. ``close`` does the same, and waits.
        """
        with self._computing():
            self._prefix.keep()

    def forget(self) -> None:
        """Compute every later prompt anew. Call it after you have set another adapter or control vector."""
        with self._computing():
            self._prefix.void()

    @property
    def _known(self) -> int:
        """Count the tokens that llama_cpp may see: at least one after a cancel, because it reads the last token."""
        return max(int(self.n_tokens), 1 if self._turns.cancelled else 0)

    def _last_logits(self) -> Any:
        """Give the logits of the token that was just sampled, valid until the next computation."""
        row = llama_cpp.llama_get_logits_ith(self.ctx, self._row)
        return np.ctypeslib.as_array(row, shape=(self.n_vocab(),))

    @property
    def _input_ids(self) -> Any:
        return self.input_ids[: self._known]

    @property
    def _scores(self) -> Any:
        return self.scores[: self._known, :]

    def cancel(self) -> None:
        """Stop the answers under way, prefill included; generated text stays. From any thread."""
        self._turns.cancel()

    # ---- answers with accounts ----

    @shown_as(llama_cpp.Llama.create_completion)
    def create_completion(self, *args: Any, **keywords: Any) -> Any:
        """As in ``llama_cpp.Llama``, with ``timings`` and ``edgemoe`` in the answer or its last chunk.

        A special token given as a ``stop`` string stops, too.
        """
        return self._accounted(self._complete, args, keywords)

    def _complete(self, *args: Any, **keywords: Any) -> Any:
        ends = self._chat.stops(_COMPLETION.bind_partial(self, *args, **keywords).arguments.get("stop"))
        with self.speaking(frozenset(), ends):
            completion = super().create_completion(*args, **keywords)
        return completion if isinstance(completion, dict) else self.spoken(completion, frozenset(), ends)

    def _create_completion(self, *args: Any, **keywords: Any) -> Iterator[dict[str, Any]]:
        """Run the loop below llama_cpp's ``create_completion``."""
        given = _COMPLETION.bind(self, *args, **keywords)
        given.apply_defaults()
        return Completion(*given.args[:1], **dict(list(given.arguments.items())[1:])).run()

    @shown_as(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(
        self,
        messages: Sequence[Any],
        *args: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        **keywords: Any,
    ) -> Any:
        """Answer a chat as ``llama_cpp.Llama`` does, in the model's own format.

        The answer carries the model's thinking in ``reasoning_content`` and its calls in ``tool_calls``. The deltas of
        a stream carry both, too, each call whole; the last chunk has ``timings`` and ``edgemoe``. Messages may be in
        any of OpenAI's forms. If you choose ``chat_format`` or ``chat_handler``, llama_cpp alone reads the answer.

        Args:
            messages: the conversation.
            *args: as in ``llama_cpp.Llama``.
            chat_template_kwargs: keywords of the model's template, such as ``{"enable_thinking": False}``.
            reasoning_effort: amount of thinking: ``low``, ``medium``, ``high``, ``on``, or ``off`` (``none``). Only the
                levels in ``Llama.thinking.levels`` have an effect.
            **keywords: as in ``llama_cpp.Llama``.

        Raises:
            BadMessages: the messages hold parts that the model cannot read, or its template refuses them.
            BadTemplate: the model's template is broken; another ``chat_format`` works.
        """
        name = self.chat_format
        if self.chat_handler is None and (name == self._chat_format or name in self._chat.known):
            given = _CHAT.bind(self, messages, *args, **keywords).arguments
            del given["self"]
            template = name if name in self._chat.known else DEFAULT
            asked = {"chat_template_kwargs": chat_template_kwargs, "reasoning_effort": reasoning_effort}
            return self._accounted(self._chat.complete, (template,), given | asked)
        if chat_template_kwargs or reasoning_effort:
            raise ConfigError("only a model's own template takes keywords", "leave chat_format and chat_handler out")
        return self._accounted(super().create_chat_completion, (messages, *args), keywords)

    def _open_chat(self, chosen: bool) -> None:
        """Read the model's templates. ``chosen``: the user has chosen another chat format."""
        self._chat, self._ends = Chat(self), frozenset[int]()
        self._chat_format = self.chat_format if not chosen and DEFAULT in self._chat.known else None
        usual: Any = getattr(self, "tokenizer_")  # noqa: B009 (llama_cpp is not typed)
        if type(usual) is llama_cpp.LlamaTokenizer:  # none was given
            self.tokenizer_ = Tokenizer(self)

    @property
    def thinking(self) -> Thinking:
        """Tell how the model thinks, by its chat template."""
        return self._chat.thinking() if self._chat_format else Thinking()

    @contextlib.contextmanager
    def speaking(self, spelled: frozenset[int], ends: frozenset[int]) -> Iterator[None]:
        """Within the block, spell the control tokens ``spelled`` as text, and let the tokens ``ends`` end an answer."""
        tokenizer: Any = self.tokenizer_
        before, spelled_before = self._ends, getattr(tokenizer, "spelled", frozenset[int]())
        self._ends = before | ends
        tokenizer.spelled = spelled_before | spelled
        try:
            yield
        finally:
            self._ends, tokenizer.spelled = before, spelled_before

    def spoken(self, chunks: Iterator[Any], spelled: frozenset[int], ends: frozenset[int]) -> Iterator[Any]:
        """Yield ``chunks``; make each chunk as in ``speaking``, because other answers may come between two chunks."""
        with contextlib.closing(chunks):  # type: ignore[type-var]
            while True:
                with self.speaking(spelled, ends):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk

    def _accounted(self, create: Any, args: Any, keywords: Any) -> Any:
        if self._inside and self._turns.current is not None:  # a chat calls a completion: the chat has the account
            return create(*args, **keywords)
        meter = Meter(self._native, self.experts.device, self._on_device)
        turn = Turn(meter)
        try:
            with self._turns.taking(turn), self._outermost():
                meter.start()
                answer = create(*args, **keywords)
                if isinstance(answer, dict):
                    return self._finish(turn, answer)
        finally:
            self._turns.finish(turn)
        return self._stream(turn, answer)

    @contextlib.contextmanager
    def _outermost(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _stream(self, turn: Turn, chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        assert turn.meter is not None
        turn.meter.start()
        try:
            while True:
                with self._turns.taking(turn), self._outermost():
                    chunk = next(chunks, None)
                    if chunk is None:
                        return
                    if chunk["choices"][0].get("finish_reason"):
                        chunk = self._finish(turn, chunk)
                with turn.meter.waiting():
                    yield chunk
        finally:
            if self._turns.open:
                with self._turns.taking(turn), self._outermost():
                    chunks.close()  # type: ignore[attr-defined]
            self._turns.finish(turn)

    def _finish(self, turn: Turn, answer: dict[str, Any]) -> dict[str, Any]:
        assert turn.meter is not None
        if turn.cancelled:
            answer["choices"][0]["finish_reason"] = "stop"
        return answer | turn.meter.receipt()

    # ---- the end ----

    def close(self) -> None:
        """Keep the routing profile and the conversation, stop uploads, free the model."""
        if self._process == os.getpid():  # after a fork the memory is a copy of another process's
            self._closing.close()

    def leave(self, seconds: float, others: bool) -> None:
        """Stop and keep the routing profile, because the program ends.

        Args:
            seconds: how long to wait for other threads that compute.
            others: other threads may still hold the model, so that its memory stays.
        """
        alone = self._turns.leave(seconds)
        if alone and not others:
            self.close()
            return
        lifetime.keep_for_good(self)
        self._watchdog.stop()
        self._scheduler.keep(tables=alone)
        if alone:
            self._native.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Return the keywords that open this model again; the placement is planned anew unless it was given."""
        state: dict[str, Any] = super().__getstate__()
        planned = {"n_gpu_layers", "offload_kqv", "op_offload", "n_threads", "n_threads_batch"}
        planned = (planned | {"flash_attn", "type_k", "type_v"}) - self._given
        if self._asked_context == opening.AUTO:
            state["n_ctx"] = opening.AUTO
        if self._chat_format and state["chat_format"] == self._chat_format:
            planned |= {"chat_format"}
        return {name: value for name, value in state.items() if name not in planned} | {
            "offload": self._offload,
            "sequences": self._sequences,
        }


def _small_model(
    file: GgufFile, config: OffloadConfig, keywords: Mapping[str, Any], closing: contextlib.ExitStack
) -> SmallModel | None:
    """Open the draft model that the settings name, None without one; ``closing`` closes it."""
    path = config.draft_path
    if path is None or keywords.get("vocab_only"):
        return None
    asked, trained = opening.context_of(file, keywords), opening.read(path, False).number("context_length")
    offload = replace(config, policy="off", profile="off", cache="off", speculative="off")
    threads = {name: keywords[name] for name in ("n_threads", "n_threads_batch") if name in keywords}
    small = SmallModel(Llama(path, offload=offload, n_ctx=min(asked, trained or asked), **threads))
    closing.callback(small.close)
    return small


def _noting(notes: list[str]) -> Callable[[BudgetChanged], None]:
    """Return a function that notes the latest resize in place of the one before; it does not hold the model alive."""

    def note(event: BudgetChanged) -> None:
        notes[:] = [note for note in notes if not note.startswith(WATCHDOG_SAYS)] + [event.sentence]

    return note
