"""What the pack for a machine without a network takes, and what it leaves out; nothing is downloaded."""

import zipfile
from pathlib import Path

import pack
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = {
    "dependencies": ["torch>=2.6", "Some_Thing>=3,<4", "free>=1"],
    "optional-dependencies": {"mpi": ["mpich>=4.2"], "test": ["pytest>=8"]},
}


def wheel(folder: Path, name: str, files: dict[str, str], *requires: str, executable: tuple[str, ...] = ()) -> Path:
    """A wheel of this package with these files."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    metadata = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", *(f"Requires-Dist: {one}" for one in requires), ""])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in ({f"{name}-1.0.dist-info/METADATA": metadata} | files).items():
            info = zipfile.ZipInfo(file)
            info.external_attr = (0o755 if file in executable else 0o644) << 16
            archive.writestr(info, text)
    return path


def files_of(site: Path) -> set[str]:
    return {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}


def drained(lacking: pack.Lacking) -> set[str]:
    found = set()
    while requirement := lacking.next():
        found.add(requirement)
    return found


def test_what_is_present_is_left_out_and_the_rest_is_pinned():
    lacking = pack.Lacking(PROJECT, "some-thing==3.2  # why\nmpich==5.0.2\n", "# a comment\ntorch\n")
    assert drained(lacking) == {"Some_Thing==3.2", "free>=1", "mpich==5.0.2"}


def test_needs_of_a_package_are_taken_once():
    lacking = pack.Lacking(PROJECT, "", "torch\nmpich\n")
    drained(lacking)
    lacking.add([pack.Requirement(text) for text in ("some.thing", "torch>=1", "another")])
    assert drained(lacking) == {"another"}
    assert set(lacking.seen) == {"some-thing", "free", "another"}


def test_the_requirements_of_a_wheel_are_those_on_the_machine(tmp_path):
    requires = ["plain>=1", "old; python_version < '3.12'", "new; python_version >= '3.12'"]
    requires += ["win; sys_platform == 'win32'", "more; extra == 'all'"]
    found = pack.needs(wheel(tmp_path, "one", {}, *requires))
    assert [requirement.name for requirement in found] == ["plain", "new"]


def test_a_wheel_becomes_importable_files(tmp_path):
    files = {"one/__init__.py": "x = 1", "one/core.c": "", "one/tests/test_x.py": "", "one/table.json": "{}"}
    files |= {"one-1.0.data/purelib/beside.py": "", "one-1.0.data/platlib/fast.so": ""}
    pack.unpack(wheel(tmp_path, "one", files), tmp_path / "site")
    expected = {"one/__init__.py", "one/table.json", "beside.py", "fast.so", "one-1.0.dist-info/METADATA"}
    assert files_of(tmp_path / "site") == expected
    assert (tmp_path / "site/one/__init__.py").read_text() == "x = 1"


def test_of_mpich_only_the_library_and_its_launcher_are_taken(tmp_path):
    taken = ("bin/mpiexec", "bin/hydra_pmi_proxy", "lib/libmpi.so.12", "lib/mpich/libfabric.so.1")
    left = (
        "bin/mpicc",
        "lib/libmpifort.so.12",
        "lib/libmpi.a",
        "include/mpi.h",
        "share/man/mpi.1",
        "lib/pkgconfig/m.pc",
    )
    files = {f"mpich-1.0.data/data/{path}": "" for path in (*taken, *left)}
    program = "mpich-1.0.data/data/bin/mpiexec"
    pack.unpack(wheel(tmp_path, "mpich", files, executable=(program,)), tmp_path / "site")
    assert files_of(tmp_path / "site") == {f"mpich/{path}" for path in taken} | {"mpich-1.0.dist-info/METADATA"}
    assert (tmp_path / "site/mpich/bin/mpiexec").stat().st_mode & 0o111
    assert not (tmp_path / "site/mpich/lib/libmpi.so.12").stat().st_mode & 0o111


def test_an_archive_that_is_too_large_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "collect", lambda wheels, site: [])
    monkeypatch.setattr(pack, "MOST", 10)
    with pytest.raises(SystemExit, match=r"site\.tar\.xz is larger"):
        pack.main(tmp_path / ".gpu" / "site.tar.xz")
    assert not list((tmp_path / ".gpu").iterdir())
    monkeypatch.setattr(pack, "MOST", 10_000)
    pack.main(tmp_path / ".gpu" / "site.tar.xz")
    assert [path.name for path in (tmp_path / ".gpu").iterdir()] == ["site.tar.xz"]


def test_the_large_packages_of_the_project_are_on_the_machine_already():
    project = pack.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lacking = pack.Lacking(project, (ROOT / "constraints.txt").read_text(), (pack.HERE / "present.txt").read_text())
    names = {requirement.split("==")[0] for requirement in drained(lacking)}
    assert {"rasterio", "shapely", "pydantic", "mpich"} <= names
    assert not names & {"torch", "numpy", "scipy", "matplotlib", "hdf5plugin"}
