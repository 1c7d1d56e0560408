"""``Llama``: llama_cpp's class, with the experts of the model placed one by one."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from .. import limits
from ..config import Budget, OffloadConfig
from ..errors import Cancelled, ComputeFailed, ConfigError, EdgeMoEError
from ..models.gguf import GgufFile, check, check_weights, model_identity, moe_shape
from ..models.page_cache import Residence
from ..planning import model_needs
from ..planning.placement import LAYER_OVERHEAD, MachineRates
from ..types import ModelShape, Thinking
from . import host, lifetime, opening
from .binding import NativeEngine
from .chat import DEFAULT, Chat, forgiving_templates
from .completion import Completion
from .decoding import Decode
from .experts import Experts
from .meter import Meter
from .prefix import Prefix, folder_of
from .signatures import shown_as
from .tokenizer import Tokenizer
from .turns import Turn, Turns
from .watchdog import WATCHDOG_SAYS, BudgetChanged, Watchdog

GRAPH_US = 60_000  # a third of the 200 ms within which an answer stops: layers between two checks are short

# At the end, for a conversation to be on the disk.
KEEP_SECONDS = 2.0

_COMPLETION = inspect.signature(llama_cpp.Llama.create_completion)
_GENERATE = inspect.signature(llama_cpp.Llama.generate)
_CHAT = inspect.signature(llama_cpp.Llama.create_chat_completion)


class Llama(llama_cpp.Llama):  # type: ignore[misc]
    """A drop-in for ``llama_cpp.Llama`` that keeps hot experts on a device and cold ones on the CPU.

    Every keyword of ``llama_cpp.Llama`` works. Three have other defaults: ``n_threads`` is the number of physical
    cores, less one or two for the copies of a device; ``n_gpu_layers`` puts the dense part on the device if there is
    one; ``verbose`` is off. llama.cpp's messages go to the logger ``edgemoe.llama``, and with ``verbose=True`` to
    stderr, too. Errors that llama_cpp raises as a ``ValueError`` or ``RuntimeError`` have these types here, too.

    Several threads may use one model: each answer, or token of a stream, waits for its turn. A program that ends, or
    closes the model, ends the computations of other threads. After a fork the child has to open the model anew.

    Args:
        model_path: a GGUF file; any shard opens the whole model.
        offload: placement of the experts, see ``OffloadConfig``.
        **keywords: as in ``llama_cpp.Llama``.

    Attributes:
        experts: placement and figures, see ``Experts``.

    Raises:
        ModelNotFound: no such file, or a shard is missing.
        BadGguf: the file is damaged, or llama.cpp refuses it.
        UnsupportedModel: the file is sound, but llama.cpp does not run such a model.
        LoadFailed: the file is sound, but llama.cpp could not load it.
        ContextFailed: llama.cpp cannot make a context with these settings.
        DoesNotFit: there is no memory for the context, not by any smaller plan either.
        ValueError: llama_cpp refuses a setting.
        BackendMismatch: llama-cpp-python is not the tested version.
        ConfigError: a setting cannot be honoured.
    """

    @shown_as(llama_cpp.Llama.__init__)
    def __init__(self, model_path: str | Path, *, offload: OffloadConfig | None = None, **keywords: Any) -> None:
        """Load the model; resident experts are filled in the background while it already answers."""
        self._native: NativeEngine | None = None
        self._offload, self._given = offload, frozenset(keywords)
        config = offload or OffloadConfig()
        file = check(opening.existing(model_path))
        vocab_only = bool(keywords.get("vocab_only"))
        if not vocab_only:
            check_weights(file)
        core = host.core()
        device = "" if vocab_only else opening.resolve_device(config, keywords)
        if device == "sim":
            core.configure_sim(config.sim)
            if config.sim.compute_rate and keywords.setdefault("n_gpu_layers", 0) != 0:
                raise ConfigError("a sim device that only pretends has no layers to compute", "leave n_gpu_layers out")
        keywords.setdefault("n_threads", opening.default_threads(bool(device)))
        if device:
            keywords.setdefault("n_threads_batch", keywords["n_threads"])
        keywords.setdefault("verbose", False)
        shape = None if vocab_only else moe_shape(file)
        machine = opening.machine_of(device)
        attempt, said = self._load(file, config, machine, shape, keywords)
        placed, keywords = attempt.plan, attempt.keywords
        native, verbose = self._native_engine(), bool(keywords["verbose"])
        self._turns, self._inside, self._generating = Turns(native, verbose), False, False
        self._evaluated: int | None = None  # tokens of the latest eval
        self._owner: object | None = None  # the answer whose tokens the context holds
        self._on_device = on_device = bool(device) and keywords["n_gpu_layers"] != 0
        states, identity = 0 if config.cache == "off" else placed.states_bytes, model_identity(file)
        folder = None if vocab_only else folder_of(config.cache, self, identity, device)
        self._prefix = Prefix(weakref.proxy(self), states, keywords.get("swa_full") is not False, folder)
        self._open_chat(chosen=any(keywords.get(name) for name in ("chat_format", "chat_handler")))
        # The stack closes in reverse: copies stop before the model's memory goes.
        self._stack.callback(native.stop)
        if shape is not None and not native.layers() and opening.takes_experts(file, device):
            raise EdgeMoEError(f"{file.path.name}: llama.cpp did not hand its experts to the engine")
        spare = placed.staging_of(opening.needs_of(file, keywords))
        self.experts = Experts(native, config, device, opening.top_k(file, keywords), identity, spare)
        self.experts.free_before = (machine.device_free_bytes, machine.ram_free_bytes)
        if shape is not None and self.experts.shape is None:
            self.experts.notes[:] = [opening.NOT_TAKEN]
        if vocab_only:
            self.experts.notes[:] = [
                "Only the vocabulary is loaded: there are no experts, and nothing can be computed."
            ]
        elif keywords.get("use_mmap", True):
            self.experts.residence = Residence.of_experts(file)
        if on_device and shape is not None and all(layer.slots == layer.experts for layer in native.layers()):
            self.experts.notes.append(f"Every expert has a place on {device}: it computes as llama.cpp does.")
        if device == "sim" and config.sim.compute_rate > 0:
            self.experts.notes.append("The sim device only pretends to compute: the answers mean nothing.")
        spare_core = limits.processors().logical > int(keywords["n_threads"] or 1)
        if config.prefetch == "lookahead" or (config.prefetch == "auto" and spare_core):
            self.experts.look_ahead(file)
        if not vocab_only:
            self.experts.notes += opening.limit_notes("n_threads" in self._given)
        # The experts have their places by now, and say themselves how many.
        planned = placed.reason_without("experts", *(["dense"] if attempt.note else []))
        self.experts.notes += [note for note in (said, attempt.note, planned) if note and not vocab_only]
        if (problem := self._chat.problem()) is not None and self._chat_format:
            self.experts.notes.append(f"{problem}. Completions work; for a chat: {problem.hint}.")
        abort = ctypes.cast(core.abort_callback(), llama_cpp.ggml_abort_callback)
        with host.computing(verbose):
            llama_cpp.llama_set_abort_callback(self._ctx.ctx, abort, ctypes.c_void_p(native.handle))
        self._ctx.decode = Decode(core, self._ctx.ctx, self.experts, verbose)
        lifetime.opened(self)
        hot = _HotSet(native, self.experts)
        self._watchdog = Watchdog(
            hot, model_needs.of(file).expert_bytes + hot.overhead, _noting(self.experts.notes), spare
        )
        if device and shape is not None:
            self._watchdog.start()

    def _load(
        self,
        file: GgufFile,
        config: OffloadConfig,
        machine: MachineRates,
        shape: ModelShape | None,
        keywords: dict[str, Any],
    ) -> tuple[opening.Attempt, str]:
        """Load by the first plan that the machine has room for; returns it, and what was said before."""
        core, model = host.core(), opening.needs_of(file, keywords)
        said = opening.announce_logits(file, model, keywords, machine.ram_total_bytes)
        pin, taken = config.pin and opening.can_pin(shape), opening.takes_experts(file, machine.device)
        head = range(file.run_blocks, file.run_blocks + file.mtp_blocks)
        plans = list(opening.attempts(file, model, config, machine, keywords))
        for number, attempt in enumerate(plans, 1):
            slots = attempt.plan.stream_slots
            streamed = config.stream_tokens if slots else 0
            native = core.engine(machine.device, config.prefill_tokens, streamed, pin, slots, GRAPH_US)
            self._native = native
            native.set_blocks(max(1, file.run_blocks))
            complaints: Sequence[str] = ()
            on_device = bool(machine.device) and attempt.keywords.get("n_gpu_layers") != 0
            loading = host.loading(
                native, on_device=on_device, experts=taken, head=head, verbose=bool(keywords["verbose"])
            )
            try:
                with lifetime.load_lock, forgiving_templates(), loading as complaints:
                    super().__init__(str(file.path), **attempt.keywords)
                break
            except ValueError as error:
                made = getattr(self, "_model", None) is not None
                self._free_native()
                if number == len(plans) or not opening.out_of_memory(complaints):
                    raise opening.failure(file, error, complaints, made, attempt, model, machine) from error
                self.__dict__.pop("_model", None)
            except BaseException:
                self._free_native()
                raise
        return attempt, said

    # ---- computing ----

    @shown_as(llama_cpp.Llama.eval)
    def eval(self, tokens: Sequence[int]) -> None:
        """Compute ``tokens`` after those computed before; see ``llama_cpp.Llama.eval``.

        Raises:
            Cancelled: ``cancel`` was called meanwhile.
        """
        with self._computing():
            self._owner = None  # of what the context holds now
            self._evaluated = len(tokens)
            if self._meter is not None and not self._generating:
                self._meter.reads_part(len(tokens))
            self._prefix.cut_back()
            at = 0
            for count in self._prefix.stops(len(tokens)):
                try:
                    self._eval_part(tokens[at : at + count])
                except BaseException:
                    self._prefix.failed()
                    raise
                self._prefix.passed()
                at += count

    def _eval_part(self, tokens: Sequence[int]) -> None:
        if self._turns.cancelled:
            raise Cancelled("cancelled")
        started = time.perf_counter_ns()
        try:
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
            return super().embed(*args, **keywords)  # which refuses it
        with self._computing():
            self._owner = None
            try:
                return super().embed(*args, **keywords)
            except Exception as error:
                self.reset()  # the memory was cleared on the way
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

        Of ``tokens`` those are not computed again that the context holds, or a state that was kept of it. Another
        answer may compute between two tokens of this one.
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
        held: Any = list(prompt)  # what the context holds of this answer: with a draft model a copy of its tokens
        with self._turns.taking(turn):
            begun, reset = prompt, options["reset"]
            if not reset:
                held = [*self.input_ids[: self.n_tokens].tolist(), *prompt]
            elif self._holds_exactly(prompt):
                self._account(0, len(prompt))
            else:
                reach = self._prefix.begin(prompt)
                self._account(len(prompt) - reach, reach)
                begun, options["reset"] = prompt[reach:], False
            made = super().generate(begun, **options)
        sent: Sequence[int] | None = None
        sampler: Any = None
        known = len(held)  # tokens that are no guesses of a draft model
        with contextlib.closing(made):
            while True:
                with self._turns.taking(turn):
                    if sampler is not None and self._owner is not me:
                        self._come_back(held, known - 1)
                        self._sampler, self._mirostat_mu = sampler
                    self._evaluated, self._generating = None, True
                    try:
                        token = made.send(sent)
                    except StopIteration:
                        return
                    finally:
                        self._generating = False
                    if sampler is not None and self._meter is not None and self.draft_model:
                        self._meter.drafted(self._evaluated, 1 + len(sent or ()))
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
                    held += [token, *(sent or ())]

    def _come_back(self, held: Sequence[int], sure: int) -> None:
        """Another answer has computed meanwhile: make the context hold what this one had computed.

        Args:
            held: the tokens; without a draft model the last one is computed by whoever goes on.
            sure: of these, the ones that are no guesses; logits of the others are needed once more.
        """
        before = [int(token) for token in (held if self.draft_model else held[:-1])]
        reach = self._prefix.begin([*before[:sure], -1])
        self._generating = True
        try:
            self.eval(before[reach:]) if reach < len(before) else None
        finally:
            self._generating = False

    def _holds_exactly(self, tokens: Sequence[int]) -> bool:
        """The context has just computed ``tokens`` and nothing else: their logits are there."""
        fresh = not self._requires_eval and self.n_tokens == len(tokens)
        return fresh and bool((self.input_ids[: len(tokens)] == tokens).all())

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """A turn for a computation outside an answer; within one, nothing."""
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

        It is copied now and written in the background. ``close`` does the same and waits for it.
        """
        with self._computing():
            self._prefix.keep()

    def forget(self) -> None:
        """Never use again what was computed up to now. Call it after you have set another adapter or control vector."""
        with self._computing():
            self._prefix.void()

    @property
    def _known(self) -> int:
        """Tokens to show llama_cpp: one at least where a cancel came before the first, for it looks at the last one."""
        return max(int(self.n_tokens), 1 if self._turns.cancelled else 0)

    @property
    def _input_ids(self) -> Any:
        return self.input_ids[: self._known]

    @property
    def _scores(self) -> Any:
        return self.scores[: self._known, :]

    def cancel(self) -> None:
        """Stop the answers under way, prefill included; what was generated stays. From any thread."""
        self._turns.cancel()

    # ---- answers with accounts ----

    @shown_as(llama_cpp.Llama.create_completion)
    def create_completion(self, *args: Any, **keywords: Any) -> Any:
        """As in ``llama_cpp.Llama``, with ``timings`` and ``edgemoe`` in the answer or its last chunk.

        A special token given as a ``stop`` string stops, too.
        """
        return self._accounted(self._complete, args, keywords)

    def _complete(self, *args: Any, **keywords: Any) -> Any:
        stop = _COMPLETION.bind_partial(self, *args, **keywords).arguments.get("stop") or ()
        texts = [stop] if isinstance(stop, str) else stop
        ends = frozenset(token for text in texts if len(hidden := self._chat.hidden(text)) == 1 for token in hidden)
        with self.speaking(frozenset(), ends):
            completion = super().create_completion(*args, **keywords)
        return completion if isinstance(completion, dict) else self.spoken(completion, frozenset(), ends)

    def _create_completion(self, *args: Any, **keywords: Any) -> Iterator[dict[str, Any]]:
        """The loop below llama_cpp's ``create_completion``."""
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
                levels in ``thinking.levels`` have an effect.
            **keywords: as in ``llama_cpp.Llama``.

        Raises:
            BadMessages: the messages hold what the model cannot read, or its template refuses them.
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
        """Know the model's templates; ``chosen``: the user wants another format."""
        self._chat, self._ends = Chat(self), frozenset[int]()
        self._chat_format = self.chat_format if not chosen and DEFAULT in self._chat.known else None
        usual: Any = getattr(self, "tokenizer_")  # noqa: B009 (llama_cpp is not typed)
        if type(usual) is llama_cpp.LlamaTokenizer:  # none was given
            self.tokenizer_ = Tokenizer(self)

    @property
    def thinking(self) -> Thinking:
        """What the model's chat template knows of thinking."""
        return self._chat.thinking() if self._chat_format else Thinking()

    @contextlib.contextmanager
    def speaking(self, spelled: frozenset[int], ends: frozenset[int]) -> Iterator[None]:
        """Meanwhile the control tokens ``spelled`` come out as text, and the tokens ``ends`` end an answer."""
        tokenizer: Any = self.tokenizer_
        before, spelled_before = self._ends, getattr(tokenizer, "spelled", frozenset[int]())
        self._ends = before | ends
        tokenizer.spelled = spelled_before | spelled
        try:
            yield
        finally:
            self._ends, tokenizer.spelled = before, spelled_before

    def spoken(self, chunks: Iterator[Any], spelled: frozenset[int], ends: frozenset[int]) -> Iterator[Any]:
        """The same ``chunks``, each made as in ``speaking``: other answers may come between them."""
        with contextlib.closing(chunks):  # type: ignore[type-var]
            while True:
                with self.speaking(spelled, ends):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk

    def _accounted(self, create: Any, args: Any, keywords: Any) -> Any:
        if self._inside and self._turns.current is not None:  # a chat calls a completion: account for the outer one
            return create(*args, **keywords)
        meter = Meter(self._native_engine(), self.experts.device, self._on_device)
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

    def _native_engine(self) -> NativeEngine:
        if self._native is None:
            raise EdgeMoEError("the model is closed")
        return self._native

    # ---- the end ----

    def close(self) -> None:
        """Keep the routing profile, stop uploads, free the model."""
        turns = getattr(self, "_turns", None)
        if turns is not None:
            if not turns.ours:
                return  # the memory is a copy of another process's, whose threads are not here
            turns.close()
        lifetime.closed(self)
        if getattr(self, "_watchdog", None) is not None:
            self._watchdog.stop()
        if getattr(self, "_prefix", None) is not None and self._native is not None:
            self._prefix.keep()
        if getattr(self, "experts", None) is not None and self._native is not None:
            self.experts.close()
        if getattr(self, "_stack", None) is not None:
            super().close()
        self._free_native()
        if getattr(self, "_prefix", None) is not None:
            self._prefix.close(KEEP_SECONDS)

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
        self.experts.keep(learnt=alone)
        if alone:
            self._native_engine().stop()

    def __getstate__(self) -> dict[str, Any]:
        """Return the keywords that open this model again; the placement is planned anew unless it was given."""
        state: dict[str, Any] = super().__getstate__()
        planned = {"n_gpu_layers", "offload_kqv", "op_offload", "n_threads", "n_threads_batch"} - self._given
        if self._chat_format and state["chat_format"] == self._chat_format:
            planned |= {"chat_format"}
        return {name: value for name, value in state.items() if name not in planned} | {"offload": self._offload}

    def _free_native(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            native.stop()
            if getattr(self, "_stack", None) is not None:
                self._stack.close()
            native.close()


class _HotSet:
    """What the watchdog watches."""

    def __init__(self, native: NativeEngine, experts: Experts) -> None:
        self._native, self._experts = native, experts
        self.overhead = (experts.shape.layers if experts.shape else 0) * LAYER_OVERHEAD

    def automatic(self) -> bool:
        return self._experts.automatic

    def memory(self) -> tuple[int, int]:
        return self._native.device_memory()

    def held(self) -> int:
        return self._native.stats().slot_bytes

    def resize(self, vram: int) -> int:
        return self._experts.adapt(Budget(bytes=max(0, vram - self.overhead)))


def _noting(notes: list[str]) -> Callable[[BudgetChanged], None]:
    """Says what the watchdog did; what it said before is no longer true. It must not hold the model alive."""

    def note(event: BudgetChanged) -> None:
        notes[:] = [note for note in notes if not note.startswith(WATCHDOG_SAYS)] + [event.sentence]

    return note
