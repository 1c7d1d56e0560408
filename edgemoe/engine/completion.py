"""One text completion, token by token: the loop below ``create_completion``.

The answers are those of llama_cpp's loop. This loop differs in four points: it spells a token's text once, looks for a
stop string in the new text only, loses no byte, and keeps logits only for tokens with probabilities in the answer.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from ..types import FloatArray
from .wording import Wording

_SAMPLING = (
    *("top_k", "top_p", "min_p", "typical_p", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta"),
    *("frequency_penalty", "presence_penalty", "repeat_penalty", "stopping_criteria", "grammar"),
)


@dataclass
class _Logprobs:
    """Hold OpenAI's lists, a row for each token."""

    tokens: list[str] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)

    def taken(self) -> dict[str, Any] | None:
        """Give the rows so far and forget them; None if there are no rows."""
        if not self.tokens:
            return None
        rows = {name: list(getattr(self, name)) for name in self.__dataclass_fields__}
        for name in rows:
            getattr(self, name).clear()
        return rows


class Completion:
    """One completion of one model; the parameters are those of ``llama_cpp.Llama.create_completion``."""

    def __init__(self, llm: Any, prompt: Any, suffix: str | None, **given: Any) -> None:
        """Check the request; nothing is computed yet.

        Raises:
            ValueError: the prompt does not fit the context, or probabilities cannot be had.
        """
        self._llm, self._given = llm, given
        self._prompt, self._suffix = prompt, suffix
        self._tokens = _prompt_tokens(llm, prompt, suffix)
        self._identity = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": given["model"] if given["model"] is not None else llm.model_path,
        }
        context, count = llm.n_ctx(), len(self._tokens)
        if count >= context:
            raise ValueError(f"Requested tokens ({count}) exceed context window of {context}")
        asked, room = given["max_tokens"], context - count
        self._most = min(asked, room) if asked is not None and asked > 0 else room
        self._echoed = bool(given["echo"])
        if given["logprobs"] is not None and self._echoed and not llm._logits_all:
            raise ValueError("logprobs of the prompt need a model created with logits_all=True")
        if self._tokens[:2] == [llm.token_bos()] * 2:
            text = llm._model.token_get_text(llm.token_bos())
            warnings.warn(f"the prompt begins with {text!r} twice, which makes answers worse", RuntimeWarning, 4)

    @property
    def tokens(self) -> list[int]:
        """Give the tokens of the prompt."""
        return self._tokens

    def run(self) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a stream, or the one whole completion."""
        given, llm = self._given, self._llm
        stream, wanted = bool(given["stream"]), given["logprobs"]
        stops = [given["stop"]] if isinstance(given["stop"], str) else given["stop"] or []
        words, rows = Wording([stop.encode() for stop in stops]), _Logprobs()
        spelled = 0  # characters in the text of the tokens so far
        if llm.cache:
            self._look_up()
        llm.set_seed(given["seed"] if given["seed"] is not None else random.Random(llm._seed).randint(0, 2**32))
        llm._seeded = given["seed"] is not None
        made: list[int] = [] if len(self._prompt) > 0 else [llm.token_bos()]
        spaced = bool(made)  # after the first token of all, a tokenizer writes a space
        text, reason = "", "length"
        with contextlib.closing(self._generated()) as tokens:
            for token in tokens:
                if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
                    reason = "stop"
                    break
                made.append(token)
                piece = llm.detokenize([token], prev_tokens=self._tokens)
                if spaced and piece:
                    piece, spaced = piece.removeprefix(b" "), False
                words.add(piece)
                if wanted is not None:
                    spelled += self._add_row(rows, token, piece, len(made), spelled)
                if words.unfinished and not words.stopped:
                    continue
                fresh = words.take()
                if stream and fresh:
                    yield self._chunk(fresh, rows.taken())
                text += "" if stream else fresh
                if words.stopped:
                    reason = "stop"
                    break
                if len(made) >= self._most:
                    break
            else:
                reason = self._reason_of_an_early_end()
        rest = words.take(final=True)
        if stream:
            if rest:
                yield self._chunk(rest, rows.taken())
            yield self._chunk("", None, reason)
        if llm.cache:
            llm.cache[self._tokens + made] = llm.save_state()
        if not stream:
            yield self._whole(text + rest, made, rows, reason)

    def _generated(self) -> Any:
        given = self._given
        keywords = {name: given[name] for name in _SAMPLING} | {"temp": given["temperature"]}
        processors = given["logits_processor"]
        if given["logit_bias"] is not None:
            bias = _Bias(given["logit_bias"])
            processors = llama_cpp.LogitsProcessorList([*(processors or ()), bias])
        return self._llm.generate(self._tokens, logits_processor=processors, **keywords)

    def _reason_of_an_early_end(self) -> str:
        """Tell why ``generate`` ended by itself: by a criterion, or by a cancel."""
        criteria, llm = self._given["stopping_criteria"], self._llm
        return "stop" if criteria is not None and criteria(llm._input_ids, llm._scores[-1, :]) else "length"

    def _look_up(self) -> None:
        """Load a state of llama_cpp's cache if it holds a longer beginning of this prompt than the context does."""
        llm = self._llm
        with contextlib.suppress(KeyError):
            state = llm.cache[self._tokens]
            held = llm.longest_token_prefix(llm._input_ids.tolist(), self._tokens)
            if llm.longest_token_prefix(state.input_ids.tolist(), self._tokens) > held:
                llm.load_state(state)

    # Probabilities.

    def _add_row(self, rows: _Logprobs, token: int, piece: bytes, place: int, spelled: int) -> int:
        """Add the probability of the token that was just sampled; return the number of characters of its text."""
        llm = self._llm
        logits = llm._scores[len(self._tokens) + place - 2] if llm._logits_all else llm._last_logits()
        text = piece.decode("utf-8", "ignore")
        base = len(self._prompt)
        self._fill(rows, token, text, base + spelled, llm.logits_to_logprobs(np.array(logits, dtype=np.single)))
        return len(text)

    def _fill(self, rows: _Logprobs, token: int, text: str, offset: int, logprobs: FloatArray) -> None:
        count = min(self._given["logprobs"], len(logprobs))
        best = np.argpartition(logprobs, -count)[-count:] if count else np.empty(0, np.int64)
        best = best[np.lexsort((best, logprobs[best]))[::-1]]
        top = {self._llm.detokenize([int(i)]).decode("utf-8", "ignore"): float(logprobs[i]) for i in best}
        top[text] = float(logprobs[token])
        rows.tokens.append(text)
        rows.text_offset.append(offset)
        rows.token_logprobs.append(float(logprobs[token]))
        rows.top_logprobs.append(top)

    def _of_prompt(self, made: list[int]) -> _Logprobs:
        """Give the probabilities of all tokens of prompt and answer, except the first."""
        llm, rows, offset = self._llm, _Logprobs(), 0
        every = [*self._tokens, *made]
        begin = 1 if every[0] == llm.token_bos() else 0
        for place, token in enumerate(every[begin:], begin):
            text = llm.detokenize([token]).decode("utf-8", "ignore")
            logits = np.array(llm._scores[max(place - 1, 0)], dtype=np.single)
            self._fill(rows, token, text, offset, llm.logits_to_logprobs(logits))
            offset += len(text)
        if rows.tokens:  # the first token has no probability: no token precedes it
            rows.token_logprobs[0] = rows.top_logprobs[0] = None
        return rows

    # Answers.

    def _chunk(self, text: str, logprobs: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}
        return {**self._identity, "choices": [choice]}

    def _whole(self, text: str, made: list[int], rows: _Logprobs, reason: str) -> dict[str, Any]:
        if self._echoed:
            text = self._prompt + text
            rows = self._of_prompt(made) if self._given["logprobs"] is not None else rows
        prompt, answer = len(self._tokens), len(made)
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return {**self._chunk(text, rows.taken(), reason), "usage": usage}


class _Bias:
    """Adds to the logits of some tokens."""

    def __init__(self, bias: dict[Any, Any]) -> None:
        self._bias = {int(token): float(value) for token, value in bias.items()}

    def __call__(self, input_ids: Any, scores: FloatArray) -> FloatArray:
        changed = np.copy(scores)
        for token, value in self._bias.items():
            changed[token] += value
        return changed


def _prompt_tokens(llm: Any, prompt: Any, suffix: str | None) -> list[int]:
    """Tokenise a prompt; ``suffix`` is the text after the gap, and comes first if ``spm_infill`` says so."""
    model, given = llm._model, isinstance(prompt, list)
    first, last = model.token_cls(), model.token_sep()
    begin = [first if first != -1 else llm.token_bos()]
    end = [last if last != -1 else llm.token_eos()]
    whole = given and suffix is None
    if whole or not model.add_bos_token() or begin == [-1]:
        begin = []
    if whole or (not model.add_eos_token() and last == -1):
        end = []
    fill = [0] if suffix is not None else []  # llama_cpp takes token 0 for the markers of the gap
    tokens = prompt if given else llm.tokenize(prompt.encode(), add_bos=False, special=suffix is None) if prompt else []
    before = [*fill, *tokens]
    behind: list[int] = []
    if suffix is not None:
        behind = [*fill]
        if suffix:
            spaced = llm.metadata.get("tokenizer.ggml.add_space_prefix", "true") == "true"
            text = f"☺{suffix}" if spaced else suffix
            behind += llm.tokenize(text.encode(), add_bos=False, special=False)[2 if spaced else 0 :]
    return begin + ([*behind, *before] if llm.spm_infill else [*before, *behind]) + fill + end
