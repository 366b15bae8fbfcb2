"""The check for a machine with a GPU: its smallest step, rehearsed on CPUs; how its runner takes what fails."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import check
import pytest
import smoke
import summary
import table
from findings import Findings

HERE = Path(__file__).resolve().parent
SECONDS = 240  # for two short steps, on machines where others work too


def rehearse(folder: Path, *options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OUT": str(folder / "out"), "WORK": str(folder / "work"), "PYTHON": sys.executable}
    command = ["bash", HERE / "check.sh", *options, "--cpu"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * SECONDS, check=False)


@pytest.mark.slow
def test_a_step_of_the_check_runs_here(tmp_path):
    done = rehearse(tmp_path, "smoke", "--only", "arithmetic", "--seconds", str(SECONDS))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "smoke.json").read_text())
    assert {name: step["ok"] for name, step in found.items()} == {"machine": True, "arithmetic": True}
    assert found["machine"]["result"]["cores"] >= 1
    result = found["arithmetic"]["result"]
    assert all(result["noise: the same bits as on a CPU"].values())
    losses = result["loss and norm of the gradient"]
    assert losses["float32"] == losses["CPU, float32"]  # on a CPU one is the other
    assert losses["bfloat16"] != losses["CPU, float32"]
    assert all(math.isfinite(norm) and norm > 0 for _, norm in losses.values())
    assert (tmp_path / "out" / "smoke.log").read_text().count("=====") == 2
    assert "smoke: machine ok, arithmetic ok" in done.stdout


@pytest.mark.slow
def test_a_step_that_does_not_exist_is_a_mistake(tmp_path):
    done = rehearse(tmp_path, "smoke", "--only", "arithmetics")
    assert done.returncode == 2
    assert "smoke has no step arithmetics" in done.stderr


def test_every_step_is_a_function_of_its_module():
    for step in check.STEPS.values():
        module, _, function = step.function.partition(".")
        assert f"\ndef {function}(found: Findings) -> None:" in (HERE / f"{module}.py").read_text(), step


def test_the_tests_that_a_check_chooses_exist():
    assert all((smoke.ROOT / path).exists() for path in (*smoke.TESTS, *smoke.NEEDS.values()))


def test_steps_wait_only_for_steps_that_were_begun_before():
    for _, steps in check.PARTS.values():
        names = [step.name for step in steps]
        for number, step in enumerate(steps):
            assert set(step.after) <= set(names[:number]), step


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Runs a part of the check whose steps are programs of a test, and gives what was noted of them."""
    monkeypatch.setattr(check, "OUT", tmp_path / "out")
    monkeypatch.setattr(check, "WORK", tmp_path)
    monkeypatch.setattr(check, "LEAST", 1)

    def run(steps: dict[str, str], *, each: float = 60, seconds: float = 120) -> dict:
        program = tmp_path / "program.py"
        program.write_text(
            f"import json, sys, time; from pathlib import Path; steps = {steps!r}; name = sys.argv[2]\n"
            f"result = Path({str(tmp_path)!r}) / f'result-{{name}}.json'\n"
            "exec(steps[name])"
        )
        monkeypatch.setattr(check, "__file__", str(program))
        check.Part("smoke", seconds, [check.Step(f"module.{name}", each) for name in steps]).run()
        return json.loads((tmp_path / "out" / "smoke.json").read_text())

    return run


KEEP = "result.write_text(json.dumps({'ok': False, 'result': {'half': 1}})); "


@pytest.mark.slow
def test_a_step_that_runs_out_of_time_keeps_what_it_had_found_and_the_rest_goes_on(runner):
    good = "result.write_text(json.dumps({'ok': True, 'result': {'all': 2}}))"
    found = runner({"hangs": KEEP + "print('here it hangs', flush=True); time.sleep(120)", "good": good}, each=4)
    assert not found["hangs"]["ok"]
    assert found["hangs"]["result"] == {"half": 1}
    assert found["hangs"]["error"] == "took longer than 4 s"
    assert "here it hangs" in found["hangs"]["last words"]
    assert found["hangs"]["seconds"] < 30
    assert found["good"]["ok"]
    assert found["good"]["result"] == {"all": 2}
    assert "error" not in found["good"]


def test_a_step_that_crashes_is_noted_with_what_it_had_found(runner):
    found = runner({"crashes": KEEP + "import os; os._exit(7)", "silent": "sys.exit(3)"})
    assert found["crashes"]["error"] == "ended with 7"
    assert found["crashes"]["result"] == {"half": 1}
    assert found["silent"]["error"] == "ended with 3"


def test_what_a_step_has_started_ends_with_it(runner, tmp_path):
    pid = tmp_path / "pid"
    program = (
        f"import subprocess; child = subprocess.Popen(['sleep', '30']); Path({str(pid)!r}).write_text(str(child.pid))"
    )
    runner({"starts": program})
    process, end = Path("/proc", pid.read_text(), "stat"), time.monotonic() + 10
    while process.exists() and process.read_text().split()[2] != "Z":
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.05)


def test_a_step_without_time_is_not_begun(runner, tmp_path):
    found = runner({"late": f"open({str(tmp_path / 'begun')!r}, 'w')"}, seconds=0.5)
    assert found["late"]["error"] == "no time left"
    assert not (tmp_path / "begun").exists()


@pytest.mark.slow
def test_one_measurement_that_fails_leaves_the_others(tmp_path):
    found = Findings(tmp_path / "result.json", 60)

    def step(found: Findings) -> None:
        found.attempt("divides", lambda: 1 / 0)
        found.attempt("adds", lambda a, b: a + b, 1, b=2)

    assert not found.run(step)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["result"] == {"adds": 3}
    assert "ZeroDivisionError" in kept["failed"]["divides"]
    assert kept["error"] == "some of it failed"


@pytest.mark.slow
def test_a_program_that_takes_too_long_gives_what_it_had_said(tmp_path):
    found = Findings(tmp_path / "result.json", 60)
    code, said, seconds = found.call("sh", "-c", "echo begun; sleep 20 & wait", seconds=1)
    assert (code, said.strip()) == (124, "begun")
    assert seconds < 15  # what it had started is not waited for


def test_the_summary_names_what_failed_and_the_figures():
    found = {
        "same_bits": {"ok": True, "result": {"small": {"same": True}}},
        "step_base": {
            "ok": False,
            "result": {"eager": {"samples/s": 12.5, "ms a step": 80, "share of the matrix product": 0.4}},
            "failed": {"compiled": "Traceback\nRuntimeError: no compiler"},
        },
    }
    lines = summary.text("bench", found).splitlines()
    assert lines[0] == "--- bench: same_bits ok, step_base FAILED"
    assert "step_base: compiled: RuntimeError: no compiler" in lines
    assert "same_bits: small: True" in lines
    assert "step_base: eager: 12.5 samples/s, 80 ms, 0.4 of the matrix product, None GiB" in lines


def test_the_table_is_made_of_what_came_back(tmp_path):
    speed = {"samples/s": 12.5, "ms a step": 80, "share of the matrix product": 0.4, "gpu_gib": 3.5}
    bench = {
        "machine": {"ok": True, "result": {"gpu": "H200", "versions": {"torch": "2.13"}}},
        "step_base": {"ok": True, "result": {"eager": speed, "compiled": speed | {"fallback": "no compiler"}}},
        "notebook": {"ok": True, "result": {"small": {"ratio": 5.1}}},
        "training": {"ok": False},
    }
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    assert table.table(tmp_path).splitlines() == [
        "H200, torch 2.13",
        "",
        "| what | measured |",
        "|---|---|",
        "| `base`, eager | 12.5 samples/s, 40% of the matrix product, 3.5 GiB |",
        "| `base`, compiled | 12.5 samples/s, 40% of the matrix product, 3.5 GiB; NOT COMPILED: no compiler |",
        "| `small`: step over the notebook's way | 5.1 |",
    ]
