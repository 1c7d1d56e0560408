"""Finds graphics cards without any toolkit: from the kernel's list of PCI devices and NVIDIA's driver library.

**Source**: Linux kernel documentation, ABI/testing/sysfs-bus-pci and sysfs-driver-amdgpu; PCI class codes; CUDA driver
API reference (cuInit, cuDeviceGetAttribute).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
# PCI vendors of cards that ggml computes on; emulated cards of virtual machines have other vendors.
VENDORS = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_TITLES = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
_DISPLAY_CLASS = 0x03
# A Radeon with no more memory than this is part of the processor; its memory is carved out of RAM.
_CARVED_BYTES = 2 << 30
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute
# The driver library that Windows gives to its Linux guest (WSL).
_WSL_DRIVER = "usr/lib/wsl/lib/libcuda.so.1"


@dataclass(frozen=True)
class Card:
    """One graphics card.

    Attributes:
        vendor: ``nvidia``, ``amd`` or ``intel``.
        name: name for people.
        architecture: compute capability without its point (``89``) or AMD's target (``gfx1100``); empty when unknown.
        integrated: the card is part of the processor and shares its memory.
        problem: reason why programs cannot use the card now, empty when they can.
        cure: command or step that removes the problem.
    """

    vendor: str
    name: str
    architecture: str = ""
    integrated: bool = False
    problem: str = ""
    cure: str = ""


@dataclass(frozen=True)
class NvidiaDriver:
    """NVIDIA's driver as its library describes it.

    Attributes:
        cuda: newest CUDA version that the driver supports, such as (13, 0); (0, 0) without a driver.
        cards: name and compute capability of each card.
    """

    cuda: tuple[int, int] = (0, 0)
    cards: tuple[tuple[str, str], ...] = ()


def find(root: Path = ROOT, driver: NvidiaDriver | None = None) -> list[Card]:
    """List the cards, discrete ones first.

    Args:
        root: folder that holds /sys.
        driver: NVIDIA's driver; if it is None, the driver library is asked.
    """
    listed = [card for path in _display_devices(root) if (card := _card(path, root)) is not None]
    if driver is None:
        wanted = sys.platform == "win32" or _in_wsl(root) or any(card.vendor == "nvidia" for card in listed)
        driver = nvidia_driver() if wanted else NvidiaDriver()
    found = [card for card in listed if card.vendor != "nvidia"]
    if driver.cards:
        found += [Card("nvidia", name, architecture) for name, architecture in driver.cards]
    else:
        found += [_without_driver(card) for card in listed if card.vendor == "nvidia"]
    return sorted(found, key=lambda card: (card.integrated, card.vendor != "nvidia"))


def present(root: Path = ROOT) -> list[Card]:
    """List the discrete cards as the kernel shows them, in under a millisecond: no driver is asked."""
    listed = [card for path in _display_devices(root) if (card := _card(path, root)) is not None]
    if not listed and _in_wsl(root):
        listed = [Card("nvidia", "the NVIDIA card")]
    return [card for card in listed if not card.integrated]


def nvidia_driver() -> NvidiaDriver:
    """Ask NVIDIA's driver library; the record is empty if there is no library, or the library finds no card."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if library.cuInit(0):
            return NvidiaDriver()
        version, count = ctypes.c_int(), ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) or library.cuDeviceGetCount(ctypes.byref(count)):
            return NvidiaDriver()
        cards = tuple(_nvidia_card(library, ordinal) for ordinal in range(count.value))
    except (OSError, AttributeError):
        return NvidiaDriver()
    return NvidiaDriver((version.value // 1000, version.value % 1000 // 10), cards)


def _nvidia_card(library: ctypes.CDLL, ordinal: int) -> tuple[str, str]:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
    return name.value.decode("utf-8", "replace"), f"{major.value}{minor.value}"


def _in_wsl(root: Path) -> bool:
    return (root / _WSL_DRIVER).exists()


def _display_devices(root: Path) -> Iterator[Path]:
    for path in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _number(path / "class") >> 16 == _DISPLAY_CLASS:
            yield path


def _card(path: Path, root: Path) -> Card | None:
    vendor = VENDORS.get(_number(path / "vendor"), "")
    if not vendor:
        return None
    device = _number(path / "device")
    name = f"{_TITLES[vendor]} {_pci_name(root, _number(path / 'vendor'), device) or f'card {device:04x}'}"
    if vendor == "intel":
        integrated = path.name.split(":")[1] == "00"  # bus 0 is the processor's own
    else:
        memory = _number(path / "mem_info_vram_total", 10)
        integrated = vendor == "amd" and 0 < memory <= _CARVED_BYTES
    if vendor == "nvidia":
        told = re.search(
            r"^Model:\s*(.+)$", _text(root / "proc/driver/nvidia/gpus" / path.name / "information"), re.MULTILINE
        )
        return Card(vendor, told[1] if told else name)
    problem, cure = _access(path, root)
    architecture = _amd_target(path, root) if vendor == "amd" else ""
    return Card(vendor, name, architecture, integrated, problem, cure)


def _without_driver(card: Card) -> Card:
    cure = "install NVIDIA's driver; a container needs docker run --gpus all"
    return Card(card.vendor, card.name, problem="its driver does not answer (libcuda.so.1)", cure=cure)


def _access(path: Path, root: Path) -> tuple[str, str]:
    """Find the reason that keeps programs from a card of AMD or Intel, and its cure."""
    nodes = [root / "dev/dri" / node.name for node in (path / "drm").glob("renderD*")]
    if not nodes or not nodes[0].exists():
        return "it has no render device", "load the card's kernel driver; a container needs /dev/dri"
    if not os.access(nodes[0], os.R_OK | os.W_OK):
        return f"you may not open /dev/dri/{nodes[0].name}", "sudo usermod -aG render $USER, then log in again"
    return "", ""


def _amd_target(path: Path, root: Path) -> str:
    """Find AMD's name of the card's instruction set, in the compute driver's list of nodes."""
    minors = {node.name.removeprefix("renderD") for node in (path / "drm").glob("renderD*")}
    for node in sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        values = dict(line.split(None, 1) for line in _text(node).splitlines() if " " in line)
        version = int(values.get("gfx_target_version", "0"))
        if version and values.get("drm_render_minor", "").strip() in minors:
            return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return ""


def _pci_name(root: Path, vendor: int, device: int) -> str:
    """Find a card's name in the list that Linux distributions install with lspci; empty if it is not in the list."""
    lists: Sequence[str] = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
    text = next((text for name in lists if (text := _text(root / name))), "")
    of_vendor = re.search(rf"^{vendor:04x}  .*\n((?:[\t#].*\n|\n)*)", text, re.MULTILINE)
    found = re.search(rf"^\t{device:04x}  (.+)$", of_vendor[1], re.MULTILINE) if of_vendor else None
    if not found:
        return ""
    marketed = re.search(r"\[(.+)\]", found[1])
    return marketed[1] if marketed else found[1]


def _number(path: Path, base: int = 16) -> int:
    try:
        return int(_text(path).strip() or "0", base)
    except ValueError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
