"""``edgemoe fit``: plan the placement of a model on this machine and forecast its speed, before it is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Budget, OffloadConfig, home
from ..errors import ConfigError
from ..text.console import show_progress, table, talk
from .opening import AUTO, add_context

if TYPE_CHECKING:
    from ..models.gguf import GgufFile
    from ..planning.context import ContextChoice
    from ..planning.forecast import SpeedForecast
    from ..planning.placement import MachineRates, ModelNeeds, Placement

SCHEMA = "edgemoe.fit.v1"
DOES_NOT_FIT = 4
# Limits for a speed in words. Reading speed is about 7 tokens per second.
COMFORTABLE, READABLE = 20.0, 6.0


def add_parser(commands: Any, find: Callable[[str], Path]) -> None:
    """Add the subcommand; ``find`` turns MODEL into a file."""
    fit = commands.add_parser("fit", help="place a model on this machine and forecast its speed, before any download")
    fit.add_argument(
        "model",
        metavar="MODEL",
        help="a GGUF file, a name of the catalogue, or ORG/REPO:QUANT; the model need not be downloaded",
    )
    fit.add_argument("--device", default="auto", help="auto, none, sim, or a ggml device such as CUDA0")
    fit.add_argument("--rpc", metavar="HOST:PORT", help="use the device of ggml's RPC server on another machine")
    fit.add_argument(
        "--vram", default="auto", metavar="SIZE", help="device memory for experts: auto, 6GiB, or 50%% (of the experts)"
    )
    add_context(fit, AUTO)
    fit.add_argument("--threads", type=int, metavar="N", help="CPU threads that compute")
    fit.add_argument(
        "--device-free", metavar="SIZE", help="plan with this much free device memory instead of the current amount"
    )
    fit.add_argument("--ram-free", metavar="SIZE", help="plan with this much free RAM instead of the current amount")
    fit.add_argument("--quick", action="store_true", help="measure nothing; use the results of `edgemoe doctor`")
    fit.add_argument("--json", action="store_true", help="print JSON for programs")
    fit.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    fit.set_defaults(command=lambda parsed, _: _fit(parsed, find))


def _fit(parsed: argparse.Namespace, find: Callable[[str], Path]) -> int:
    from ..models.gguf import check_weights

    if parsed.threads is not None and parsed.threads < 1:
        raise ConfigError("--threads must be at least 1")
    given = {name: getattr(parsed, name) for name in ("vram", "kv", "flash") if getattr(parsed, name) is not None}
    config, free = OffloadConfig(**given), (_bytes(parsed.device_free), _bytes(parsed.ram_free))

    file, device = _header(parsed.model, find), _device(parsed.device, parsed.rpc)
    check_weights(file)
    content = assess(file, device, config, parsed.ctx or AUTO, parsed.threads, parsed.quick, free)
    print(json.dumps(content) if parsed.json else as_text(content))
    return 0 if content["plan"]["fits"] else DOES_NOT_FIT


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    size = Budget.parse(text).bytes
    if size is None:
        raise ConfigError(f"{text} is no size in bytes", "for example 12GiB")
    return size


def _header(name: str, find: Callable[[str], Path]) -> GgufFile:
    """Read the header of a file, or of a model of the hub that is not downloaded."""
    from ..errors import ModelNotFound
    from ..models import gguf, remote_header
    from .pull import download_of

    try:
        return gguf.check(find(name))
    except ModelNotFound:
        if name.lower().endswith(".gguf") or name.count("/") > 1 or name.startswith((".", "~", "/")):
            raise  # the user meant a file
    plan = download_of(name)
    talk(plan.choice or f"{plan.repo} is not on this disk: its header is read on the hub")
    return remote_header.header_of(plan)


def _device(asked: str, rpc: str | None) -> str:
    from ..engine import devices, host

    remote = host.connect(rpc) if rpc else []
    if asked in ("auto", "none"):
        return next(iter(remote or devices()), "") if asked == "auto" else ""
    host.core()
    if not host.device_memory(asked)[1]:
        raise ConfigError(f"there is no device {asked}", "edgemoe doctor lists the devices of this machine")
    return asked


def assess(
    file: GgufFile,
    device: str,
    config: OffloadConfig,
    context: int | str,
    threads: int | None = None,
    quick: bool = False,
    free: tuple[int | None, int | None] = (None, None),
) -> dict[str, Any]:
    """Plan the placement of a model and forecast its speed, as a record for programs.

    Args:
        file: header of the model.
        device: ggml name of the device, or empty for none.
        config: the settings: device memory for experts, types of the cache, flash attention.
        context: context in tokens, or ``auto``.
        threads: number of CPU threads. None: all physical cores.
        quick: True uses only earlier measurements.
        free: bytes of device memory and of RAM to plan with. None: the bytes that are free now.
    """
    from ..engine import opening
    from ..machine import hardware
    from ..planning.forecast import hit_rate
    from ..planning.placement import place

    bare = _machine(device, threads, free)
    keywords = opening.with_attention(file, config, device, {"n_ctx": context})
    model, machine = opening.needs_of(file, keywords), hardware.with_rates(bare, _known_rates(bare, quick))
    chosen = opening.choose_context(file, model, config, machine, keywords)
    tokens = chosen.placement.context if chosen else opening.context_of(file, keywords)
    placed = place(machine, model, tokens, config.budget)
    if placed.ram_short_bytes and machine.disk_rate is None and not quick:
        machine = replace(machine, disk_rate=hardware.disk_rate(home("cache")))
        placed = place(machine, model, tokens, config.budget)  # the same placement, with the cost of the disk
    heat = _heat(file, model)
    expected = _forecast(file, machine, model, placed, hit_rate(placed, model, heat), keywords, quick)
    return {
        "schema": SCHEMA,
        "model": _model(file, model, tokens),
        "machine": asdict(machine),
        "plan": asdict(placed) | {"device_bytes": placed.device_bytes, "reason": placed.reason},
        "context": _context(file, keywords, chosen, model, machine, expected),
        "routing": "this model's history" if heat is not None else "typical",
        "forecast": asdict(expected) if placed.fits or expected.decode else None,
        "verdict": verdict(machine, model, placed, expected),
        "llama_cpp": llama_cpp_flags(file, machine, placed, keywords),
    }


def _machine(device: str, threads: int | None, free: tuple[int | None, int | None]) -> MachineRates:
    """Describe this machine, or one with another amount of free memory."""
    from ..machine import hardware

    bare = hardware.machine(device, threads or 1)
    bare = replace(bare, threads=threads or bare.cores)
    device_free, ram_free = free
    if device_free is not None:
        total = max(device_free, bare.device_total_bytes)
        bare = replace(bare, device_free_bytes=device_free, device_total_bytes=total)
    if ram_free is not None:
        bare = replace(bare, ram_free_bytes=ram_free, ram_total_bytes=max(ram_free, bare.ram_total_bytes))
    return bare


def _context(
    file: GgufFile,
    keywords: dict[str, Any],
    chosen: ContextChoice | None,
    model: ModelNeeds,
    machine: MachineRates,
    expected: SpeedForecast,
) -> dict[str, Any]:
    """Describe the context and its cache."""
    from ..engine import opening
    from ..planning.context import in_words
    from ..planning.kv_cache import USUAL_TYPE, cache_type

    types = [cache_type(keywords.get(name, USUAL_TYPE)).name for name in ("type_k", "type_v")]
    decode = expected.decode if expected.band is not None else None  # a bound is no forecast
    note = in_words(chosen, model, machine.device, decode) if chosen else opening.beyond_training(file, keywords)
    return {
        "automatic": chosen is not None,
        "trained": file.number("context_length"),
        "types": types,
        "flash": keywords["flash_attn"],
        "note": note,
    }


def _known_rates(machine: MachineRates, quick: bool) -> dict[str, float]:
    """Read the rates that `edgemoe doctor` measured."""
    from ..machine import hardware

    notes: list[str] = []
    known = hardware.load(machine.device, machine.threads, notes)
    for note in notes:
        talk(f"note: {note}")
    if quick and known is None:
        talk("note: no measurement yet: run edgemoe doctor, or leave out --quick")
    return known.rates if known else {}


def _forecast(
    file: GgufFile, machine: MachineRates, model: ModelNeeds, placed: Placement, hits: float,
    keywords: dict[str, Any], quick: bool,
) -> SpeedForecast:  # fmt: skip
    """Forecast the speed from a run of a few layers. If ``quick`` or if no run is possible, use rates instead."""
    from ..engine.bandwidth import COMMON, weights_of
    from ..machine import hardware, trial_run
    from ..planning.forecast import forecast, from_runs

    if quick:
        return forecast(machine, model, placed, hits)
    try:
        attention = {name: value for name, value in keywords.items() if name != "n_ctx"}
        runs = trial_run.run(
            file, machine.device, placed, hits, machine.threads, machine.ram_free_bytes, show_progress, attention
        )
        if runs:
            return from_runs(runs, machine, model, placed, hits)
        experts, others = weights_of(file)
        rates = hardware.measure(
            machine.device, machine.threads, experts or COMMON, others, show_progress, machine.disk_rate is None
        )
        return forecast(hardware.with_rates(machine, rates), model, placed, hits)
    finally:
        show_progress(1.0, "")


def _heat(file: GgufFile, model: ModelNeeds) -> Any:
    """Read the use of each expert in earlier runs; None without a history."""
    from ..models import gguf
    from ..routing import history

    if model.shape is None or not file.path.is_file():
        return None
    shape = (model.shape.layers, model.shape.experts)
    profile = history.load(gguf.model_identity(file), home("data") / "profiles", shape)
    return None if profile is None else profile.heat


def _model(file: GgufFile, model: ModelNeeds, context: int) -> dict[str, Any]:
    name = file.metadata.get("general.name")
    shape = model.shape
    return {
        "file": file.path.name,
        "name": name if isinstance(name, str) else "",
        "architecture": file.architecture,
        "layers": model.layers,
        "expert_layers": shape.layers if shape else 0,
        "experts": shape.experts if shape else 0,
        "used": shape.used if shape else 0,
        "dense_bytes": model.dense_bytes,
        "expert_bytes": model.expert_bytes,
        "kv_bytes": model.kv_bytes(context),
        "kv_token_bytes": model.kv_token_bytes
        + model.kv_window_bytes
        + sum(size // tokens for tokens, size in model.kv_compressed),
        "context": context,
    }


def llama_cpp_flags(file: GgufFile, machine: MachineRates, placed: Placement, keywords: dict[str, Any]) -> str:
    """Write llama.cpp's command with equal device memory: the experts of the last layers are on the device."""
    from ..models.gguf import EXPERTS
    from ..planning.kv_cache import cache_type

    command = ["llama-server", "-m", file.path.name, "-c", str(placed.context), "-t", str(machine.threads)]
    command += ["-fa", "on" if keywords["flash_attn"] else "off"]
    for option, name in (("-ctk", "type_k"), ("-ctv", "type_v")):
        command += [option, cache_type(keywords[name]).name] if name in keywords else []
    if not machine.device or not placed.dense_on_device:
        return " ".join([*command, "-ngl", "0"])
    sizes: dict[int, int] = {}
    for name, tensor in file.run_tensors.items():
        if match := EXPERTS.match(name):
            sizes[int(match[1])] = sizes.get(int(match[1]), 0) + tensor.bytes
    first, left = file.run_blocks, placed.hot_bytes
    while first > 0 and sizes.get(first - 1, 0) <= left:
        first -= 1
        left -= sizes.get(first, 0)
    command += ["-ngl", "99"]
    command += ["--n-cpu-moe", str(first)] if first else []
    return " ".join(command + ([] if placed.kv_on_device else ["--no-kv-offload"]))


def verdict(machine: MachineRates, model: ModelNeeds, placed: Placement, expected: SpeedForecast) -> str:
    """Describe the placement in words."""
    if not placed.fits:
        return placed.reason
    where = "everything in RAM, computed by the CPU"
    if machine.device and model.shape is not None and any(placed.slots):
        share = sum(placed.slots) / (model.shape.layers * model.shape.experts)
        where = f"{share:.0%} of the experts on {machine.device}, the others in RAM"
        if share >= 1:
            where = f"all of it on {machine.device}"
    text = f"It fits: {where}."
    if expected.decode is not None:
        rate = expected.decode
        word = (
            "comfortable"
            if rate >= COMFORTABLE
            else "about reading speed"
            if rate >= READABLE
            else "slow to read along"
        )
        text += f" Answers come at {_speed(rate, expected.band)}: {word}."
    return f"{text} {placed.reason}".strip()


def in_short(content: dict[str, Any]) -> str:
    """Write the record in one line, for a list of models."""
    if not content["plan"]["fits"]:
        return f"does not fit: {content['plan']['reason']}"
    slots, experts = content["plan"]["slots"], content["model"]["expert_layers"] * content["model"]["experts"]
    share = sum(slots) / experts if experts else 0.0
    place = f"{share:.0%} of the experts on {content['machine']['device']}" if share else "in RAM"
    expected = content["forecast"] or {}
    speed = _speed(expected["decode"], expected["band"]) if expected.get("decode") else ""
    return ", ".join(part for part in (f"fits: {place}", speed) if part)


def as_text(content: dict[str, Any]) -> str:
    """Write the record for people."""
    from ..text.display import size

    model, placed, machine = content["model"], content["plan"], content["machine"]
    device = machine["device"]
    on_device = device if placed["kv_on_device"] else "RAM"
    rows = [
        ["dense weights", size(model["dense_bytes"]), device if placed["dense_on_device"] else "RAM"],
        [
            "experts",
            size(model["expert_bytes"]),
            f"{size(placed['hot_bytes'])} on {device}" if placed["slots"] else "RAM",
        ],
        [f"KV cache, {model['context']} tokens, {_types(content)}", size(placed["kv_bytes"]), on_device],
    ]
    if device:
        rows += [
            ["buffers", size(placed["compute_bytes"] + placed["staging_bytes"]), device],
            ["left free", size(placed["reserve_bytes"]), device],
        ]
    rows.append(
        [
            "RAM needed",
            size(placed["ram_private_bytes"] + placed["ram_mapped_bytes"]),
            "of " + size(machine["ram_free_bytes"]) + " free",
        ]
    )
    rows.append(["prompts kept, at most", size(placed["states_bytes"]), "RAM"])
    if device and not machine["device_shares_ram"]:
        together = placed["device_bytes"] + placed["ram_private_bytes"] + placed["ram_mapped_bytes"]
        both = machine["device_free_bytes"] + machine["ram_free_bytes"]
        rows.append([f"{device} and RAM together", size(together), f"of {size(both)} free"])
    head = f"{model['file']}: {model['architecture']}, {model['layers']} layers"
    if model["experts"]:
        head += f", {model['experts']} experts in {model['expert_layers']} of them, {model['used']} used"
    lines = [head, "", table(["what", "bytes", "where"], rows, texts=1), ""]
    expected = content["forecast"]
    if expected:
        for name in ("prefill", "decode"):
            lines.append(f"{name:8} {_speed(expected[name], expected['band'])}")
        if placed["slots"]:
            lines.append(f"hit rate {expected['hit_rate']:.2f} ({content['routing']} routing)")
        lines.append("")
    lines += [note] if (note := content["context"]["note"]) else []
    return "\n".join([*lines, content["verdict"], "", "llama.cpp at equal device memory:", f"  {content['llama_cpp']}"])


def _types(content: dict[str, Any]) -> str:
    keys, values = content["context"]["types"]
    return str(keys if keys == values else f"{keys} and {values}")


def _speed(rate: float | None, band: float | None) -> str:
    if rate is None:
        return "not known: its rates were not measured"
    if band is None:
        return f"at most {rate:.3g} tokens/s"
    return f"{rate:.3g} tokens/s (+-{band:.0%})"
