"""``edgemoe doctor``: check the installed packages, measure this machine, and suggest actions."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import EdgeMoEError
from ..text.console import show_progress, table, talk

if TYPE_CHECKING:
    from ..setup.cards import Card

SCHEMA = "edgemoe.doctor.v1"
_MARKS = {"ok": "ok", "note": "note", "bad": "PROBLEM"}
# Below these rates a machine is usable but slow, and its owner should know the reason.
SLOW_RAM, SLOW_DISK = 10e9, 500e6
# Rate of a PCIe 3 x8 link.
SLOW_UPLOAD = 6e9


@dataclass(frozen=True)
class Finding:
    """Describe the result of one check.

    Attributes:
        name: subject of the check.
        value: result of the check.
        state: ``ok``, ``note`` or ``bad``.
        action: advice for the user, or empty.
    """

    name: str
    value: str
    state: str = "ok"
    action: str = ""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    doctor = commands.add_parser("doctor", help="check the installation and measure this machine (15 s)")
    doctor.add_argument("--device", default="auto", help="auto, none, sim, or a ggml device such as CUDA0")
    doctor.add_argument("--threads", type=int, metavar="N", help="CPU threads that compute")
    doctor.add_argument("--json", action="store_true", help="print JSON for programs")
    doctor.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    doctor.set_defaults(command=lambda parsed, _: _doctor(parsed))


def _doctor(parsed: argparse.Namespace) -> int:
    findings, seconds = _versions(), 0.0
    rates: dict[str, float] = {}
    try:
        from ..engine import devices
        from ..engine.host import core
        from ..machine import hardware

        core()
    except EdgeMoEError as error:
        findings.append(Finding("backend check", str(error), "bad", error.hint))
    except (ImportError, OSError) as error:
        findings.append(Finding("backend check", str(error), "bad", "reinstall: python -m pip install edgemoe"))
    else:
        findings.append(Finding("backend check", "structs, tables and a probe graph agree with this ggml"))
        findings.append(Finding("CPU kernels", core().kernels))
        found = devices()
        findings += _device_findings(found, parsed.device)
        device = {"auto": next(iter(found), ""), "none": ""}.get(parsed.device, parsed.device)
        rates, seconds = _measure(hardware, device, parsed.threads, findings)
    if parsed.json:
        content = {"schema": SCHEMA, "ok": _ok(findings), "seconds": seconds, "rates": rates}
        print(json.dumps(content | {"findings": [asdict(f) for f in findings]}, indent=1))
    else:
        print(table(["what", "found", ""], [[f.name, f.value, _MARKS[f.state]] for f in findings], texts=3))
        for finding in findings:
            if finding.action:
                print(f"- {finding.name}: {finding.action}")
    return 0 if _ok(findings) else 1


def _ok(findings: list[Finding]) -> bool:
    return all(finding.state != "bad" for finding in findings)


def _versions() -> list[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    findings = [Finding("edgemoe", __version__), Finding("Python", f"{platform.python_version()} {platform.machine()}")]
    for package in ("llama-cpp-python", "numpy", "textual"):
        try:
            findings.append(Finding(package, version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, "missing", "bad", f"python -m pip install {package}"))
    return findings


def _device_findings(found: list[str], asked: str) -> list[Finding]:
    from ..engine.host import load_backends, rivals
    from ..setup.advice import advice
    from ..setup.cards import find

    findings = [_card_finding(card) for card in find()]
    if found:
        others = rivals(found[0])
        action = f"a model is on one device, {found[0]} unless --device names another" if others else ""
        findings.append(Finding("devices", ", ".join(found), "note" if others else "ok", action))
    elif asked not in ("auto", "none", "sim"):
        findings.append(
            Finding("devices", f"there is no {asked}", "bad", "edgemoe doctor lists the devices of this machine")
        )
    else:
        action = advice() or "edgemoe setup says which graphics cards it finds, and what each lacks"
        findings.append(Finding("devices", "no GPU that llama.cpp sees: experts stay on the CPU", "note", action))
    cure = "edgemoe setup finds out why, edgemoe setup --remove deletes it"
    return findings + [Finding("backend", sentence, "note", cure) for sentence in load_backends()]


def _card_finding(card: Card) -> Finding:
    name = f"{card.name}, part of the processor" if card.integrated else card.name
    if card.problem:
        return Finding("graphics card", f"{name}: {card.problem}", "note", card.cure)
    return Finding("graphics card", name)


def _measure(
    hardware: Any, device: str, threads: int | None, findings: list[Finding]
) -> tuple[dict[str, float], float]:
    notes: list[str] = []
    bare = hardware.machine(device, 1)
    count = threads or bare.cores
    hardware.load(device, count, notes)  # this renames a damaged file before the new measurement replaces it
    for note in notes:
        talk(f"note: {note}")
    started = time.perf_counter()
    try:
        rates: dict[str, float] = hardware.measure(device, count, progress=show_progress)
    finally:
        show_progress(1.0, "")
    seconds = time.perf_counter() - started
    hardware.save(device, count, rates, seconds)
    findings += _memory_findings(bare) + _rate_findings(rates, device)
    return rates, seconds


def _memory_findings(machine: Any) -> list[Finding]:
    gib = 2**30
    findings = [Finding("RAM", f"{machine.ram_free_bytes / gib:.1f} of {machine.ram_total_bytes / gib:.1f} GiB free")]
    if machine.ram_free_bytes < 4 * gib:
        findings[0] = Finding(
            "RAM", findings[0].value, "note", "close programs: cold experts must fit into free memory"
        )
    if machine.device:
        free, total = machine.device_free_bytes / gib, machine.device_total_bytes / gib
        shared = ", shared with the CPU" if machine.device_shares_ram else ""
        findings.append(Finding(f"memory of {machine.device}", f"{free:.1f} of {total:.1f} GiB free{shared}"))
    both = machine.ram_free_bytes + (0 if machine.device_shares_ram else machine.device_free_bytes)
    text = f"weights and context of up to {both / gib:.1f} GiB: an expert on the device needs no RAM"
    return [*findings, Finding("room for a model", text if machine.device else f"{both / gib:.1f} GiB")]


_LINES: tuple[tuple[str, str, float, str], ...] = (
    ("cpu_expert_rate", "CPU, experts", 0.0, ""),
    ("ram_rate", "RAM", SLOW_RAM, "check that both memory channels have modules, and their speed in the BIOS"),
    ("device_rate", "device, experts", 0.0, ""),
    ("upload_pinned_rate", "upload, pinned", SLOW_UPLOAD, "check that the GPU is in a slot with 16 lanes"),
    ("upload_pageable_rate", "upload, pageable", 0.0, ""),
    ("disk_rate", "disk, uncached", SLOW_DISK, "loading will be slow: keep models on an SSD"),
)


def _rate_findings(rates: dict[str, float], device: str) -> list[Finding]:
    findings = []
    for name, what, slow, action in _LINES:
        if rate := rates.get(name):
            state = "note" if rate < slow else "ok"
            findings.append(Finding(what, f"{rate / 1e9:.2f} GB/s", state, action if state == "note" else ""))
        elif device or not name.startswith(("device", "upload")):
            findings.append(Finding(what, "could not be measured", "note"))
    if join := rates.get("join_ns"):
        findings.append(Finding("start and wait", f"{join / 1e3:.1f} microseconds"))
    return findings
