"""The rules of the house: who may import whom, one owner per foreign library, files and functions of readable size."""

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "cloudjob"
# From the roof to the ground: a room imports from the floors below it, never from its own or from above.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"stages", "comparison", "benches", "api"},
    {"config", "run"},
    {"training"},
    {"scoring", "pages"},
    {"restoration"},
    {"archive", "patches"},
    {"copernicus", "sentinel2", "diffusion", "hpc"},
    {"leases"},
    {"files", "footprints", "names", "pixels"},
    {"errors"},
    {"__init__"},  # the version
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OWNERS = {
    "torch.distributed": {"hpc/distributed.py"},
    "mpi4py": {"hpc/mpi.py"},
    "hdf5plugin": {"patches/"},
    "h5py": {"patches/", "restoration/output/hdf5.py"},
    "requests": {"copernicus/"},
    "botocore": {"copernicus/sources/s3.py", "copernicus/checkup.py"},
    "boto3": set(),  # where it is installed, rasterio imports it too
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines
FILES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """The folder of a file below the package, or a file of the package's own by its stem."""
    place = path.relative_to(PACKAGE)
    return place.parts[0] if len(place.parts) > 1 else place.stem


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(parsed(path)))


@functools.cache
def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """The rooms of the house that a file imports from, but for its own."""
    parts = [found.split(".") for found in imported(path) if found.split(".")[0] == "cloudjob"]
    rooms = {part[1] if len(part) > 1 and part[1] in FLOOR else "__init__" for part in parts}
    return rooms - {room(path)}


def test_imports_go_downwards_alone():
    assert {room(path) for path in FILES} <= set(FLOOR), "a room that stands on no floor"
    upwards = {name(path): {other for other in ours(path) if FLOOR[other] <= FLOOR[room(path)]} for path in FILES}
    assert not {file: rooms for file, rooms in upwards.items() if rooms}


def test_stages_do_not_import_stages():
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not [found for found in imported(path) if found.startswith("cloudjob.stages")], name(path)


def test_no_file_of_a_room_needs_itself():
    """No circle of imports at the top of modules within a room either."""
    needs = {name(path): _at_import(path) for path in FILES}
    done: set[str] = set()
    while left := {file for file in needs if file not in done}:
        free = {file for file in left if not needs[file] & left - {file}}
        assert free, f"a circle among {sorted(left)}"
        done |= free


def _at_import(path: Path) -> set[str]:
    """The files of the house that a file imports when it is imported itself."""
    found = set()
    for node in parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cloudjob":
            for alias in node.names:
                for dotted in (f"{node.module}.{alias.name}", node.module):
                    file = PACKAGE.joinpath(*dotted.split(".")[1:]).with_suffix(".py")
                    if file.is_file() and file.parent != PACKAGE.parent:
                        found.add(name(file))
                        break
    return found


def test_foreign_libraries_have_one_owner():
    for path in FILES:
        for library, owners in OWNERS.items():
            if any(found == library or found.startswith(library + ".") for found in imported(path)):
                assert any(name(path).startswith(owner) for owner in owners), f"{library} is imported by {name(path)}"


def test_only_one_file_reads_the_variables_of_slurm():
    texts = {(name(path), node.value) for path in FILES for node in nodes(path) if isinstance(node, ast.Constant)}
    reads = {file for file, text in texts if isinstance(text, str) and text.startswith("SLURM_") and text.isupper()}
    assert reads <= {"hpc/slurm.py"}


def test_files_and_functions_are_short():
    assert not [name(path) for path in FILES if path.read_text().count("\n") > LONGEST_FILE]
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found = [(name(path), node) for path in FILES for node in nodes(path) if isinstance(node, functions)]
    assert not [(file, node.name) for file, node in found if node.end_lineno - node.lineno >= LONGEST_FUNCTION]


def test_no_list_of_class_numbers_stands_for_their_names():
    tuples = [(name(path), node) for path in FILES for node in nodes(path) if isinstance(node, ast.Tuple)]
    numbers = [(file, node.lineno, [getattr(each, "value", None) for each in node.elts]) for file, node in tuples]
    assert not [(file, line) for file, line, values in numbers if values == [1, 2, 3]]


def test_texts_are_of_a_named_encoding():
    """Not of the locale's: a cluster may have one without UTF-8."""
    calls = [(name(path), node) for path in FILES for node in nodes(path) if isinstance(node, ast.Call)]
    assert not [(file, call.lineno) for file, call in calls if _takes_the_locale(call)]


def _takes_the_locale(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    match call.func:
        case ast.Attribute(attr="read_text" | "write_text"):
            return "encoding" not in given
        case ast.Name(id="open") | ast.Attribute(value=ast.Name(id="path" | "file" | "temporary"), attr="open"):
            binary = [a for a in [*call.args, *given.values()] if isinstance(a, ast.Constant) and "b" in str(a.value)]
            return "encoding" not in given and not binary
    return "text" in given and "encoding" not in given


def test_every_room_says_what_it_is_for():
    for path in FILES:
        assert path.name == "__init__.py" or ast.get_docstring(parsed(path)), name(path)
