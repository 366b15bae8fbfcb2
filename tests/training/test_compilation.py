"""Compiled or not is never left unsaid: by a process of its own, as torch looks for its compiler once."""

import os
import subprocess
import sys

import pytest

from cloudjob.training.compilation import reason

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, torch
from torch import nn
from cloudjob.errors import ConfigError
from cloudjob.training.compilation import Compilation

class Twice(nn.Module):
    def forward(self, x):
        return (x * 2).sin()

module, device = Twice(), torch.device("cuda" if sys.argv[1] == "auto" else "cpu")  # of which only the kind is asked
found = Compilation(module, {"true": True, "false": False, "auto": "auto"}[sys.argv[1]], device)
try:
    same = torch.allclose(module(torch.ones(3)), torch.ones(3).mul(2).sin())
    print(found.asked, found.active, found.graphs, same, found.fallback, sep="|")
except Exception as error:
    print(found.failed(error))
"""


def said(tmp_path, choice: str, **environment: str) -> tuple[str, str]:
    """What it prints, and what torch says beside it."""
    folders = {name: str(tmp_path) for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    command = [sys.executable, "-c", PROGRAM, choice]
    done = subprocess.run(command, env=os.environ | folders | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_compiled_it_says_so(tmp_path):
    assert said(tmp_path, "true")[0] == "True|True|1|True|"
    assert said(tmp_path, "false")[0] == "False|False|0|True|"
    # The /tmp of an image without one of its own holds 64 MiB; a precompiled header alone has more.
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 32 * 2**20


def test_without_a_compiler_it_goes_on_and_says_why(tmp_path):
    line, beside = said(tmp_path, "auto", CXX="/nowhere/g++")
    asked, active, graphs, same, cause = line.split("|")
    assert (asked, active, graphs, same) == ("True", "False", "0", "True")
    assert "No working C++ compiler" in cause
    assert "Traceback" not in beside  # torch's pages on it are taken down, not shown


def test_switched_off_by_the_environment_it_says_so(tmp_path):
    line, _ = said(tmp_path, "auto", TORCHDYNAMO_DISABLE="1")
    assert line.startswith("True|False|0|True|torch compiled nothing: is TORCHDYNAMO_DISABLE")


def test_asked_for_it_does_not_go_on_without(tmp_path):
    line, _ = said(tmp_path, "true", CXX="/nowhere/g++")
    assert line.startswith("train.compile: true, but torch cannot compile here: ")
    assert "No working C++ compiler" in line
    assert "set train.compile to auto or false" in line


def test_the_reason_is_the_line_that_says_what_is_wrong():
    assert reason(RuntimeError("backend raised:\nInductorError: no compiler\nmore")) == "InductorError: no compiler"
    assert reason(RuntimeError("")) == "RuntimeError('')"


def test_what_the_compiler_of_cpp_says_is_part_of_it():
    output = (
        "CppCompileError: C++ compile error\n\nCommand:\ng++\nOutput:\n/a.h:9:2: fatal error: cannot write: No space"
    )
    assert reason(RuntimeError(output)) == "CppCompileError: C++ compile error: cannot write: No space"
