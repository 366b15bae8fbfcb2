"""What is printed into nothing ends no work: closed pipes, full disks, closed streams, locales without UTF-8."""

import errno
import os
import subprocess
import sys

import pytest
from forked import Forked
from front_door import CLOUDJOB, CONFIG, call

from cloudjob.cli import streams

HERE = {**os.environ, "PYTHONPATH": str(CONFIG.parents[1])}
ENVIRONMENT = {"env": HERE, "text": True, "timeout": 100, "check": False}


@pytest.fixture
def nobody():
    """The writing end of a pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_what_a_descriptor_does_not_take_is_lost_and_the_first_reason_kept(nobody):
    out = streams.Lasting(nobody, "w", closefd=False)
    assert out.write(b"abc") == 3
    assert out.lost.errno == errno.EPIPE
    with open("/dev/full", "wb", buffering=0) as full:
        out = streams.Lasting(full.fileno(), "w", closefd=False)
        assert out.write(memoryview(b"abc")) == 3
        assert out.lost.errno == errno.ENOSPC
    read, write = os.pipe()
    out = streams.Lasting(write, "w")
    assert out.write(b"abc") == 3
    assert out.lost is None
    out.close()
    assert os.read(read, 9) == b"abc"
    os.close(read)


def test_streams_that_somebody_has_replaced_stay():
    before = sys.stdout, sys.stderr
    streams.settle()
    assert (sys.stdout, sys.stderr) == before


PROGRAM = """
import sys
from cloudjob.cli import streams
streams.settle()
print("out: J\\u00f6rn \\u4e91"); print("err: J\\u00f6rn \\u4e91", file=sys.stderr)
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write(f"{streams.unsaid()} {file.fileno() > 2}")
"""


@pytest.mark.parametrize(
    ("shell", "reason"),
    [
        ("{} >/dev/full 2>/dev/full", "[Errno 28] No space left on device"),
        ("{} >&- 2>&- <&-", "None"),
        ("({}; true) 2>&1 | true", "None"),
        ("LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 {}", "None"),
    ],
)
def test_a_process_goes_on_whatever_its_streams_are(tmp_path, shell, reason):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    command = shell.format(f"{sys.executable} {program} {tmp_path / 'said'}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == f"{reason} True"
    if "LC_ALL" in shell:
        assert done.stdout == "out: J\\xf6rn \\u4e91\n"
        assert done.stderr == "err: J\\xf6rn \\u4e91\n"


@pytest.mark.slow
def test_who_loses_the_reader_of_its_messages_does_all_of_the_work(tmp_path, nobody):
    command = [*CLOUDJOB, "run", CONFIG, "--run-dir", tmp_path / "run", "--until", "preview"]
    with Forked(command, stdout=nobody, stderr=nobody) as process:
        assert process.wait(100) == 0
    done = call("plan", tmp_path / "run").stdout.splitlines()
    assert [line.split()[:3:2] for line in done[:2]] == [["search", "done"], ["preview", "done"]]
    assert "missing" not in "".join(done[:2])
    with open("/dev/full", "w") as full, Forked([*CLOUDJOB, "plan", tmp_path / "run"], stdout=full) as process:
        assert process.wait(100) == 4, "an answer that nobody can read"
    with Forked([*CLOUDJOB, "plan", tmp_path / "run"], stdout=nobody) as process:
        assert process.wait(100) == 0, "who closes the pipe has read enough"
