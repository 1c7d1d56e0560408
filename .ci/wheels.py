"""Build EdgeMoE's wheels for all platforms on one machine, and check each of them.

    python -m pip install ziglang==0.17.1 build wheel auditwheel
    python .ci/wheels.py                     # all, into dist/
    python .ci/wheels.py windows-x86_64      # one

The core needs no library but the system's and C++'s own, which zig links into it, so zig compiles it for every platform
anywhere. The rest of a wheel is the same for all. Linux wheels run from glibc 2.28 on (Debian 10, RHEL 8),
the one for macOS from 11.0 on; zig signs it ad hoc, as Apple's processors demand.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE, PLACE = ROOT / "edgemoe" / "core", "edgemoe/engine"
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-fvisibility=hidden", "-ffp-contract=off", "-shared", "-pthread", "-s")
# An exception may cross frames of llama.cpp, whose C++ library asks the system's unwinder: ours must be the same.
UNWINDER = "libgcc_s.so.1"
UNWIND = (
    *(
        "Backtrace",
        "DeleteException",
        "FindEnclosingFunction",
        "ForcedUnwind",
        "GetCFA",
        "GetDataRelBase",
        "GetGR",
        "GetIP",
    ),
    *("GetIPInfo", "GetLanguageSpecificData", "GetRegionStart", "GetTextRelBase", "RaiseException", "Resume"),
    *("Resume_or_Rethrow", "SetGR", "SetIP"),
)
# Functions without which Python or ggml could not use the core.
EXPORTS = (b"em_abi_version", b"em_engine_new", b"ggml_backend_init")


@dataclass(frozen=True)
class Target:
    """A platform.

    Attributes:
        zig: its name for zig.
        tag: its name in a wheel.
        core: the name of the core's file.
        start: the bytes with which such a file begins, ``?`` where any will do.
        flags: more flags of the compiler.
    """

    zig: str
    tag: str
    core: str
    start: bytes
    flags: tuple[str, ...] = ()


TARGETS = {
    "linux-x86_64": Target(
        "x86_64-linux-gnu.2.28",
        "manylinux_2_28_x86_64",
        "edgemoe_core.so",
        b"\x7fELF\x02" + b"?" * 13 + b"\x3e",
        ("-fPIC",),
    ),
    "linux-aarch64": Target(
        "aarch64-linux-gnu.2.28",
        "manylinux_2_28_aarch64",
        "edgemoe_core.so",
        b"\x7fELF\x02" + b"?" * 13 + b"\xb7",
        ("-fPIC",),
    ),
    "macos-arm64": Target(
        "aarch64-macos.11.0",
        "macosx_11_0_arm64",
        "edgemoe_core.so",
        b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01",
        ("-fPIC", "-Wl,-install_name,@rpath/edgemoe_core.so"),  # else the library names the folder that it was made in
    ),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", "edgemoe_core.dll", b"MZ"),
}


def main() -> None:
    """Build and check the wheels that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_wheel(Path(folder))
        for name in given.targets or TARGETS:
            wheel = build(plain, TARGETS[name], given.out, Path(folder) / name)
            check(wheel, TARGETS[name])
            print(f"{name}: {wheel.name}, {wheel.stat().st_size / 2**20:.2f} MiB", flush=True)


def plain_wheel(folder: Path) -> Path:
    """Make the wheel without a core: what all platforms share."""
    options = ["--wheel", "--outdir", str(folder), "-C", "wheel.cmake=false"]
    subprocess.run([sys.executable, "-m", "build", *options, str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


def build(plain: Path, target: Target, out: Path, folder: Path) -> Path:
    """Compile the core for ``target`` and add it to the plain wheel; returns the wheel."""
    subprocess.run([sys.executable, "-m", "wheel", "unpack", str(plain), "--dest", str(folder)], check=True)
    tree = next(folder.iterdir())
    compile_core(target, tree / PLACE / target.core)
    facts = next(tree.glob("*.dist-info")) / "WHEEL"
    lines = [line for line in facts.read_text().splitlines() if not line.startswith(("Tag:", "Root-Is-Purelib:"))]
    facts.write_text("\n".join([*filter(None, lines), "Root-Is-Purelib: false", f"Tag: py3-none-{target.tag}", ""]))
    packed = folder / "packed"
    packed.mkdir()
    subprocess.run([sys.executable, "-m", "wheel", "pack", str(tree), "--dest-dir", str(packed)], check=True)
    return Path(shutil.copy(next(packed.iterdir()), out))


def compile_core(target: Target, file: Path) -> None:
    """Compile the core for ``target`` into ``file``."""
    sources = sorted(path for path in CORE.rglob("*.cpp") if "tests" not in path.relative_to(CORE).parts)
    zig = [sys.executable, "-m", "ziglang"]
    with tempfile.TemporaryDirectory() as name:  # zig leaves more than the library, on Windows
        folder = Path(name)
        made = folder / target.core
        inputs = [*map(str, sources), *([str(unwinder(zig, target, folder))] if "linux" in target.zig else [])]
        options = ["-target", target.zig, *FLAGS, *target.flags, "-I", str(CORE)]
        subprocess.run([*zig, "c++", *options, *inputs, "-o", str(made)], check=True)
        shutil.copy(made, file)


def unwinder(zig: list[str], target: Target, folder: Path) -> Path:
    """Make a library that stands in for the system's unwinder while the core is linked, in the place of zig's own."""
    code, library = folder / "unwinder.c", folder / UNWINDER
    code.write_text("".join(f"void _Unwind_{name}(void) {{}}\n" for name in UNWIND))
    named = ["-shared", "-nostdlib", f"-Wl,-soname,{UNWINDER}", str(code), "-o", str(library)]
    subprocess.run([*zig, "cc", "-target", target.zig, *named], check=True)
    return library


def check(wheel: Path, target: Target) -> None:
    """Look into a wheel: its core is there, of the platform, and has what it must; the manylinux tag is true.

    Raises:
        SystemExit: it is not so.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        cores = [name for name in names if "edgemoe_core" in name]
        core = archive.read(cores[0])
    if cores != [f"{PLACE}/{target.core}"] or any(name.startswith(("edgemoe/core/", "tests/")) for name in names):
        raise SystemExit(f"{wheel.name}: its files are wrong: {cores}")
    wrong = [at for at, byte in enumerate(target.start) if byte != ord("?") and core[at] != byte]
    if wrong or not all(name in core for name in EXPORTS):
        raise SystemExit(f"{wheel.name}: {target.core} is not what {target.tag} needs")
    if tempfile.gettempdir().encode() + b"/" in core or str(ROOT).encode() in core:
        raise SystemExit(f"{wheel.name}: {target.core} names a folder of this machine")
    if target.tag.startswith("manylinux"):
        if UNWINDER.encode() not in core:
            raise SystemExit(f"{wheel.name}: {target.core} has an unwinder of its own")
        audit = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
        shown = subprocess.run(audit, check=True, capture_output=True, text=True).stdout
        found = re.search(r'platform tag: "manylinux_2_(\d+)_', " ".join(shown.split()))
        if not found or int(found[1]) > int(target.tag.split("_")[2]):
            raise SystemExit(f"{wheel.name}: auditwheel says: {shown}")


if __name__ == "__main__":
    main()
