import signal
import subprocess
import sys

import pytest

PROGRAM = """
import pathlib, sys, time
from cloudjob.hpc import stop
stop.install(pathlib.Path(sys.argv[1]))
stop.install(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
try:
    while not stop.requested():
        time.sleep(0.01)
    print("stopping", flush=True)
    if sys.argv[2] == "linger":
        time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(75)
"""


def start(tmp_path, mode="leave") -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "STOP"), mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_a_wish(tmp_path, number):
    process = start(tmp_path)
    process.send_signal(number)
    assert process.wait(10) == 75


def test_a_stop_file_is_a_wish(tmp_path):
    process = start(tmp_path)
    (tmp_path / "STOP").touch()
    assert process.wait(10) == 75


def test_a_second_interrupt_does_not_wait(tmp_path):
    process = start(tmp_path, "linger")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
