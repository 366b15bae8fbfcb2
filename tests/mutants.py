"""Do the tests notice small faults? `make mutants` draws some by seed and runs the tests that mirror the faulty file.

The mirror of `cloudjob/<room>/<file>.py` is `tests/<room>/test_<file>.py` (or `test_<room>_<file>.py`) with what begins
like it; the tests marked slow are left out. A fault is put into the module as it is imported, in a process forked for
it: nothing is written into the checkout, and a fault costs the seconds of its tests, not those of `import torch`.
Programs that a test starts see the sound code. Faults that no test can notice are listed with the reason in
`tests/mutants.md`.

Own code because mutmut 3, the library that also forks, copies the checkout into a folder inside it, changes functions
alone, draws no sample, and picks tests by the coverage of the whole suite where a mirror's strength is in question.
"""

import argparse
import gc
import importlib
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
from faults import Fault, faults

PACKAGES = ("cloudjob/diffusion", "cloudjob/restoration", "cloudjob/patches", "cloudjob/scoring")
TOLERATED = 0.05  # share of faults that may survive without a reason
PATIENCE = 4  # times what the sound code takes: a fault that needs longer counts as noticed
MEMORY = 16 * 2**30  # bytes of address space for a run: a fault may ask for a tensor of any size
PRIVATE = {"mpi4py"}  # starts MPI when imported, which no fork survives


@dataclass(frozen=True)
class Run:
    """The tests to run in a fork; with a fault in their code, or with none to see that they pass."""

    tests: tuple[str, ...]
    limit: float = float("inf")
    fault: Fault | None = None


class Faulty(SourceFileLoader):
    """Loads a module with a fault in it, and is the finder that knows no other module."""

    def __init__(self, root: Path, fault: Fault):
        module = fault.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(module, str(root / fault.file))
        self.fault = fault

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, name):
        return self.fault.code()


def sources(root: Path, only: Iterable[str]) -> list[str]:
    """The files of the given packages, and the files given, below `root`; a package that does not exist has none."""
    found = [path for each in only for path in sorted((root / each).rglob("*.py")) or [root / each]]
    return [path.relative_to(root).as_posix() for path in found if path.is_file()]


def mirror(root: Path, source: str) -> tuple[str, ...]:
    """The test files of a source file: by its name, and by its name and an addition that is no other file's name."""
    path, folder = Path(source), root / "tests" / Path(*Path(source).parent.parts[1:])
    others = tuple(f"test_{each.stem}" for each in (root / path.parent).glob(f"{path.stem}_*.py"))
    named = [folder / f"test_{path.parent.name}_{path.stem}.py", folder / f"test_{path.stem}.py"]
    named += sorted(folder.glob(f"test_{path.stem}_*.py"))
    found = [each for each in named if each.is_file() and not each.stem.startswith(others)]
    return tuple(each.relative_to(root).as_posix() for each in found)


def draw(places: list[list[Fault]], count: int, seed: int) -> list[Fault]:
    """One fault from each of `count` equal stretches of the list: every file gets its share."""
    rng, count = random.Random(seed), min(count, len(places))
    edges = [i * len(places) // count for i in range(count + 1)] if count else []
    return [rng.choice(places[rng.randrange(*edges[i : i + 2])]) for i in range(count)]


def excused(path: Path) -> dict[tuple[str, str, str], str]:
    """The rows of the table of survivors: (file, function, `before -> after`) -> reason."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {tuple(cell.strip("`") for cell in row[:3]): row[3] for row in rows if len(row) == 4 and " -> " in row[2]}


def start(root: Path, run: Run, folder: Path) -> int:
    """Forks a process that runs the tests and ends with pytest's code; without a fault it lists the modules it used."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(root)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for stream in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        if run.fault:
            sys.meta_path.insert(0, Faulty(root, run.fault))
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        ended = int(pytest.main([*options, f"--basetemp={folder / 'tests'}", *run.tests]))
        if not run.fault:
            own = tuple(str(each) for each in root.iterdir() if not each.name.startswith("."))
            files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
            foreign = [name for name, file in files.items() if file and not file.startswith(own)]
            (folder / "modules").write_text("\n".join(foreign))
        code = ended
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """Ends the process with all that it has started; its status (as `os.waitpid` gives it) if it ended by itself."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def results(root: Path, runs: Iterable[Run], jobs: int, until: float) -> Iterator[tuple[Run, str, float]]:
    """Each run with its outcome and seconds as it ends, `jobs` at a time; what is not done by `until` is left out."""
    waiting, running = deque(runs), {}
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as name:
        try:
            while (waiting or running) and time.monotonic() < until:
                while waiting and len(running) < jobs:
                    run, folder = waiting.popleft(), Path(tempfile.mkdtemp(dir=name))
                    running[start(root, run, folder)] = run, folder, time.monotonic()
                for pid, (run, folder, began) in list(running.items()):
                    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    seconds = time.monotonic() - began
                    if ended or seconds > run.limit:
                        del running[pid]
                        passed = end(pid) == 0
                        if not run.fault and passed:
                            preload((folder / "modules").read_text().split())
                        yield run, ("survived" if passed else "killed") if ended else "timeout", seconds
                time.sleep(0.02)
        finally:
            for pid in running:
                end(pid)


def preload(modules: list[str]) -> None:
    """Imports what the tests of sound code have imported from elsewhere, so that later forks find it in memory."""
    for module in modules:
        if module not in sys.modules and module.split(".")[0] not in PRIVATE:
            with suppress(Exception):
                importlib.import_module(module)
    gc.freeze()


def usual_seconds(root: Path, mirrors: set[tuple[str, ...]], jobs: int, until: float) -> dict[tuple[str, ...], float]:
    """What each mirror takes on sound code. Stops where one does not pass: it would find every fault."""
    usual = {}
    for run, outcome, seconds in results(root, [Run(tests) for tests in sorted(mirrors)], jobs, until):
        if outcome != "survived":
            sys.exit(f'without any fault these tests fail; see: pytest -m "not slow" {" ".join(run.tests)}')
        usual[run.tests] = seconds
    if mirrors - set(usual):
        sys.exit("the time is over before all tests have run once on sound code: give more --minutes")
    return usual


def report(outcomes: dict[Fault, str], drawn: list[Fault], reasons: dict, stale: list) -> int:
    """Prints the summary and the survivors as rows of the table; the exit code."""
    survivors = [fault for fault, outcome in outcomes.items() if outcome in ("survived", "no mirror")]
    open_ones = [fault for fault in survivors if not reasons.get(fault.key)]
    for fault in open_ones:
        cells = fault.file, fault.function, f"`{fault.before} -> {fault.after}`"
        print("|", " | ".join(cell.replace("|", "\\|") for cell in cells), "| |")
    for key in stale:
        print("out of date in tests/mutants.md:", *key)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in Counter(outcomes.values()).most_common())
    print(f"{len(drawn)} faults: {counts or 'none run'}; {len(drawn) - len(outcomes)} not run for want of time")
    share = len(open_ones) / max(len(drawn), 1)
    print(f"{len(survivors)} survivors, of them {len(open_ones)} ({share:.1%}) without a reason in tests/mutants.md")
    return int(share > TOLERATED or len(outcomes) < len(drawn) or bool(stale))


def main() -> int:
    parser = argparse.ArgumentParser(description="Puts small faults into the code; counts those that the tests miss.")
    parser.add_argument("--only", nargs="+", default=PACKAGES, metavar="PATH", help="packages or files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--minutes", type=float, default=60, help="of the whole")
    parser.add_argument("--seconds", type=float, default=20, help="the least time limit of a run")
    parser.add_argument("--list", action="store_true", help="show what would be drawn, run nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="another checkout")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it ends its forks, too
    root, until = options.root.resolve(), time.monotonic() + 60 * options.minutes
    places = [place for file in sources(root, options.only) for place in faults(file, (root / file).read_text())]
    drawn = draw(places, options.count, options.seed)
    if not drawn:
        sys.exit(f"no fault to make in {', '.join(options.only)}")
    if options.list:
        print(*drawn, sep="\n")
        return 0
    sys.path.insert(0, str(root))
    mirrors = {fault: mirror(root, fault.file) for fault in drawn}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ |= {"HYPOTHESIS_STORAGE_DIRECTORY": folder, "CI": "true"}  # where CI is set, it repeats its examples
        sys.dont_write_bytecode = True
        usual = usual_seconds(root, set(filter(None, mirrors.values())), options.jobs, until)
        print(f"{len(usual)} mirrors pass, in {statistics.fmean(usual.values() or [0]):.1f} s on average", flush=True)
        outcomes = {fault: "no mirror" for fault, tests in mirrors.items() if not tests}
        limits = {tests: max(options.seconds, PATIENCE * seconds) for tests, seconds in usual.items()}
        runs = [Run(tests, limits[tests], fault) for fault, tests in mirrors.items() if tests]
        for fault in outcomes:
            print("no mirror         ", fault)
        for run, outcome, seconds in results(root, runs, options.jobs, until):
            outcomes[run.fault] = outcome
            print(f"{outcome:9} {seconds:6.1f} s ", run.fault, flush=True)
    reasons, known = excused(root / "tests" / "mutants.md"), {fault.key for place in places for fault in place}
    files = {fault.file for place in places for fault in place}
    stale = [key for key in reasons if key not in known and (key[0] in files or not (root / key[0]).exists())]
    return report(outcomes, drawn, reasons, stale)


if __name__ == "__main__":
    sys.exit(main())
