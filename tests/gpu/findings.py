"""What one step of a check finds: kept in a file as it comes, so that the end of its time loses the rest alone."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine

OUT_OF_TIME = 124  # as the exit code of a program


class Findings:
    """The result of one step, the measurements of it that failed, and the time it has left.

    The file holds {"ok", "result"}; where something failed also "error" and "failed" (measurement -> traceback).
    """

    def __init__(self, file: Path, seconds: float):
        self.file, self.end = file, time.monotonic() + seconds
        self.result: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.error: str | None = None
        self.ok = False

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def keep(self, **found: Any) -> None:
        self.result |= found
        shown: dict[str, Any] = {"ok": self.ok, "result": self.result}
        if self.failed:
            shown["failed"] = self.failed
        if not self.ok and (self.error or self.failed):
            shown["error"] = self.error or "some of it failed"
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(shown, default=str))
        part.replace(self.file)

    def run(self, step: Callable[["Findings"], None]) -> bool:
        """Runs the whole step; a traceback goes to the log, its last line into the file."""
        try:
            step(self)
            self.ok = not self.failed
        except Exception as error:
            traceback.print_exc()
            self.error = f"{type(error).__name__}: {error}"[:2000]
        self.keep()
        return self.ok

    def attempt(self, name: str, measurement: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """One of several measurements of a step: what it returns is kept under its name, or its traceback is."""
        if self.left < 4:
            self.failed[name] = "no time left"
            return None
        try:
            found = measurement(*arguments, **options)
        except Exception:
            self.failed[name] = traceback.format_exc()[-2500:]
            self.keep()
            print(traceback.format_exc(), flush=True)
            machine.free()
            return None
        self.keep(**{name: found})
        return found

    def call(self, *command: Any, seconds: float | None = None, **options: Any) -> tuple[int, str, float]:
        """(exit code, what it printed, seconds) of a program; what it printed goes to the log too."""
        begun, code = time.monotonic(), OUT_OF_TIME
        # A file: a pipe would stay open as long as any process that the program has started.
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            words = [str(part) for part in command]
            child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True, **options)
            try:
                code = child.wait(seconds or max(self.left - 4, 1))
            except subprocess.TimeoutExpired:
                child.terminate()  # launchers pass it on to their ranks
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1)
                child.kill()
                child.wait()
            log.seek(0)
            said = log.read()
        took = round(time.monotonic() - begun, 2)
        print(f"$ {' '.join(map(str, command))}   -> {code} after {took} s\n{said[-20000:]}", flush=True)
        return code, said, took

    def call_all(self, commands: list[list], at_once: int) -> None:
        """Runs all of these programs, so many side by side, one thread each; RuntimeError where one fails."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with ThreadPoolExecutor(at_once) as pool:
            codes = list(pool.map(lambda command: self.call(*command, env=environment)[0], commands))
        if any(codes):
            raise RuntimeError(f"{sum(map(bool, codes))} of {len(codes)} programs failed: see the log")
