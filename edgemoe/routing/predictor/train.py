"""Trains the tables of a predictor on routing traces, with torch: logistic regressions, a few layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import EdgeMoEError
from ...types import IdArray
from .tables import DECAYS, HORIZON, LEADS, MEMORY_RATES, REACH, TOKEN_PRIOR, Tables, untrained

if TYPE_CHECKING:
    import torch

Progress = Callable[[float, str], None]
Floats = npt.NDArray[np.float32]

BATCH = 1024
LEARNING_RATE = 0.02
# Factor of their step. All experts of a layer share these weights, so they have far to go, and much to learn from.
FEW_FASTER = 5
DECAY_OF_WEIGHTS = 1e-5
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 6, 250, 40
LEAST_TOKENS = 2000
LATEST_TIMES = 8  # so many of the latest uses of a token id make its share
GROUP_FLOATS = 60_000_000  # layers are trained together while their features take up to 240 MB
MOST_TOKENS = 60_000  # of longer traces, the latest tokens count


def fit(
    ids: IdArray, experts: int, progress: Progress = lambda share, step: None, tokens: IdArray | None = None
) -> Tables:
    """Train on tokens in running order.

    Args:
        ids: ``(tokens, layers, used)``, -1 if missing. Of longer traces, the last `MOST_TOKENS` tokens count.
        experts: routed experts per layer.
        progress: called with the share done, 0..1, and the name of the step.
        tokens: token ids, ``(tokens,)``, -1 if unknown; None if all are unknown.

    Raises:
        EdgeMoEError: torch is missing, or there are too few tokens to learn from.
    """
    try:
        import torch
    except ImportError as error:
        raise EdgeMoEError("training needs torch", 'python -m pip install "edgemoe[train]"') from error
    ids = ids[-MOST_TOKENS:]
    count, layers, used = ids.shape
    if count < LEAST_TOKENS:
        raise EdgeMoEError(f"{count} tokens are too few to learn from", f"{LEAST_TOKENS} at least: chat some more")
    torch.manual_seed(0)
    tables = replace(untrained(layers, experts, used), tokens=count)
    features = experts * (REACH + 1 + len(DECAYS))
    told = None
    if tokens is not None and (tokens >= 0).any():
        told = tokens[-MOST_TOKENS:]
        features += experts * len(TOKEN_PRIOR) * 2
    group = max(1, min(layers, GROUP_FLOATS // (count * features)))
    jobs = [(question, first) for question in range(LEADS + 1) for first in range(0, layers, group)]
    for done, (question, first) in enumerate(jobs):
        span = range(first, min(first + group, layers))
        name = "what stays" if question == 0 else f"{question} layer{'s' * (question > 1)} ahead"
        progress(done / len(jobs), f"{name}, layers {span.start} to {span.stop - 1}")
        if question == 0:
            _fit_soon(torch, tables, ids, span)
        else:
            _fit_next(torch, tables, ids, span, question, told)
    progress(1.0, "done")
    return tables


def _fit_soon(torch: Any, tables: Tables, ids: IdArray, span: range) -> None:
    experts = tables.experts
    use = [one_hot(ids[:, layer], experts) for layer in span]
    past = [decayed(u) for u in use]
    after = [
        np.concatenate([f[:, 1:], f[:, -1:]], axis=1) for f in past
    ]  # features that are known once the token is computed
    matrices = [np.stack(use)] + [np.stack([f[DECAYS.index(rate)] for f in after]) for rate in MEMORY_RATES]
    target = np.stack([soon(u) for u in use])
    weights, bias, mix = _regress(torch, matrices, np.stack(after), target)
    for i, layer in enumerate(span):
        tables.keep_again[layer] = weights[0][i]
        for memory in range(len(MEMORY_RATES)):
            tables.keep_memory[memory, layer] = weights[1 + memory][i]
        tables.keep_bias[layer], tables.keep_decay[layer] = bias[i], mix[i]


def _fit_next(torch: Any, tables: Tables, ids: IdArray, span: range, lead: int, tokens: IdArray | None) -> None:
    experts = tables.experts
    use = {layer: one_hot(ids[:, layer], experts) for layer in range(max(0, span.start - lead - REACH), span.stop)}
    nothing = np.zeros_like(use[span.start])
    matrices = [np.stack([use.get(layer - lead - back, nothing) for layer in span]) for back in range(REACH)]
    matrices.append(np.stack([np.concatenate([nothing[:1], use[layer][:-1]]) for layer in span]))
    past = np.stack([decayed(use[layer]) for layer in span])
    if tokens is not None:
        past = np.concatenate([past, [by_token(use[layer], tokens) for layer in span]], axis=1)
    weights, bias, mix = _regress(torch, matrices, past, np.stack([use[layer] for layer in span]))
    for i, layer in enumerate(span):
        for back in range(REACH):
            tables.next_rows[lead - 1, back, layer] = weights[back][i]
        tables.next_again[lead - 1, layer] = weights[REACH][i]
        tables.next_bias[lead - 1, layer], tables.next_decay[lead - 1, layer] = bias[i], mix[i, : len(DECAYS)]
        if tokens is not None:
            tables.next_token[lead - 1, layer] = mix[i, len(DECAYS) :].reshape(-1, 2)


def _regress(
    torch: Any, matrices: list[Floats], frequencies: Floats, target: Floats
) -> tuple[list[Floats], Floats, Floats]:
    """Fit logistic regressions of ``target`` (layers, tokens, experts), for all layers at once.

    Args:
        torch: the module.
        matrices: each ``(layers, tokens, experts)``: terms with a row of weights per expert.
        frequencies: ``(layers, decays, tokens, experts)``: terms with one weight per decay.
        target: probabilities.

    Returns:
        weights of the matrices, each ``(layers, experts, experts)``; the bias ``(layers, experts)``; weights of the
        frequencies ``(layers, decays)``.
    """
    layers, tokens, experts = target.shape
    x = torch.from_numpy(np.concatenate(matrices, axis=2))
    f = torch.from_numpy(np.ascontiguousarray(frequencies.transpose(0, 2, 3, 1)))
    y = torch.from_numpy(target)
    w = torch.zeros(layers, x.shape[2], experts, requires_grad=True)
    b = torch.full((layers, 1, experts), -2.0, requires_grad=True)
    a = torch.zeros(layers, 1, 1, f.shape[3], requires_grad=True)
    rates = (LEARNING_RATE, FEW_FASTER * LEARNING_RATE)
    optimiser = torch.optim.Adam([{"params": [w, b]}, {"params": [a]}])
    batch = min(BATCH, max(64, tokens // 8))
    epochs = min(MOST_EPOCHS, max(EPOCHS, LEAST_STEPS * batch // tokens))
    for epoch in range(epochs):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - epoch / epochs)
        for part in _batches(torch, tokens, batch):
            logits = torch.bmm(x[:, part], w) + b + (f[:, part] * a).sum(-1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[:, part]) * experts
            optimiser.zero_grad()
            (loss + DECAY_OF_WEIGHTS * (w * w).sum()).backward()
            optimiser.step()
    rows = w.detach().numpy().reshape(layers, len(matrices), experts, experts)
    return [rows[:, i] for i in range(len(matrices))], b.detach().numpy()[:, 0], a.detach().numpy()[:, 0, 0]


def _batches(torch: Any, tokens: int, size: int) -> Iterator[torch.Tensor]:
    order = torch.randperm(tokens)
    for at in range(0, tokens - size + 1, size):
        yield order[at : at + size]


def one_hot(ids: IdArray, experts: int) -> Floats:
    """Turn ``(tokens, used)``, -1 where missing, into ``(tokens, experts)`` of 0 and 1."""
    out = np.zeros((len(ids), experts + 1), dtype=np.float32)
    np.put_along_axis(out, np.where(ids < 0, experts, ids).astype(np.int64), 1.0, axis=1)
    return np.ascontiguousarray(out[:, :experts])


def decayed(use: Floats, decays: Sequence[float] | Floats = DECAYS) -> Floats:
    """Give the decayed use per token *before* each token, ``(decays, tokens, experts)``."""
    out = np.zeros((len(decays), *use.shape), dtype=np.float32)
    rates = np.array(decays, dtype=np.float32)[:, None]
    state = np.zeros((len(decays), use.shape[1]), dtype=np.float32)
    for token, row in enumerate(use):
        out[:, token] = state
        state = state * rates + (1 - rates) * row
    return out


def by_token(use: Floats, tokens: IdArray) -> Floats:
    """Give the earlier uses by each token's id, for ``next_token``, as the core remembers them.

    Args:
        use: ``(tokens, experts)`` of one layer.
        tokens: token ids, ``(tokens,)``, -1 where not known.

    Returns:
        ``(6, tokens, experts)``: for each kind of ids (once, 2 to 4 times, more often) the share of each expert, then
        a constant 1. A token has numbers in the two rows of its kind, and 0 in the others.
    """
    kinds = len(TOKEN_PRIOR)
    out = np.zeros((kinds, 2, *use.shape), dtype=np.float32)
    shares: dict[int, tuple[int, Floats]] = {}
    for at, token in enumerate(tokens.tolist()):
        if token < 0:
            continue
        times, share = shares.get(token, (0, np.zeros(use.shape[1], dtype=np.float32)))
        if times:
            kind = 0 if times < 2 else 1 if times < 5 else 2
            out[kind, 0, at], out[kind, 1, at] = share / 255, 1.0
        times += 1
        n = min(times, LATEST_TIMES)
        shares[token] = times, np.floor(share * (n - 1) / n) + (255 // n) * use[at]
    return out.reshape(2 * kinds, *use.shape)


def soon(use: Floats) -> Floats:
    """Give the discounted use after each token, 0..1, in the shape of ``use``."""
    out = np.zeros_like(use)
    state = np.zeros(use.shape[1], dtype=np.float32)
    for token in range(len(use) - 1, -1, -1):
        out[token] = state * (1 - HORIZON)
        state = use[token] + HORIZON * state
    return out
