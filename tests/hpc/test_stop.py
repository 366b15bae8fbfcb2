import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cloudjob.hpc import stop

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


def test_a_file_system_is_asked_once_a_second(tmp_path, monkeypatch):
    clock, asked = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(stop, "_state", dict(stop._state))
    monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(stop.os.path, "exists", lambda path: bool(asked.append(path)) or clock.now > 2)
    stop.install(tmp_path / "STOP")
    heard = []
    for clock.now in (0.0, 0.4, 0.9, 1.0, 1.9, 2.5, 2.6):
        heard.append(stop.requested())
    assert heard == [False] * 5 + [True] * 2
    assert len(asked) == 3


def test_a_second_interrupt_does_not_wait(tmp_path):
    process = start(tmp_path, "linger")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
