"""The engine of a server: a model that makes several answers at once, and embeddings if it is a model for those.

A call is an iterable of results, with a ``cancel``. Calls may run at the same time, each in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..models import gguf
from ..types import Thinking
from .batching import Batching
from .experts import Experts
from .llama import Llama
from .seat import Seat

POOLING = "pooling_type"
NO_EMBEDDINGS = "this model gives no embeddings: its file names no pooling"
NO_ANSWERS = "this model gives embeddings only"


class Service:
    """Answers the calls of a server.

    Attributes:
        llm: the model.
    """

    seat: type[Seat] = Seat

    def __init__(self, llm: Llama, parallel: int) -> None:
        """Take a model that was opened with ``parallel`` sequences, or with ``embedding=True``."""
        self.llm, self._lock = llm, threading.Lock()
        self._batching = None if llm.context_params.embeddings else Batching(llm, parallel)

    @property
    def experts(self) -> Experts:
        """Give the expert side of the model."""
        return self.llm.experts

    @property
    def thinking(self) -> Thinking:
        """Tell how the model thinks, by its chat template."""
        return self.llm.thinking

    def n_ctx(self) -> int:
        """Give the context size in tokens."""
        return int(self.llm.n_ctx())

    def call(self, what: str, given: dict[str, Any]) -> Call:
        """Prepare a call: ``chat``, ``complete``, ``embed`` or ``facts``, with its keywords."""
        return Call(self, what, given)

    def make_seat(self) -> Seat:
        """Give the view on the model through which one answer is made.

        Raises:
            ConfigError: the model gives embeddings only.
        """
        if self._batching is None:
            raise ConfigError(NO_ANSWERS, "use /v1/embeddings")
        return self.seat(self._batching)

    def embed(self, texts: list[str | list[int]]) -> dict[str, Any]:
        """Give OpenAI's list of embeddings.

        Raises:
            ConfigError: the model gives no embeddings, or a text is longer than a batch.
        """
        if self._batching is not None:
            raise ConfigError(NO_EMBEDDINGS, "serve a model for embeddings")
        vectors, total = [], 0
        for text in texts:
            words = text if isinstance(text, str) else self.llm.detokenize(text).decode("utf-8", "replace")
            count = len(self.llm.tokenize(words.encode()))
            if count > self.llm.n_batch:
                raise ConfigError(f"a text has {count} tokens, and {self.llm.n_batch} are the most", "shorten it")
            with self._lock:
                vectors.append(self.llm.embed(words, normalize=True))
            total += count
        data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "usage": {"prompt_tokens": total, "total_tokens": total}}

    def facts(self) -> dict[str, Any]:
        """Describe the model, its context and its work, for ``/props`` and ``/metrics``."""
        stats = self.llm.experts.stats()
        template = self.llm.metadata.get("tokenizer.chat_template", "")
        return {
            "n_ctx": self.n_ctx(),
            "chat_template": template,
            "embeddings": self._batching is None,
            "device": self.llm.experts.device,
            "notes": list(self.llm.experts.notes),
            "hits": stats.hits,
            "misses": stats.misses,
            "tokens": stats.tokens,
            "upload_bytes": stats.upload_bytes,
            "resident": stats.resident,
            **(self._batching.figures if self._batching is not None else {}),
        }

    def close(self) -> None:
        """End all answers and free the model."""
        if self._batching is not None:
            self._batching.close()
        self.llm.close()


class Call:
    """One call: an iterable of its results."""

    def __init__(self, service: Service, what: str, given: dict[str, Any]) -> None:
        """Store the arguments; iteration begins the call."""
        self._service, self._what, self._given = service, what, given
        self._seat: Seat | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Any]:
        """Yield the chunks of a stream, after a None that says that the request is sound; or one whole result."""
        if self._what in ("chat", "complete"):
            seat = self._seat = self._service.make_seat()
            if self._cancelled:
                seat.cancel()
            made = getattr(seat, self._what)(**self._given)
            if self._given.get("stream"):
                yield None
            yield from made
        elif self._what in ("embed", "facts"):
            yield getattr(self._service, self._what)(**self._given)

    def cancel(self) -> None:
        """End the call; from any thread."""
        self._cancelled = True
        if self._seat is not None:
            self._seat.cancel()


def open_service(model_path: str | Path, parallel: int, **keywords: Any) -> Service:
    """Open a model for a server; the keywords are those of ``Llama``. A model for embeddings is recognised."""
    if gguf.read(Path(model_path)).number(POOLING):
        return Service(Llama(model_path, embedding=True, **keywords), parallel)
    return Service(Llama(model_path, sequences=parallel, **keywords), parallel)
