"""``edgemoe setup``: a tree replaces sysfs, and commands replace pip, cmake and compilers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemoe.cli.main import main
from edgemoe.config import OffloadConfig
from edgemoe.engine import backends, host, opening
from edgemoe.errors import ConfigError, EdgeMoEError
from edgemoe.setup import build, cards, installed, programs, toolchain
from edgemoe.setup.advice import advice
from edgemoe.setup.build import Order, compiled
from edgemoe.setup.cards import Card, NvidiaDriver
from edgemoe.setup.installed import Backend
from edgemoe.setup.programs import Missing, SetupFailed
from tests.zoo import build as zoo_model

Captured = pytest.CaptureFixture[str]
ADA = NvidiaDriver((13, 0), (("NVIDIA GeForce RTX 4070", "89"),))
NO_DRIVER = NvidiaDriver()


def pci(root: Path, slot: str, vendor: int, device: int, kind: int = 0x030000, **files: str) -> Path:
    """Add a device to a tree that replaces sysfs."""
    path = root / "sys/bus/pci/devices" / slot
    path.mkdir(parents=True)
    for name, text in {"vendor": hex(vendor), "device": hex(device), "class": hex(kind), **files}.items():
        (path / name).write_text(text + "\n")
    return path


def render_node(root: Path, path: Path, minor: int) -> Path:
    """Give a card a render device."""
    (path / f"drm/renderD{minor}").mkdir(parents=True)
    node = root / f"dev/dri/renderD{minor}"
    node.parent.mkdir(parents=True, exist_ok=True)
    node.touch()
    return node


# ---- cards ----


def test_a_machine_without_cards_has_none(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:1f.0", 0x8086, 0x7A06, kind=0x060100)
    pci(tmp_path, "0000:00:01.0", 0x1234, 0x1111)  # the emulated card of a virtual machine
    assert cards.find(tmp_path, NO_DRIVER) == [] == cards.present(tmp_path)


def test_nvidia_cards_are_named_by_their_driver(tmp_path: Path) -> None:
    pci(tmp_path, "0000:01:00.0", 0x10DE, 0x2786)
    assert cards.find(tmp_path, ADA) == [Card("nvidia", "NVIDIA GeForce RTX 4070", "89")]


def test_a_card_without_its_driver_is_found_and_the_cure_named(tmp_path: Path) -> None:
    pci(tmp_path, "0000:01:00.0", 0x10DE, 0x2786, kind=0x030200)
    (card,) = cards.find(tmp_path, NO_DRIVER)
    assert card.name == "NVIDIA card 2786" and "does not answer" in card.problem and "--gpus all" in card.cure
    kernel = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("Model: \t\t NVIDIA GeForce RTX 4070\nIRQ: 130\n")
    assert cards.present(tmp_path)[0].name == "NVIDIA GeForce RTX 4070", "its kernel module is there"


def test_a_discrete_card_comes_before_the_processor_s_own(tmp_path: Path) -> None:
    for path in (pci(tmp_path, "0000:00:02.0", 0x8086, 0x4680), pci(tmp_path, "0000:03:00.0", 0x1002, 0x744C)):
        render_node(tmp_path, path, 128 + int(path.name[5:7]))
    names = tmp_path / "usr/share/misc/pci.ids"
    names.parent.mkdir(parents=True)
    names.write_text("1002  AMD\n\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]\n8086  Intel\n\t4680  AlderLake-S GT1\n")
    kfd = tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties"
    kfd.parent.mkdir(parents=True)
    kfd.write_text("simd_count 192\ngfx_target_version 110000\ndrm_render_minor 131\n")
    radeon, intel = cards.find(tmp_path, NO_DRIVER)
    assert radeon == Card("amd", "AMD Radeon RX 7900 XT/7900 XTX", "gfx1100")
    assert intel.integrated and intel.name == "Intel AlderLake-S GT1"
    assert cards.present(tmp_path) == [radeon]


def test_memory_identifies_a_radeon_inside_the_processor(tmp_path: Path) -> None:
    path = pci(tmp_path, "0000:0d:00.0", 0x1002, 0x164E, mem_info_vram_total=str(512 << 20))
    render_node(tmp_path, path, 128)
    assert cards.find(tmp_path, NO_DRIVER)[0].integrated


def test_a_card_that_may_not_be_opened_says_which_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pci(tmp_path, "0000:03:00.0", 0x1002, 0x744C)
    (card,) = cards.find(tmp_path, NO_DRIVER)
    assert "no render device" in card.problem and "/dev/dri" in card.cure
    render_node(tmp_path, path, 128)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
    (card,) = cards.find(tmp_path, NO_DRIVER)
    assert "renderD128" in card.problem and "-aG render" in card.cure


# ---- backends that are there ----


def make(kind: str, version: str = "", architectures: tuple[str, ...] = ()) -> Backend:
    """Install a backend with an empty file as its library."""
    backend = Backend(kind, version or installed.version(), architectures, f"lib{installed.LIBRARIES[kind]}.so")
    file = installed.folder(kind).parents[2] / backend.library
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    installed.add(backend, [file])
    return backend


def test_a_backend_replaces_the_one_before_and_can_be_removed() -> None:
    make("cuda", "0.3.1", ("86",))
    new = make("cuda", architectures=("86", "89"))
    assert installed.built() == [new] and new.current and new.path.exists()
    assert [path.name for path in installed.folder("cuda").parent.iterdir()] == ["cuda"]
    assert main(["setup", "--remove"]) == 0 and installed.built() == []


def test_a_damaged_record_is_no_backend() -> None:
    make("cuda")
    (installed.folder("cuda") / "backend.json").write_text("{")
    assert installed.built() == []


def test_what_the_wheel_brings_is_seen_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "llama_cpp" / "lib" / "libggml-vulkan.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed.of_package() == ["vulkan"]


# ---- the sentence for a first screen ----


def test_an_idle_card_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pci(tmp_path, "0000:01:00.0", 0x10DE, 0x2786)
    assert advice(tmp_path) == "NVIDIA card 2786 lies idle: edgemoe setup makes it usable."
    make("rpc")
    assert "lies idle" in advice(tmp_path), "another machine's card is not this one"
    make("cuda")
    assert advice(tmp_path) == ""
    installed.remove("cuda")
    monkeypatch.setattr("edgemoe.setup.advice.of_package", lambda: ["cuda"])
    assert advice(tmp_path) == ""


def test_an_outdated_backend_names_the_command(tmp_path: Path) -> None:
    make("vulkan", "0.3.1")
    sentence = advice(tmp_path)
    assert "built for llama-cpp-python 0.3.1" in sentence and "edgemoe setup --backend vulkan" in sentence


def test_no_card_no_sentence(tmp_path: Path) -> None:
    assert advice(tmp_path) == ""
    pci(tmp_path, "0000:00:02.0", 0x8086, 0x4680)
    assert advice(tmp_path) == "", "the processor's own card is seldom faster"


def test_a_model_says_that_a_card_lies_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "advice", lambda: "A card lies idle: edgemoe setup makes it usable.")
    monkeypatch.setattr(host, "devices", lambda: [])
    assert opening.idle_notes("", OffloadConfig()) == ["A card lies idle: edgemoe setup makes it usable."]
    assert opening.idle_notes("", OffloadConfig(device="none")) == [], "the user wants it so"
    monkeypatch.setattr(host, "devices", lambda: ["CUDA0"])
    assert opening.idle_notes("", OffloadConfig()) == []


def test_only_a_current_backend_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    make("vulkan", "0.3.1")
    (sentence,) = backends.load_built(host._ggml_libraries()[0])
    assert "0.3.1" in sentence and "edgemoe setup" in sentence
    make("vulkan")
    (sentence,) = backends.load_built(host._ggml_libraries()[0])
    assert "does not load" in sentence, "its file is empty"
    monkeypatch.setattr(backends, "of_package", lambda: ["vulkan"])
    assert backends.load_built(host._ggml_libraries()[0]) == ()


# ---- toolchains ----


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Make commands. The path holds only them and a shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)

    def make(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)
        return path

    return make


Commands = Callable[[str, str], Path]


def fake_nvcc(release: str, *architectures: str) -> str:
    listed = "".join(f"echo compute_{number};" for number in architectures)
    return f'case $1 in --version) echo "tools, release {release}, V0";; *) {listed} esac'


@pytest.mark.parametrize(
    ("release", "architectures", "driver", "suits"),
    [
        ("13.0", ["89", "90"], (13, 0), True),
        ("13.0", ["89", "90"], (0, 0), True),
        ("12.8", ["89"], (13, 2), True),
        ("13.0", ["89", "90"], (12, 8), False),  # the driver is older
        ("13.0", ["75", "80"], (13, 0), False),  # does not know the card
        ("11.5", ["89"], (13, 0), False),  # too old for ggml
    ],
)
def test_a_compiler_that_is_there_must_suit_card_and_driver(
    release: str,
    architectures: list[str],
    driver: tuple[int, int],
    suits: bool,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = commands("nvcc", fake_nvcc(release, *architectures))
    only = str(path.parent)
    which = toolchain.shutil.which
    monkeypatch.setattr(toolchain.shutil, "which", lambda name, path=None: which(name, path=only))
    assert toolchain.nvcc(["89"], NvidiaDriver(driver)) == (str(path) if suits else "")


@pytest.mark.parametrize(
    ("architectures", "driver", "words"),
    [
        (["61"], (13, 0), "compute capability 6.1"),
        (["89"], (12, 4), "supports CUDA 12.4"),
    ],
)
def test_setup_names_the_limits_of_pypi_s_compiler(
    architectures: list[str], driver: tuple[int, int], words: str
) -> None:
    with pytest.raises(Missing, match=words) as caught:
        toolchain._check_pypi(architectures, NvidiaDriver(driver))
    assert "--backend vulkan" in caught.value.hint


def test_the_compiler_of_pypi_is_installed_into_our_folder(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands("c++", "")
    monkeypatch.setattr(toolchain, "nvcc", lambda *_: "")
    asked = []

    def install(requirements: list[str], place: Path, work: Path) -> None:
        asked.extend(requirements)
        for name in ("libcublas.so.13", "libcudart.so.13", "libcufft.so.12"):
            (place / "nvidia/cu13/lib").mkdir(parents=True, exist_ok=True)
            (place / "nvidia/cu13/lib" / name).touch()

    monkeypatch.setattr(toolchain, "pip_install", install)
    steps: list[str] = []
    (found,) = toolchain.for_kind("cuda", ["89"], NO_DRIVER, tmp_path, steps.append)
    assert steps == ["fetching NVIDIA's compiler from PyPI (about 1 GB)"]
    assert asked == ["cuda-toolkit[nvcc,cublas,cccl]==13.2.*"]
    root = tmp_path / "tools/cuda/nvidia/cu13"
    assert f"CMAKE_CUDA_COMPILER={root}/bin/nvcc" in found.options and "PyPI" in found.words
    assert "CMAKE_CUDA_ARCHITECTURES=89-real" in found.options and "GGML_CUDA_NO_VMM=ON" in found.options
    assert [path.name for path in found.bundled] == ["libcublas.so.13", "libcudart.so.13"]
    assert (root / "lib/libcublas.so").readlink() == Path("libcublas.so.13"), "what a linker looks for"


def test_a_missing_compiler_names_the_package(tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(Missing, match=r"no C\+\+ compiler"):
        list(toolchain.for_kind("rpc", [], NO_DRIVER, tmp_path))
    commands("c++", "")
    with pytest.raises(Missing, match="no glslc"):
        list(toolchain.for_kind("vulkan", [], NO_DRIVER, tmp_path))


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian", "sudo apt install g++"),
        ('NAME=Mint\nID=linuxmint\nID_LIKE="ubuntu debian"', "sudo apt install g++"),
        ("ID=fedora", "sudo dnf install gcc-c++"),
        ("ID=cachyos\nID_LIKE=arch", "sudo pacman -S gcc"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"', "sudo zypper install gcc-c++"),
        ("ID=nixos", "install g++ or similar packages"),
        ("", "install g++ or similar packages"),
    ],
)
def test_packages_are_named_as_the_distribution_does(release: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(release)
    assert toolchain.install_command(toolchain._COMPILER, tmp_path) == command


def test_an_old_cmake_is_left_alone(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(toolchain, "pip_install", lambda requirements, place, work: asked.extend(requirements))
    own, ninja = commands("cmake", "echo cmake version 3.16.3"), commands("ninja", "")
    assert toolchain.cmake(tmp_path)[0] == str(tmp_path / "tools/cmake/cmake/data/bin/cmake") and asked
    asked.clear()
    commands("cmake", "echo cmake version 3.31.0")
    assert toolchain.cmake(tmp_path) == (str(own), str(ninja)) and not asked


def test_pip_is_made_where_the_environment_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert programs.pip(tmp_path)[1:] == ["-m", "pip"]
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    ran: list[list[str]] = []
    monkeypatch.setattr(programs, "run", lambda command, what: ran.append(command) or "")
    assert programs.pip(tmp_path)[0].startswith(str(tmp_path)) and ran[0][1:3] == ["-m", "venv"]


def test_an_installation_that_was_cut_short_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, fails = tmp_path / "tools", [True]
    place.mkdir()

    def run(command: list[str], what: str) -> str:
        if fails.pop():
            raise SetupFailed(f"{what} failed")
        return ""

    monkeypatch.setattr(programs, "run", run)
    with pytest.raises(SetupFailed, match="installing ninja failed"):
        programs.pip_install(["ninja"], place, tmp_path)
    fails.append(False)
    programs.pip_install(["ninja"], place, tmp_path)
    programs.pip_install(["ninja"], place, tmp_path)
    assert not fails, "the third found it complete"


# ---- a build ----

CMAKE = """\
case $1 in --version) echo cmake version 3.31.0; exit;; esac
if [ -e "{tmp}/cmake-fails" ]; then echo "CMake Error: Could NOT find Something"; exit 1; fi
for word in "$@"; do case $last in -B) mkdir -p "$word"; echo "$word" > "{tmp}/out";; esac; last=$word; done
echo "$@" >> "{tmp}/cmake.log"
touch "$(cat "{tmp}/out")/CMakeCache.txt"
"""
NINJA = """\
for word in "$@"; do [ "$word" = -n ] && dry=1; done
echo "[1/2] Building CXX object a/one.cpp.o"
if [ -z "$dry" ] && [ -e "{tmp}/compiler-fails" ]; then echo "one.cpp:1: error: no such thing"; exit 1; fi
echo "[2/2] Linking CXX shared module bin/libggml-rpc.so"
[ -n "$dry" ] || touch "$(cat "{tmp}/out")/libggml-rpc.so"
"""


@pytest.fixture
def machine(tmp_path: Path, commands: Commands) -> Path:
    """Make a machine with a source archive, and commands that only pretend to compile."""
    commands("c++", "")
    commands("cmake", CMAKE.replace("{tmp}", str(tmp_path)))
    commands("ninja", NINJA.replace("{tmp}", str(tmp_path)))
    top = f"llama_cpp_python-{installed.version()}"
    (tmp_path / top / "vendor/llama.cpp/ggml").mkdir(parents=True)
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / top, top)
    return tmp_path


def order(machine: Path, kind: str = "rpc") -> Order:
    return Order(kind, (), machine / "work", NO_DRIVER, machine / "archive.tar.gz")


def test_a_backend_is_compiled_and_says_how_far_it_is(machine: Path) -> None:
    seen: list[tuple[float, str]] = []
    result = compiled(order(machine), lambda share, step: seen.append((share, step)))
    assert result.library.name == "libggml-rpc.so" and result.library.exists()
    options = (machine / "cmake.log").read_text()
    assert "-DGGML_BACKEND_DL=ON" in options and "-DGGML_RPC=ON" in options and "RPATH=$ORIGIN" in options
    assert (machine / "work" / f"llama_cpp_python-{installed.version()}/vendor/llama.cpp/ggml/ggml.pc.in").exists()
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and seen[1][1] == "fetching the sources" and "one.cpp" in seen[-2][1]


def test_a_build_goes_on_and_other_options_have_a_folder_of_their_own(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(order(machine)).library.parent
    (first / "object").touch()
    compiled(order(machine))
    assert (first / "object").exists(), "what was compiled is used"
    monkeypatch.setitem(build.KINDS, "rpc", (*build.KINDS["rpc"], "OTHER=ON"))
    assert compiled(order(machine)).library.parent != first
    assert (first / "object").exists()


def test_what_cmake_does_not_find_is_named_and_not_remembered(machine: Path) -> None:
    (machine / "cmake-fails").touch()
    with pytest.raises(SetupFailed, match=r"rpc failed .*Could NOT find Something"):
        compiled(order(machine))
    assert not list((machine / "work").glob("build-*"))


def test_a_toolkit_that_cmake_refuses_makes_room_for_the_next(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [toolchain.Toolchain("without cuBLAS", ("PLACE=usual",)), toolchain.Toolchain("from PyPI", ("PLACE=ours",))]
    monkeypatch.setattr(build, "for_kind", lambda *_: iter(both))
    refuses = 'case "$*" in *PLACE=usual*) echo "CMake Error: CUDA::cublas not found"; exit 1;; esac\n'
    (machine / "bin/cmake").write_text(
        "#!/bin/sh\nPATH=/usr/bin:/bin\n" + refuses + CMAKE.replace("{tmp}", str(machine))
    )
    steps: list[str] = []
    made = compiled(order(machine), lambda share, step: steps.append(step)).library.parent
    assert "preparing, with without cuBLAS" in steps and "preparing, with from PyPI" in steps
    assert "PLACE=ours" in (machine / "cmake.log").read_text()
    (made / "object").touch()
    compiled(order(machine))
    assert (made / "object").exists(), "the refused toolkit leaves the other's build alone"


def test_an_error_of_the_compiler_is_shown(machine: Path) -> None:
    (machine / "compiler-fails").touch()
    with pytest.raises(SetupFailed, match=r"the compiler failed: one.cpp:1: error: no such thing"):
        compiled(order(machine))


def test_a_build_that_is_stopped_ends_before_the_set_up_does(machine: Path, commands: Commands) -> None:
    script = """\
for word in "$@"; do [ "$word" = -n ] && exit 0; done
trap 'sleep 0.7; touch "{tmp}/ended"; exit 1' TERM
echo "[1/2] Building CXX object a/one.cpp.o"
while :; do sleep 0.05; done
"""
    commands("ninja", script.replace("{tmp}", str(machine)))

    def stop(share: float, step: str) -> None:
        if "one.cpp" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(order(machine), stop)
    assert (machine / "ended").exists()
    with build.locked(machine / "work/lock"):
        pass


def test_setup_names_old_vulkan_headers(machine: Path, commands: Commands) -> None:
    commands("glslc", "")
    header = machine / "include/vulkan/vulkan_core.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define VK_HEADER_VERSION 239")
    script = CMAKE.replace("{tmp}", str(machine)).rstrip().removeprefix("")
    found = f'\necho "Vulkan_INCLUDE_DIR:PATH={machine}/include" > "$(cat "{machine}/out")/CMakeCache.txt"'
    commands("cmake", script + found)
    with pytest.raises(Missing, match="from before 2024") as caught:
        compiled(order(machine, "vulkan"))
    assert "VULKAN_SDK" in caught.value.hint


def test_two_set_ups_do_not_share_a_folder(machine: Path) -> None:
    (machine / "work").mkdir()
    with build.locked(machine / "work/lock"), pytest.raises(SetupFailed, match=f"another .*process {os.getpid()}"):
        compiled(order(machine))
    compiled(order(machine))


def test_the_time_left_follows_the_finished_work() -> None:
    heavy = "Building CUDA object src/ggml-cuda/template-instances/mmq-instance-q4_k.cu.o"
    steps = [f"[{i}/10] {heavy if i > 8 else 'Building CXX object a.cpp.o'}" for i in range(1, 11)]
    remaining = build.Remaining(steps)
    share, said = 0.0, ""
    for i in range(1, 5):
        share, said = remaining.after(i, 10, steps[i - 1].split("] ")[1], remaining._began + 60.0 * i)
    assert share == 4 / 16 and said == "about 12 min left, a.cpp"
    assert remaining.after(5, 20, "Building CXX object a.cpp.o", 0.0)[0] == 5 / 20, "Ninja found more to do"


# ---- the command ----


def result(capsys: Captured, *arguments: str) -> tuple[int, dict[str, object], str]:
    code = main(["setup", "--json", *arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def finds(monkeypatch: pytest.MonkeyPatch, *found: Card, driver: NvidiaDriver = NO_DRIVER) -> None:
    monkeypatch.setattr(cards, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(cards, "find", lambda **_: list(found))


def test_setup_reports_a_missing_card(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    finds(monkeypatch)
    code, content, _ = result(capsys)
    assert code == 1 and not content["ok"] and "no graphics card" in str(content["said"])


def test_a_card_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    finds(monkeypatch, Card("nvidia", "NVIDIA card 2786", problem="its driver does not answer", cure="install it"))
    code, _, said = result(capsys)
    assert code == 1 and "its driver does not answer: install it" in said


def test_a_backend_of_the_wheel_is_enough(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    from edgemoe.cli import setup

    finds(monkeypatch, Card("nvidia", "NVIDIA GeForce RTX 4070", "89"), driver=ADA)
    monkeypatch.setattr(installed, "of_package", lambda: ["cuda"])
    monkeypatch.setattr(setup, "_usable", lambda backend: (["CUDA0"], ()))
    code, content, said = result(capsys)
    assert code == 0 and content["devices"] == ["CUDA0"] and content["library"] == ""
    assert "RTX 4070 (compute capability 8.9)" in said


def test_a_backend_is_built_once_for_the_cards(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    from edgemoe.cli import setup

    two = (Card("nvidia", "B", "89"), Card("nvidia", "A", "86"))
    finds(monkeypatch, *two, driver=ADA)
    monkeypatch.setattr(setup, "_usable", lambda backend: (["CUDA0", "CUDA1"], ()))
    orders: list[Order] = []

    def stand_in(order: Order, progress: object) -> build.Result:
        orders.append(order)
        order.work.mkdir(parents=True)
        library = order.work / "libggml-cuda.so"
        library.touch()
        return build.Result(library, ())

    monkeypatch.setattr(setup, "compiled", stand_in)
    code, content, _ = result(capsys)
    assert code == 0 and Path(str(content["library"])).exists() and orders[0].architectures == ("86", "89")
    assert not orders[0].work.exists(), "what it took to make it is gone"
    assert result(capsys)[0] == 0 and len(orders) == 1, "nothing to do"
    assert result(capsys, "--architecture", "120")[0] == 0 and len(orders) == 2


def test_a_card_that_is_not_there_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    finds(monkeypatch)
    assert main(["setup", "--backend", "cuda"]) == 2 and "--architecture names it" in capsys.readouterr().err
    assert main(["setup", "--backend", "vulkan", "--architecture", "89"]) == 2


# ---- RPC ----


def test_an_address_without_a_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ggml = host._ggml_libraries()[0]
    monkeypatch.setattr(backends, "_registry", lambda _: 1)
    with pytest.raises(ConfigError, match="no address"):
        backends.connect(ggml, "somewhere")

    def meets(stderr: str) -> Callable[..., subprocess.CompletedProcess[str]]:
        return lambda *_, **__: subprocess.CompletedProcess([], 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", meets("Failed to connect"))
    with pytest.raises(EdgeMoEError, match="no RPC server answers") as caught:
        backends.connect(ggml, "10.0.0.2:50052")
    assert "edgemoe rpc-server --port 50052" in caught.value.hint
    monkeypatch.setattr(subprocess, "run", meets("RPC server version mismatch: 6.1.0"))
    with pytest.raises(EdgeMoEError, match=r"speaks version 6\.1\.0"):
        backends.connect(ggml, "10.0.0.2:50052")


def test_without_its_backend_rpc_names_the_set_up() -> None:
    with pytest.raises(ConfigError) as caught:
        backends.connect(host._ggml_libraries()[0], "127.0.0.1:1")
    assert caught.value.hint == "edgemoe setup --backend rpc"


def test_a_server_s_device_is_the_automatic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "connect", lambda endpoint: ["RPC0", "RPC1"])
    assert opening.resolve_device(OffloadConfig(rpc="10.0.0.2:50052"), {}) == "RPC0"
    assert opening.resolve_device(OffloadConfig(rpc="10.0.0.2:50052", device="RPC1"), {}) == "RPC1"
    assert opening.resolve_device(OffloadConfig(rpc="10.0.0.2:50052", device="none"), {}) == ""


@pytest.mark.slow
@pytest.mark.online
def test_rpc_is_built_and_answers_over_loopback(tmp_path: Path, home: Path) -> None:
    assert main(["setup", "--backend", "rpc"]) == 0
    (backend,) = installed.built()
    assert backend.current and not (home / "data/setup").exists()
    model = zoo_model("llama", tmp_path, "Q8_0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "edgemoe.cli"]
    server = subprocess.Popen([*command, "rpc-server", "--port", port], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert any("transport" in line for line in server.stdout), "the server is up"
        answers = [
            subprocess.run(
                [*command, "run", str(model), "1 2 3", "--temperature", "0", "--max-tokens", "8", *where],
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            for where in (["--device", "none"], ["--rpc", f"127.0.0.1:{port}", "--vram", "100%"])
        ]
        assert answers[0] == answers[1] != b""
    finally:
        server.kill()
        server.wait()
