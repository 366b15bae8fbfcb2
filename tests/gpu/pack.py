"""What a machine with one GPU and no network lacks of the project's packages, as one archive of importable folders.

    pack.py TARGET

These are the packages that pyproject.toml needs and present.txt does not list, and their own needs: wheels for CPython
3.12 on x86-64 Linux, at the versions of constraints.txt. Of mpich only the library and its launcher are taken, into a
folder of that name. Extras are left out but for `mpi`.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXTRAS = ("mpi",)
MOST = 50 * 2**20  # bytes of the archive: more than that is a package that needs a look
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
NEWER_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (24, 31, 34, 35, 39)]
ENVIRONMENT = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
    "os_name": "posix",
    "extra": "",
}
# Of mpich: what building a program takes, and what only other languages need.
MPICH_LEAVES_OUT = re.compile(
    r"libmpi_abi|nameserver|persist|mpivars|parkill|mpicc|mpicxx|mpifort|mpif|pkgconfig|\.mod$|\.h$|\.a$|libmpifort|libmpicxx"
)


def main(target: Path) -> None:
    begun, target = time.monotonic(), target.absolute()
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder) / "wheels", Path(folder) / "site"
        wheels.mkdir()
        site.mkdir()
        packages = collect(wheels, site)
        part = target.with_name(target.name + ".part")
        with tarfile.open(part, "w:xz", preset=6) as archive:
            archive.add(site, ".")
    size = part.stat().st_size
    print(f"{target.name}: {len(packages)} packages, {size / 2**20:.1f} MiB, {time.monotonic() - begun:.0f} s")
    if size > MOST:
        part.unlink()
        sys.exit(f"{target.name} is larger than {MOST >> 20} MiB: has it packages that no check needs?")
    part.replace(target)


def collect(wheels: Path, site: Path) -> list[str]:
    """Downloads and unpacks what is lacking; the names of those packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lacking = Lacking(project, (ROOT / "constraints.txt").read_text(), (HERE / "present.txt").read_text())
    while requirement := lacking.next():
        wheel = download(requirement, wheels)
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}", flush=True)
        lacking.add(needs(wheel))
        unpack(wheel, site)
    return lacking.seen


class Lacking:
    """The packages that are to be packed, each once, found one after the other."""

    def __init__(self, project: dict, constraints: str, present: str):
        self.queue = [Requirement(text) for text in project["dependencies"]]
        for extra in EXTRAS:
            self.queue += [Requirement(text) for text in project["optional-dependencies"][extra]]
        self.present = {plain(line) for line in present.splitlines() if line and not line.startswith("#")}
        pairs = (line.split("#")[0].strip().split("==") for line in constraints.splitlines())
        self.versions = {plain(pair[0]): pair[1] for pair in pairs if len(pair) == 2}
        self.seen: list[str] = []

    def add(self, requirements: list[Requirement]) -> None:
        self.queue += requirements

    def next(self) -> str | None:
        """The next one as pip takes it, at the version that is pinned; None when nothing is left."""
        while self.queue:
            one = self.queue.pop()
            name = plain(one.name)
            if name not in self.present and name not in self.seen:
                self.seen.append(name)
                version = self.versions.get(name)
                return f"{one.name}=={version}" if version else f"{one.name}{one.specifier}"
        return None


def plain(name: str) -> str:
    """The name of a package in its one normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def download(requirement: str, folder: Path) -> Path:
    """The wheel that the machine takes; the oldest platforms first."""
    before = set(folder.iterdir())
    for platforms in (PLATFORMS, PLATFORMS + NEWER_PLATFORMS):
        options = [part for name in platforms for part in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *options]
        command += ["--python-version", "3.12", "--implementation", "cp", "-d", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if found := set(folder.iterdir()) - before:
            return found.pop()
    sys.exit(f"{requirement}: no wheel for CPython 3.12 on x86-64 Linux\n{done.stderr[-2000:]}")


def needs(wheel: Path) -> list[Requirement]:
    """What a wheel requires on the machine."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    requirements = [Requirement(text) for text in found]
    return [one for one in requirements if one.marker is None or one.marker.evaluate(ENVIRONMENT)]


def unpack(wheel: Path, site: Path) -> None:
    """A wheel is an archive of its importable files; those of its `data` (mpich) go into a folder of its name."""
    package = plain(wheel.name.split("-")[0])
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path, target = info.filename, site
            if ".data/data/" in path:
                path, target = path.split(".data/data/", 1)[1], site / package
            elif re.search(r"\.data/(purelib|platlib)/", path):
                path = re.split(r"\.data/(?:purelib|platlib)/", path, maxsplit=1)[1]
            if info.is_dir() or not kept(package, path):
                continue
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(info))
            place.chmod(0o755 if (info.external_attr >> 16) & 0o111 else 0o644)


def kept(package: str, path: str) -> bool:
    """Whether a program needs this file of a package when it runs."""
    if package == "mpich":
        runs = path.startswith(("bin/", "lib/")) and not MPICH_LEAVES_OUT.search(path)
        return runs or ".dist-info/" in path
    return "/tests/" not in path and not path.endswith((".pyx", ".pxd", ".c", ".h"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
