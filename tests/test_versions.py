"""Probes decide whether a llama-cpp-python works, and name the difference."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import _internals

from edgemoe import BackendMismatch
from edgemoe.engine import binding, host

# Slots of ggml's objects, each with the public function that uses it. "-" means that no function can be replaced by a
# test. ":1" is the number of the argument with the object. The last function reads the field after the table.
TABLES = {
    "ggml_backend_buffer_type": "buft_name buft_alloc_buffer buft_get_alignment buft_get_max_size buft_get_alloc_size "
    "buft_is_host buft_get_device",
    "ggml_backend_buffer": "- buffer_get_base buffer_init_tensor - - - - - - buffer_clear buffer_reset buffer_get_type",
    "ggml_backend_device": "dev_name dev_description dev_memory dev_type dev_get_props dev_init dev_buffer_type "
    "dev_host_buffer_type dev_buffer_from_host_ptr dev_supports_op dev_supports_buft dev_offload_op event_new - - "
    "dev_backend_reg",
    "ggml_backend": "- name free tensor_set_async tensor_get_async tensor_set_2d_async tensor_get_2d_async - "
    "synchronize graph_plan_create graph_plan_free - graph_plan_compute graph_compute_async "
    "event_record:1 event_wait - get_device",
    "ggml_backend_reg": "- reg_name reg_dev_count reg_dev_get reg_get_proc_address",
}
WORD = ctypes.sizeof(ctypes.c_void_p)
Function = ctypes.CFUNCTYPE(ctypes.c_size_t, *[ctypes.c_size_t] * 5)


def newer(slot: int, argument: int, reads: bool) -> Any:
    """Make a function of a ggml version that has one entry more before ``slot``."""

    def call(*arguments: int) -> int:
        entry = ctypes.c_size_t.from_address(arguments[argument] + WORD * (slot + 1)).value
        return entry if reads else ctypes.CFUNCTYPE(ctypes.c_size_t)(entry)()

    return Function(call)


@pytest.fixture
def core(tmp_path: Path) -> ctypes.CDLL:
    """Load a separate core that knows the installed ggml but has not checked it."""
    place = tmp_path / binding.find_core().name
    shutil.copy(binding.find_core(), place)
    lib = ctypes.CDLL(str(place))
    lib.em_symbol_name.restype = lib.em_last_error.restype = ctypes.c_char_p
    lib.em_symbol_set.argtypes = [ctypes.c_int32, ctypes.c_void_p]
    for i in range(lib.em_symbol_count()):
        lib.em_symbol_set(i, binding._address_of(host._ggml_libraries(), lib.em_symbol_name(i).decode()))
    return lib


def replace(core: ctypes.CDLL, name: str, function: Any) -> None:
    names = [core.em_symbol_name(i).decode() for i in range(core.em_symbol_count())]
    core.em_symbol_set(names.index(name), ctypes.cast(function, ctypes.c_void_p) if function else None)


def test_what_is_installed_passes(core: ctypes.CDLL) -> None:
    assert core.em_check() == binding.OK, core.em_last_error()


@pytest.mark.parametrize(("table", "at"), [(t, at) for t, s in TABLES.items() for at in range(len(s.split()))])
def test_a_table_with_one_entry_more_is_named(core: ctypes.CDLL, table: str, at: int) -> None:
    slots = TABLES[table].split()
    kept = []
    for slot, name in enumerate(slots):
        if slot >= at and name != "-":
            function, _, argument = name.partition(":")
            reads = slot == len(slots) - 1 and table != "ggml_backend_reg"
            kept.append(newer(slot, int(argument or 0), reads))
            replace(core, f"ggml_backend_{function}", kept[-1])
    assert core.em_check() == binding.ERROR_MISMATCH
    said = core.em_last_error().decode()
    assert said.endswith(f" of {table} differs"), said


def test_a_missing_function_is_named(core: ctypes.CDLL) -> None:
    replace(core, "ggml_graph_plan", None)
    assert core.em_check() == binding.ERROR_MISMATCH
    assert core.em_last_error() == b"function ggml_graph_plan is missing"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ggml_tensor_overhead", b"tensor size 337 instead of 336"),
        ("ggml_row_size", b"the size of weight type 0 differs"),
    ],
)
def test_another_layout_is_named(core: ctypes.CDLL, name: str, said: bytes) -> None:
    known = Function(binding._address_of(host._ggml_libraries(), name))
    doctored = Function(lambda *given: known(*given) + 1)
    replace(core, name, doctored)
    assert core.em_check() == binding.ERROR_MISMATCH
    assert core.em_last_error() == said


def refused() -> BackendMismatch:
    with pytest.raises(BackendMismatch) as error:
        host.core.__wrapped__()
    return error.value


def test_an_old_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "version", lambda: "llama-cpp-python==0.3.27")
    error = refused()
    assert error.found == "llama-cpp-python==0.3.27" and error.hint == 'pip install "llama-cpp-python>=0.3.28,<=0.3.36"'


def test_a_newer_version_is_refused_by_the_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "version", lambda: "llama-cpp-python==0.10.0")
    monkeypatch.delattr(_internals, "suppress_stdout_stderr")
    found = "llama-cpp-python==0.10.0 (llama_cpp._internals.suppress_stdout_stderr is missing)"
    assert refused().found == found
