"""The check on a machine with one GPU: runs the steps of one part, each a process of its own with a time limit.

What a step finds (JSON), or its traceback, goes to $OUT/<part>.json as soon as it is known; what it prints goes to
$OUT/<part>.log.

    check.py smoke|bench|train [--cpu] [--only STEP,STEP] [--seconds N]
"""

import argparse
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import summary
from findings import Findings
from machine import CPU, OUT, SLOWER, WORK

LEAST = 5  # seconds; a step that has less is not begun
NO_GPU = 3


@dataclass(frozen=True)
class Step:
    """A function of one of the modules here, and how the runner treats it."""

    function: str  # module.function
    seconds: float  # it is ended after so many
    aside: bool = False  # begun at once, beside the steps that follow
    after: tuple[str, ...] = ()  # steps begun aside that it waits for
    reserved: float = 0  # seconds of the part that it leaves to the steps that follow

    @property
    def name(self) -> str:
        return self.function.partition(".")[2]


# part -> (seconds of all of it, its steps)
PARTS: dict[str, tuple[float, list[Step]]] = {
    "smoke": (
        112,
        [
            Step("smoke.machine", 60),
            Step("smoke.imports", 40),
            Step("smoke.pipeline", 90, aside=True),
            Step("exact.resume", 105, aside=True),
            Step("exact.arithmetic", 60),
            Step("exact.same_bits", 60),
            Step("smoke.ranks", 45, aside=True),
            Step("smoke.tests", 70),
            Step("smoke.mpi", 30, after=("pipeline",)),
        ],
    ),
    "bench": (
        290,
        [
            Step("smoke.machine", 60),
            Step("scene.scene_make", 130, aside=True),
            Step("bench.warm", 90),
            Step("bench.ceilings", 15),
            Step("bench.step_base", 65),
            Step("bench.step_small", 45),
            Step("bench.notebook", 35),
            Step("bench.training", 75, reserved=60),
            Step("scene.scene", 90, after=("scene_make",)),
            Step("bench.loader", 20),
        ],
    ),
    "train": (
        350,
        [
            Step("smoke.machine", 60),
            Step("train.warm_fit", 120, aside=True),
            Step("train.data", 190),
            Step("train.fit", 200, after=("warm_fit",), reserved=60),
            Step("train.table", 70, after=("fit",)),
        ],
    ),
}
STEPS = {step.name: step for _, steps in PARTS.values() for step in steps}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[*PARTS, "step"])
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--cpu", action="store_true", help="rehearse without a GPU, with small sizes")
    parser.add_argument("--only", default="", metavar="STEP,STEP")
    parser.add_argument("--seconds", type=float, help="another bound for the whole part")
    asked = parser.parse_args()
    if asked.part == "step":
        return run_step(asked.name, asked.seconds)
    seconds, steps = PARTS[asked.part]
    only = {name for name in asked.only.split(",") if name}
    if unknown := only - {step.name for step in steps}:
        parser.error(f"{asked.part} has no step {', '.join(sorted(unknown))}: {', '.join(step.name for step in steps)}")
    chosen = [step for step in steps if not only or step.name in only or step.name == "machine"]
    return Part(asked.part, asked.seconds or seconds * SLOWER, chosen).run()


def run_step(name: str, seconds: float) -> int:
    """One step, in this process; where it hangs, the log shows at the end of its time where."""
    faulthandler.dump_traceback_later(max(seconds - 3, 1), exit=False)
    module, _, function = STEPS[name].function.partition(".")
    found = Findings(WORK / f"result-{name}.json", seconds)
    return 0 if found.run(lambda found: getattr(importlib.import_module(module), function)(found)) else 1


class Part:
    """One part of the check: its steps, in order or aside, and what they have found."""

    def __init__(self, name: str, seconds: float, steps: list[Step]):
        self.name, self.begun, self.end, self.steps = name, time.monotonic(), time.monotonic() + seconds, steps
        self.found: dict[str, dict] = {}
        self.lock = threading.Lock()
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{name}.log").write_text("")

    def run(self) -> int:
        aside: dict[str, threading.Thread] = {}
        for step in self.steps:
            for other in step.after:
                if other in aside:
                    aside[other].join()
            if step.aside:
                aside[step.name] = threading.Thread(target=self.one, args=(step,))
                aside[step.name].start()
                continue
            self.one(step)
            if step.name == "machine" and not CPU and self.found["machine"].get("result", {}).get("gpu", "?") is None:
                print("torch sees no GPU here; a rehearsal without one: --cpu")
                return NO_GPU
        for thread in aside.values():
            thread.join()
        print(summary.text(self.name, self.found))
        return 0 if all(self.found.get(step.name, {}).get("ok") for step in self.steps) else 1

    def one(self, step: Step) -> None:
        """Runs a step within its own bound and that of the part, and notes what it found."""
        begun = time.monotonic()
        limit = min(step.seconds * SLOWER, self.end - begun - step.reserved)
        if limit < LEAST:
            self.note(step.name, {"ok": False, "error": "no time left", "seconds": 0})
            return
        result, log = WORK / f"result-{step.name}.json", WORK / f"log-{step.name}.txt"
        result.unlink(missing_ok=True)
        code = _bounded([step.name, "--seconds", f"{limit:.0f}", *(["--cpu"] if CPU else [])], limit, log)
        found = _verdict(result, code, limit) | {"seconds": round(time.monotonic() - begun, 1)}
        text = log.read_text(errors="replace")
        if not found["ok"]:
            found["last words"] = text[-3000:]
        with self.lock, open(OUT / f"{self.name}.log", "a") as whole:
            whole.write(f"\n===== {step.name}: {found['seconds']} s\n{text[-1_000_000:]}")
        self.note(step.name, found)

    def note(self, name: str, found: dict) -> None:
        with self.lock:
            self.found[name] = found
            after = f"{time.monotonic() - self.begun:6.1f} s"
            print(f"{after}  {name}: {'ok' if found['ok'] else 'FAILED, ' + found['error']}", flush=True)
            (OUT / f"{self.name}.json").write_text(json.dumps(self.found, indent=1) + "\n")


def _bounded(arguments: list[str], limit: float, log: Path) -> int | None:
    """The exit code of a step's process, None where its time was over. Whatever it has started ends with it."""
    with open(log, "w") as said:
        command = [sys.executable, __file__, "step", *arguments]
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(child.pid, number)
                    child.wait(2)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


def _verdict(result: Path, code: int | None, limit: float) -> dict:
    """What a step has found, whether all of it is good, and else why not: as far as its process came."""
    found = json.loads(result.read_text()) if result.exists() else {}
    if found.get("ok") and code == 0:
        return found
    ended = f"took longer than {limit:.0f} s" if code is None else f"ended with {code}"
    why = found.get("error", ended) if code is not None else "; ".join(filter(None, (ended, found.get("error"))))
    return found | {"ok": False, "error": why}


if __name__ == "__main__":
    sys.exit(main())
