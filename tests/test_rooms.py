"""Order in the core: its rooms are folders, and a room only knows the rooms below it.

A small reader of C++ finds includes, function definitions and their uses. The reader does not know the types of
expressions. It knows a function by its name, and a method only if the file sees a single type with a method of this
name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgemoe.planning.placement import FEW_TOKENS

CORE = Path(__file__).parent.parent / "edgemoe" / "core"

# The rooms, the lowest first. A file at the top of the core is its own room.
ORDER = (
    "edgemoe",  # the C interface: records and declarations
    "errors",
    "processor",  # the instructions that it has
    "ggml",
    "memory",
    "disk",
    "measures",
    "device",
    "model",
    "ram",
    "residency",
    "routing",
    "cpu/kernels",
    "cpu",
    "engine",  # the state of all rooms, put together
    "split",
    "pass",
    "backend",
    "api",
)
# Only the room of its type writes the fields of such a member of the engine. api.cpp fills a model before it loads.
OWNED = {
    "ram": "ram",
    "residents": "residency",
    "uploads": "residency",
    "readers": "residency",
    "stages": "residency",
    "log": "routing",
    "forced": "routing",
    "prefetch": "routing",
    "traits": "device",
}
MOST_LINES_OF_A_HEADER = 150
MOST_LINES_OF_A_FUNCTION = 60
MOST_FIELDS = 20
ABI = "ggml/abi.h"  # ggml's own declarations
INTERFACE = "edgemoe.h"  # records that Python fills and reads

Graph = dict[str, set[str]]


# ---- reading C++ ----


@dataclass
class Source:
    """Describe a file of the core: its code and its definitions."""

    path: str
    lines: int
    code: str
    includes: list[str]
    functions: dict[str, list[str]] = field(default_factory=dict)  # name -> bodies; visible to other files
    methods: dict[str, set[str]] = field(default_factory=dict)  # name -> types; visible to other files
    bodies: list[str] = field(default_factory=list)  # of all functions
    structs: dict[str, list[str]] = field(default_factory=dict)  # name -> fields

    @property
    def stem(self) -> str:
        return self.path.rsplit(".", 1)[0]

    @property
    def room(self) -> str:
        return room_of(self.path)


def room_of(path: str) -> str:
    """Name the room of a file: its folder, or at the top the file itself."""
    return path.rsplit("/", 1)[0] if "/" in path else path.rsplit(".", 1)[0]


def without_comments(text: str) -> str:
    """Blank out comments, literals and preprocessor lines."""
    literal = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\''
    text = re.sub(rf"//[^\n]*|/\*.*?\*/|{literal}", lambda m: " " if m[0][0] == "/" else "0", text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", "", text, flags=re.M)


def closing(code: str, opening: int) -> int:
    """Find the brace that closes the one at this place."""
    depth = 0
    for place in re.finditer(r"[{}]", code[opening:]):
        depth += 1 if place[0] == "{" else -1
        if depth == 0:
            return opening + place.start()
    return len(code)


def function_name(head: str) -> str | None:
    """Name the function that a declaration before a brace defines; None if it defines none."""
    head = re.sub(r"\b(?:alignas|__attribute__|template)\s*(?:\((?:[^()]|\([^()]*\))*\)|<[^<>]*>)", " ", head)
    found = re.search(r"((?:\w+\s*::\s*)*(?:~?\w+|operator[^(]*))\s*\(", head)
    if not found or "=" in head[: found.start()] or found[1] in ("if", "for", "while", "switch"):
        return None
    return re.sub(r"\s", "", found[1])


def declarators(statement: str) -> Iterator[str]:
    """Give the names of the fields that a statement inside a struct declares."""
    statement = re.sub(r"\{[^{}]*\}", "", re.sub(r"\{[^{}]*\{[^{}]*\}[^{}]*\}", "", statement))
    if re.match(r"\s*(using|typedef|friend|static|enum|struct|class|template|public|private)\b(?!\s*:)", statement):
        return
    statement = re.sub(r"\b(public|private|protected)\s*:", "", statement)
    while re.search(r"<[^<>]*>", statement):
        statement = re.sub(r"<[^<>]*>", "", statement)
    if "(" in statement.split("=")[0] and not re.search(r"\(\s*\*", statement):
        return  # a function
    for number, part in enumerate(re.split(r",(?![^(]*\))", statement)):
        found = re.match(r"^(.*?)(\w+)\s*(?:\[[^\]]*\]\s*)*(?:=.*)?$", part.strip(), flags=re.S)
        pointer = re.search(r"\(\s*\*\s*(\w+)", part)
        if pointer:
            yield pointer[1]
        elif found and (number or found[1].strip()):
            yield found[2]


def read_struct(source: Source, name: str, body: str, hidden: bool) -> None:
    """Note a struct's fields, and its methods with their bodies."""
    fields: list[str] = []
    at = start = 0
    while at < len(body):
        if body[at] == ";":
            fields.extend(declarators(body[start:at]))
            start = at + 1
        elif body[at] == "{":
            end = closing(body, at)
            head = body[start:at]
            kind = re.search(r"\b(?:struct|class)\s+(\w+)[^()=]*$", re.sub(r"alignas\s*\([^()]*\)", "", head))
            method = function_name(head)
            if kind:
                read_struct(source, kind[1], body[at + 1 : end], hidden)
                start = end + 1
            elif method and "=" not in head.split("(")[0]:
                source.bodies.append(head + body[at:end])
                if not hidden and method != name and not method.startswith(("~", "operator")):
                    source.methods.setdefault(method, set()).add(name)
                start = end + 1
            at = end
        at += 1
    if name:
        source.structs[name] = fields


def read_scope(source: Source, code: str, hidden: bool) -> None:
    """Note the functions and structs of a namespace. ``hidden`` marks definitions that no other file sees."""
    at = start = 0
    while at < len(code):
        if code[at] == ";":
            start = at + 1
        elif code[at] == "{":
            end = closing(code, at)
            head = code[start:at]
            kind = re.search(r"\b(?:struct|class|union)\s*(\w*)[^()=]*$", re.sub(r"alignas\s*\([^()]*\)", "", head))
            name = function_name(head)
            if re.search(r"\bnamespace\b", head):
                anonymous = not re.search(r"\bnamespace\s+\w", head)
                read_scope(source, code[at + 1 : end], hidden or anonymous)
            elif kind and not (name and "=" not in head.split("(")[0] and "(" in head):
                read_struct(source, kind[1], code[at + 1 : end], hidden)
            elif name:
                body = head + code[at:end]
                source.bodies.append(body)
                if "::" in name:
                    owner, method = name.rsplit("::", 2)[-2:]
                    if not hidden and method != owner and not method.startswith(("~", "operator")):
                        source.methods.setdefault(method, set()).add(owner)
                elif not hidden and not re.search(r"\bstatic\b", head):
                    source.functions.setdefault(name, []).append(body)
            at = end
            start = end + 1
        at += 1


def read_core(root: Path) -> dict[str, Source]:
    """Read the sources of the core without its tests."""
    sources = {}
    for file in sorted([*root.rglob("*.h"), *root.rglob("*.cpp")]):
        path = file.relative_to(root).as_posix()
        if path.startswith("tests/"):
            continue
        text = file.read_text(encoding="utf-8")
        includes = []
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, flags=re.M):
            beside = (file.parent / name).resolve()
            includes.append(beside.relative_to(root.resolve()).as_posix() if beside.exists() else name)
        source = Source(path, text.count("\n"), without_comments(text), includes)
        read_scope(source, source.code, hidden=False)
        sources[path] = source
    return sources


# ---- graphs ----


def included(sources: dict[str, Source], path: str) -> set[str]:
    """Find the headers that a file sees."""
    seen: set[str] = set()
    ahead = [path]
    while ahead:
        for name in sources[ahead.pop()].includes:
            if name in sources and name not in seen:
                seen.add(name)
                ahead.append(name)
    return seen


def call_graph(sources: dict[str, Source]) -> Graph:
    """Connect each file with the files that define the functions it uses. A header and its source count as one file."""
    functions: dict[str, set[str]] = {}
    methods: dict[str, dict[str, set[str]]] = {}  # name -> type -> files
    homes: dict[str, set[str]] = {}  # type -> files that declare it
    for source in sources.values():
        for name in source.functions:
            functions.setdefault(name, set()).add(source.path)
        for name, types in source.methods.items():
            for type_name in types:
                methods.setdefault(name, {}).setdefault(type_name, set()).add(source.path)
        for type_name in source.structs:
            homes.setdefault(type_name, set()).add(source.path)
    graph: Graph = {path: set() for path in sources}
    for source in sources.values():
        used = source.code if source.path.endswith(".cpp") else "\n".join(source.bodies)
        sees = included(sources, source.path)
        for name in set(re.findall(r"\w+", used)):
            graph[source.path] |= {path for path in functions.get(name, ()) if path.endswith(".cpp") or path in sees}
        for name in set(re.findall(r"(?:\.|->)\s*(\w+)\s*\(", used)):
            known = {type_name for type_name in methods.get(name, {}) if homes.get(type_name, set()) & sees}
            for type_name in known if len(known) == 1 else ():
                graph[source.path] |= methods[name][type_name]
        graph[source.path] = {path for path in graph[source.path] if sources[path].stem != source.stem}
    return graph


def include_graph(sources: dict[str, Source]) -> Graph:
    """Connect each file with the files that it includes."""
    return {path: {name for name in source.includes if name in sources} for path, source in sources.items()}


def rooms_of(*graphs: Graph) -> Graph:
    """Connect the rooms of connected files."""
    rooms: Graph = {}
    for graph in graphs:
        for name, others in graph.items():
            room = room_of(name)
            rooms.setdefault(room, set()).update({room_of(other) for other in others} - {room})
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Find the groups of nodes that reach each other."""
    reach: Graph = {}
    for node in graph:
        seen: set[str] = set()
        ahead = list(graph[node])
        while ahead:
            other = ahead.pop()
            if other not in seen:
                seen.add(other)
                ahead.extend(graph.get(other, ()))
        reach[node] = seen
    groups = {frozenset([node, *(other for other in reach[node] if node in reach.get(other, ()))]) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def upward(graph: Graph) -> list[str]:
    """Name the connections from a room to one above it."""
    level = {room: n for n, room in enumerate(ORDER)}
    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if level[room_of(other)] > level[room_of(name)]
    ]


def lines_of(body: str) -> int:
    """Count the lines of a function, from its head to its closing brace."""
    return body.strip().count("\n") + 1


def written_from_outside(sources: dict[str, Source]) -> list[str]:
    """Name the fields of big structs that a file of another room writes.

    A field only counts if its name belongs to a single struct.
    """
    owners: dict[str, int] = {}
    for source in sources.values():
        for fields in source.structs.values():
            for name in set(fields):
                owners[name] = owners.get(name, 0) + 1
    found = []
    for source in sources.values():
        if source.path in (ABI, INTERFACE):
            continue
        for struct, fields in source.structs.items():
            if len(fields) <= MOST_FIELDS:
                continue
            for other in sources.values():
                for name in fields if other.room != source.room else ():
                    write = rf"(?:\.|->)\s*{name}\b(?:\s*\[[^\]]*\])?\s*(?:[-+*/|&]?=(?!=)|\+\+|--)"
                    if owners[name] == 1 and re.search(write, other.code):
                        found.append(f"{struct}.{name} by {other.path}")
    return found


def trespasses(sources: dict[str, Source]) -> list[str]:
    """Name the fields of owned members that a file of another room writes."""
    member = rf"\b({'|'.join(OWNED)})(?:\.|->)(\w+)(?:\[[^\]]*\])?"
    write = r"\s*(?:[-+*/|&]?=(?!=)|\+\+|--|\.(?:assign|push_back|pop_front|resize|clear|erase|store|exchange)\s*\()"
    return [
        f"{found[1]}.{found[2]} by {source.path}"
        for source in sources.values()
        for found in re.finditer(member + write, source.code)
        if OWNED[found[1]] != source.room
    ]


# ---- the core ----


@pytest.fixture(scope="module")
def core() -> dict[str, Source]:
    return read_core(CORE)


def test_the_reader_finds_the_core(core: dict[str, Source]) -> None:
    """Check that the reader finds anything: without findings the other tests would pass."""
    assert "em_pass_compute" in core["pass/pass.cpp"].functions
    assert "em_run" in core["split/executor.cpp"].methods["compute"]
    assert len(core["routing/predictor.h"].structs["em_predictor"]) > MOST_FIELDS
    assert "split/executor.cpp" in call_graph(core)["split/host_layer.cpp"]
    assert sum(len(source.functions) for source in core.values()) > 150


def test_every_file_is_in_a_room(core: dict[str, Source]) -> None:
    assert {source.room for source in core.values()} == set(ORDER)
    built = re.findall(r"[\w/]+\.cpp", (CORE / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert {path for path in core if path.endswith(".cpp")} <= set(built)


def test_no_circle_of_files(core: dict[str, Source]) -> None:
    assert circles(call_graph(core)) == []
    assert circles(include_graph(core)) == []


def test_no_circle_of_rooms(core: dict[str, Source]) -> None:
    assert circles(rooms_of(call_graph(core), include_graph(core))) == []


def test_nothing_reaches_up(core: dict[str, Source]) -> None:
    assert upward(call_graph(core)) == []
    assert upward(include_graph(core)) == []


def test_headers_are_short(core: dict[str, Source]) -> None:
    long = {s.path: s.lines for s in core.values() if s.path.endswith(".h") and s.lines > MOST_LINES_OF_A_HEADER}
    assert set(long) <= {ABI, INTERFACE}, long


def test_functions_are_short(core: dict[str, Source]) -> None:
    long = [
        f"{s.path}: {body.split('{')[0].strip()}"
        for s in core.values()
        for body in s.bodies
        if lines_of(body) > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


def test_python_knows_the_size_of_a_small_batch(core: dict[str, Source]) -> None:
    """Placement sizes buffers for batches that the core does not put together in the stage."""
    found = re.search(r"EM_STAGE_TOKENS = (\d+)", core["measures/batches.h"].code)
    assert found and int(found[1]) == FEW_TOKENS


def test_big_structs_are_written_in_their_room(core: dict[str, Source]) -> None:
    assert written_from_outside(core) == []


def test_members_are_written_in_their_room(core: dict[str, Source]) -> None:
    assert trespasses(core) == []


# ---- seen to fail ----

A_CPP = '#include "ggml/a.h"\n// em_b()\nstatic int hidden() { return 0; }\nint em_a() { return hidden() + %s; }\n'


def plant(root: Path, files: dict[str, str]) -> dict[str, Source]:
    """Write a small core, and read it."""
    for path, text in files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return read_core(root)


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    files = {"ggml/a.h": "int em_a();\nint em_b();\n", "ggml/b.cpp": "int em_b() { return em_a(); }\n"}
    files["ggml/a.cpp"] = A_CPP % "1"
    assert circles(call_graph(plant(tmp_path, files))) == []
    files["ggml/a.cpp"] = A_CPP % "em_b()"
    assert circles(call_graph(plant(tmp_path, files))) == [["ggml/a.cpp", "ggml/b.cpp"]]


def test_a_planted_upward_call_is_found(tmp_path: Path) -> None:
    files = {"ggml/t.h": "struct em_t { int x; int em_m() const; };\n"}
    files["model/b.cpp"] = '#include "ggml/t.h"\nint em_t::em_m() const { return x; }\nint em_b() { return 1; }\n'
    files["ggml/a.cpp"] = '#include "ggml/t.h"\nint em_a(const em_t & t) { return t.em_m(); }\n'
    files["ggml/c.cpp"] = "int em_b();\nint em_c() { return em_b(); }\n"
    sources = plant(tmp_path, files)
    assert upward(call_graph(sources)) == ["ggml/a.cpp -> model/b.cpp", "ggml/c.cpp -> model/b.cpp"]
    files["ggml/a.cpp"] = '#include "model/b.h"\n'
    files["model/b.h"] = "// a room above\n"
    assert upward(include_graph(plant(tmp_path, files))) == ["ggml/a.cpp -> model/b.h"]


def test_a_planted_write_is_found(tmp_path: Path) -> None:
    fields = "".join(f"    int field{n} = 0, * other{n}[2];\n" for n in range(MOST_FIELDS))
    files = {"ggml/a.h": "struct em_big {\n" + fields + "    int sum() const { return field1; }\n};\n"}
    files["model/b.cpp"] = "int em_read(const em_big & b) { return b.field3 == 1; }\n"
    sources = plant(tmp_path, files)
    assert len(sources["ggml/a.h"].structs["em_big"]) == 2 * MOST_FIELDS
    assert written_from_outside(sources) == []
    files["model/b.cpp"] = "void em_write(em_big * b) { b->field3 += 1; }\n"
    assert written_from_outside(plant(tmp_path, files)) == ["em_big.field3 by model/b.cpp"]
    files["model/b.cpp"] = (
        "void em_write(em_layer * l) { l->residents.slot_of[size_t(1)] = 2; l->residents.read == 3; }\n"
    )
    assert trespasses(plant(tmp_path, files)) == ["residents.slot_of by model/b.cpp"]
