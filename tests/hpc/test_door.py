"""Where ranks meet: other programs at the port, other jobs at the door, no port at all."""

import json
import socket
import threading

import pytest

from cloudjob.errors import InterruptedJob
from cloudjob.hpc import door


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def opened():
    doors = []

    def make(whose: str, first: int, store: int) -> door.Door:
        doors.append(door.Door(whose, first))
        doors[-1].open(store)
        return doors[-1]

    yield make
    for each in doors:
        each.close()


def test_the_ports_follow_from_the_one_that_was_given():
    for first in (80, 10000, 29500, 59999, 65535):
        found = door.ports(first)
        assert found == door.ports(first)
        assert found[0] == first
        assert len(set(found)) == 8
        assert all(10000 <= port < 60000 for port in found[1:])


@pytest.mark.parametrize("neighbour", [b"", b"SSH-2.0\r\n", b"\xff\xfe\n", b"7\n", b'["job 1", 1]\n', None])
@pytest.mark.slow
def test_a_taken_port_is_passed_by_both(port, opened, neighbour):
    """By one that says something, nothing, or holds the line without a word."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", port))
        other.listen()
        held = []

        def answer():
            while True:
                try:
                    held.append(other.accept()[0])
                except OSError:
                    return
                if neighbour is not None:
                    held[-1].sendall(neighbour)
                    held[-1].close()

        threading.Thread(target=answer, daemon=True).start()
        assert opened("job 2", port, 4711).port != port
        assert door.find("job 2", "127.0.0.1", port, 20) == 4711
        other.shutdown(socket.SHUT_RDWR)


def test_each_rank_finds_the_door_of_its_own_job(port, opened):
    for number in (1, 2, 3):
        opened(f"job {number}", port, number)
    for number in (3, 1, 2):
        assert door.find(f"job {number}", "127.0.0.1", port, 20) == number
    assert door.find("job 4", "127.0.0.1", port, 0.5) is None


def test_a_door_that_is_closed_leaves_its_port(port, opened):
    made = opened("job", port, 1)
    made.close()
    assert door.find("job", "127.0.0.1", port, 0.5) is None
    assert opened("job", port, 2).port == port


def test_without_any_port_the_job_is_put_back(port, monkeypatch):
    def taken(port):
        raise OSError("in use")

    monkeypatch.setattr(door, "listening", taken)
    with pytest.raises(InterruptedJob, match=rf"ports {port}, .* are all taken.*MASTER_PORT") as caught:
        door.Door("job", port)
    assert caught.value.exit_code == 75


def test_the_answer_is_a_line_of_json(port, opened):
    opened("job 7 of 4", port, 4711)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line, line.makefile() as file:
        assert json.loads(file.read()) == ["job 7 of 4", 4711]
