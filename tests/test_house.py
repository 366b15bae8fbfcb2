"""The rules of the house: who may import whom, and one owner for each foreign library."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cloudjob"
ROOMS = {"copernicus", "sentinel2", "patches", "diffusion", "hpc", "archive"}
DOORS = {("patches", "sentinel2"), ("archive", "sentinel2")}
OWNERS = {
    "torch.distributed": {"hpc/distributed.py"},
    "mpi4py": {"hpc/mpi.py"},
    "hdf5plugin": {"patches/shards.py"},
    "h5py": {"patches/shards.py", "sentinel2/output.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_house(path):
    place = path.relative_to(PACKAGE)
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("cloudjob.")}
    room = place.parts[0] if len(place.parts) > 1 else place.stem
    if room in ROOMS:
        others = {other for other in ours & ROOMS if other != room and (room, other) not in DOORS}
        assert not others, f"room {room} imports {others}"
        assert not ours & {"config", "workspace", "cli", "stages"}
    elif room in ("stages", "training", "scoring", "benches", "comparison"):
        assert not ours & {"stages", "cli"}
    elif room in ("config", "workspace", "errors"):
        assert ours <= {"errors"}
    for library, owners in OWNERS.items():
        if any(name == library or name.startswith(library + ".") for name in names):
            assert str(place) in owners, f"{library} is imported"
    if "requests" in {name.split(".")[0] for name in names}:
        assert room == "copernicus"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_file_reads_the_variables_of_slurm(path):
    strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    reads = any(isinstance(s, str) and s.startswith("SLURM_") and s.isupper() for s in strings)
    assert not reads or path.relative_to(PACKAGE) == Path("hpc/slurm.py")
