"""A seat: the view on a model through which one of several answers is made.

`Chat` and `Completion` see a seat as they see a model. The seat has its own sampler, seed, special tokens and account;
its tokens come from `Batching`. Each seat belongs to one thread; ``cancel`` may come from any thread.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..errors import BadTemplate, ConfigError
from ..types import FloatArray, IdArray
from .batching import Answer, Batching
from .chat import DEFAULT, Chat
from .completion import Completion
from .meter import Meter
from .tokenizer import Tokenizer

_COMPLETION = inspect.signature(llama_cpp.Llama.create_completion)


class Seat:
    """Makes one answer of a model that makes several at once."""

    cache = draft_model = None
    tokenize, detokenize = llama_cpp.Llama.tokenize, llama_cpp.Llama.detokenize
    set_seed, _init_sampler = llama_cpp.Llama.set_seed, llama_cpp.Llama._init_sampler

    def __init__(self, batching: Batching) -> None:
        """Take a view; nothing is computed yet."""
        self._batching, self._llm = batching, batching.llm
        self._seed = self._llm._seed
        self.tokenizer_ = Tokenizer(self)
        self._chat: Chat = self._llm._chat.through(self)
        self._ends = frozenset[int]()
        self._most, self._with_logits = 0, False
        self._meter = Meter(self._llm._native, self._llm.experts.device, self._llm._on_device)
        self._answer: Answer | None = None
        self._row: FloatArray | None = None
        self._cancelled = False

    def __getattr__(self, name: str) -> Any:
        """Give everything else as the model has it."""
        return getattr(self._llm, name)

    def cancel(self) -> None:
        """End the answer; its text so far stays. From any thread."""
        self._cancelled = True
        if self._answer is not None:
            self._batching.leave(self._answer)
            self._answer.queue.put(None)

    def chat(self, messages: Sequence[Any], **given: Any) -> Iterator[dict[str, Any]]:
        """Yield an OpenAI chat completion, or its chunks with ``stream=True``; see ``Llama.create_chat_completion``.

        Raises:
            BadTemplate: the model has no chat template, or a broken one.
        """
        if DEFAULT not in self._chat.known:
            raise BadTemplate("this model has no chat template", "/v1/completions works")
        self._meter.start()
        return self._receipted(self._chat.complete(DEFAULT, messages, **given))

    def complete(self, **given: Any) -> Iterator[dict[str, Any]]:
        """Yield an OpenAI completion, or its chunks with ``stream=True``; see ``Llama.create_completion``."""
        self._meter.start()
        return self._receipted(self.create_completion(**given))

    def _receipted(self, made: Any) -> Iterator[dict[str, Any]]:
        if isinstance(made, dict):
            yield self._finished(made)
            return
        with contextlib.closing(made) as chunks:
            for chunk in chunks:
                yield self._finished(chunk) if chunk["choices"][0].get("finish_reason") else chunk

    def _finished(self, answer: dict[str, Any]) -> dict[str, Any]:
        if self._cancelled:
            answer["choices"][0]["finish_reason"] = "stop"
        return answer | self._meter.receipt()

    # For Chat and Completion.

    def create_completion(self, **keywords: Any) -> Any:
        """Answer as ``llama_cpp.Llama.create_completion`` does."""
        bound = _COMPLETION.bind(self, **keywords)
        bound.apply_defaults()
        given = dict(bound.arguments)
        del given["self"]
        self._ends |= self._chat.stops(given["stop"])
        self._most, self._with_logits = given["max_tokens"] or 0, given["logprobs"] is not None
        completion = Completion(self, **given)
        self._check(completion.tokens, given["logit_bias"])
        made = completion.run()
        return made if given["stream"] else next(made)

    def _check(self, prompt: Sequence[int], bias: Mapping[Any, float] | None) -> None:
        """Refuse tokens that the model does not have: a batch with such a token would fail for all its answers.

        Raises:
            ConfigError: there is such a token, or no token at all.
        """
        if not prompt or list(prompt) == [self.token_bos()] == [-1]:
            raise ConfigError("the prompt is empty", "this model has no token that begins a text")
        given = [*prompt, *map(_number, bias or ())]
        if any(not 0 <= token < self.n_vocab() for token in given):
            raise ConfigError(f"a token is not one of the model's {self.n_vocab()}", "tokens belong to one model")

    @contextlib.contextmanager
    def speaking(self, spelled: frozenset[int], ends: frozenset[int]) -> Iterator[None]:
        """Spell the control tokens ``spelled`` as text, and let ``ends`` end the answer, from now on."""
        self.tokenizer_.spelled |= spelled
        self._ends |= ends
        yield

    def spoken(self, chunks: Iterator[Any], spelled: frozenset[int], ends: frozenset[int]) -> Iterator[Any]:
        """Give ``chunks``: a seat makes no other answer in between."""
        return chunks

    def generate(self, tokens: Sequence[int], *, stopping_criteria: Any = None, **sampling: Any) -> Iterator[int]:
        """Yield the tokens of the answer as they are computed; end early after ``cancel``."""
        room = self.n_ctx() - len(tokens)
        most = min(self._most, room) if self._most > 0 else room
        sampler = self._init_sampler(**sampling)
        answer = Answer(list(tokens), sampler, self._ends, most, self._meter, self._with_logits)
        self._answer = answer
        if not self._cancelled:
            self._batching.join(answer)
        try:
            for count in itertools.count(1):
                if self._cancelled or (made := answer.queue.get()) is None:
                    return
                if isinstance(made, Exception):
                    raise made
                token, self._row = made
                yield self.token_eos() if token in self._ends else token
                if count >= most:
                    self._batching.more(answer)
        finally:
            self._batching.leave(answer)

    @property
    def _input_ids(self) -> IdArray:
        return np.asarray(self._answer.tokens if self._answer is not None else (), np.intc)

    def _last_logits(self) -> FloatArray:
        assert self._row is not None
        return self._row


def _number(text: Any) -> int:
    try:
        return int(text)
    except ValueError:
        return -1
