"""The tool behind `make mutants`, on a package of a few lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import faults
from mutants import draw

TOOL = Path(__file__).with_name("mutants.py")
AREA = "def area(width, height):\n    return width * height\n"
SIDE = "from tiny.room.{} import area\n\ndef test_area():\n    assert area(3, {side}) == 3 * {side}\n"
HURRY = "import time\nfrom tiny.room.hangs import HURRY\n\ndef test_hurry():\n    time.sleep(0 if HURRY else 60)\n"
WEAK_ROW = "| tiny/room/weak.py | area | `width * height -> width / height` | {} |\n"


@pytest.fixture
def tiny(tmp_path):
    """A checkout with one fault to make in each file, and tests of different strength."""
    files = {
        "tiny/room/weak.py": AREA,
        "tests/room/test_weak.py": SIDE.format("weak", side=1),
        "tiny/room/good.py": AREA,
        "tests/room/test_good.py": "",
        "tests/room/test_good_too.py": "import helper\n\n" + SIDE.format("good", side=2),
        "tests/helper.py": "import tiny.room.good\n",
        "tests/conftest.py": "import helper\n",
        "tiny/room/hangs.py": "HURRY = True\n",
        "tests/room/test_hangs.py": HURRY,
        "tiny/room/alone.py": AREA,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(root: Path, *files: str, code: int) -> list[str]:
    only = [f"tiny/room/{file}.py" for file in files] or ["tiny", "absent"]
    command = [sys.executable, str(TOOL), "--root", str(root), "--seconds", "3", "--only", *only]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stdout + done.stderr).splitlines()


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_weak_test_lets_a_fault_survive_and_no_file_changes(tiny):
    before = contents(tiny)
    said = run(tiny, code=1)
    outcomes = {line.split("tiny/room/")[1].split(".")[0]: line.split("  ")[0] for line in said if ".py:" in line}
    assert outcomes == {"weak": "survived", "good": "killed", "hangs": "timeout", "alone": "no mirror"}
    assert WEAK_ROW.format("").replace("  ", " ").strip() in said  # ready to be given a reason
    assert said[-2].startswith("4 faults: ")
    assert said[-1].startswith("2 survivors, of them 2 (50.0%) without a reason")
    assert contents(tiny) == before


@pytest.mark.slow
def test_a_survivor_with_a_reason_is_excused_as_long_as_its_code_is_there(tiny):
    table = tiny / "tests" / "mutants.md"
    table.write_text(WEAK_ROW.format(""))
    run(tiny, "weak", "good", code=1)
    table.write_text(WEAK_ROW.format("sides are 1"))
    assert run(tiny, "weak", "good", code=0)[-1].startswith("1 survivors, of them 0 ")
    (tiny / "tiny" / "room" / "weak.py").write_text(AREA.replace("height", "depth"))
    table.write_text(table.read_text() + "| tiny/room/gone.py | area | `a -> b` | none |\n")
    stale = [line for line in run(tiny, "weak", code=1) if line.startswith("out of date")]
    assert ["width * height" in line or "gone.py" in line for line in stale] == [True, True]


@pytest.mark.slow
def test_tests_that_fail_without_a_fault_are_named(tiny):
    (tiny / "tests" / "room" / "test_good.py").write_text("def test_nothing():\n    assert False\n")
    assert "tests/room/test_good.py" in run(tiny, "good", code=1)[-1]


def test_each_file_gets_its_share_of_the_draw():
    places = [place for lines in (5, 10, 15) for place in faults(f"{lines}.py", "a.b = 1\n" * lines)]
    drawn = draw(places, 12, seed=1)
    assert [sum(fault.file == f"{lines}.py" for fault in drawn) for lines in (5, 10, 15)] == [2, 4, 6]
    assert drawn == draw(places, 12, seed=1) != draw(places, 12, seed=2)
    assert len(draw(places, 1000, seed=1)) == len(places)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("return a < b", {"a < b -> a <= b"}),
        ("return a - b", {"a - b -> a + b", "a - b -> b - a"}),
        ("return (a - b) ** 2", {"a - b -> a + b", "(a - b) ** 2 -> (a - b) * 2", "(a - b) ** 2 -> (a - b) ** 3"}),
        ("return a[1:b]", {"a[1:b] -> a[2:b]", "a[1:b] -> a[1:b + 1]"}),
        ("return a.sum(axis=-1)", {"a.sum(axis=-1) -> a.sum()", "axis=-1 -> axis=1", "axis=-1 -> axis=-2"}),
        ("return 0.5 * a", {"0.5 * a -> 0.5 / a", "0.5 * a -> 1.0 * a"}),
        ("return 0", {"return 0 -> return 1"}),
        ("return min(a, b)", {"min(a, b) -> max(a, b)"}),
        ("return a.minimum(b)", {"a.minimum(b) -> a.maximum(b)"}),
        ("return g(a, b)", {"g(a, b) -> g(b, a)"}),
        ("return a and not b", {"a and (not b) -> a or not b", "not b -> b"}),
        ("if a:\n        return b", {"a -> True", "a -> False"}),
        ("while a:\n        b()", {"a -> False", "b() -> pass"}),
        ("return [x for x in a if x]", {"for x in a if x -> for x in a if True"}),
        ("a.b = a", {"a.b = a -> pass"}),
        ("a += b", {"a += b -> a -= b", "a += b -> pass"}),
        ("def f(*, x=True): ...", {"x=True -> x=False"}),
        ("b: tuple[2] = a", set()),
        ("'''Not 1.'''", set()),
        ("raise ValueError(f'{a + 1}')", set()),
        ("say(f'{a + 1}')", set()),
        ("logger.info(a + 1)", set()),
        ("return (a / b).log()", {"a / b -> a * b"}),
        ("return list(zip(a, strict=True))", set()),
        ("import a.b", set()),
    ],
)
def test_faults(statement, expected):
    source = f"def function(a, b):\n    {statement}\n"
    found = {f"{fault.before} -> {fault.after}" for place in faults("m.py", source) for fault in place}
    assert found == expected


def test_the_code_of_a_fault_has_it():
    (fault,) = faults("m.py", AREA)[0]
    names: dict = {}
    exec(fault.code(), names)
    assert names["area"](6, 2) == 3
    assert (fault.function, fault.line) == ("area", 2)
