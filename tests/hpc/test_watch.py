"""Three processes that watch each other, without torch: whoever is lost is named once, and all end."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from cloudjob.hpc import watch

PROGRAM = """
import json, sys, time
from cloudjob.hpc import watch
watch.SILENCE_S, watch.GRACE_S = 2.0, 0.5
rank, address = int(sys.argv[1]), sys.argv[2] or None
here = watch.Watch(rank, 3, code=4, address=address, speaks=rank == 1)
if rank == 0:
    print(here.address("127.0.0.1"), flush=True)
    assert here.all_here(20) == []
here.seen = 8 * rank
print("here", flush=True)
for line in sys.stdin:  # what the test says that this rank does
    if line == "fail\\n":
        here.fail("shard 7 is missing", 3)
        sys.exit(3)
    if line == "settle\\n":  # its collective call has failed
        print(here.settle().text, flush=True)
        sys.exit(5)
    if line == "behind\\n":
        time.sleep(1.5)
        print(here.behind(), flush=True)
    if line == "leave\\n":
        here.close()
        sys.exit(0)
time.sleep(60)  # in a collective call
"""


class Three:
    def __init__(self):
        self.ranks = [self._start(0, "")]
        self.address = self.ranks[0].stdout.readline().strip()
        self.ranks += [self._start(rank, self.address) for rank in (1, 2)]
        assert [rank.stdout.readline() for rank in self.ranks] == ["here\n"] * 3

    def _start(self, rank: int, address: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(rank), address]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def tell(self, rank: int, word: str) -> None:
        self.ranks[rank].stdin.write(word + "\n")
        self.ranks[rank].stdin.flush()

    def end(self) -> tuple[list[int], list[str]]:
        """Exit codes, and all that was said on standard error."""
        said = [rank.communicate(timeout=30)[1] for rank in self.ranks]
        return [rank.returncode for rank in self.ranks], [line for text in said for line in text.splitlines()]


@pytest.fixture
def three():
    made = Three()
    yield made
    for rank in made.ranks:
        rank.kill()
        rank.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_all_and_is_named_once(three, lost, number):
    three.ranks[lost].send_signal(number)
    codes, said = three.end()
    assert codes == [-signal.SIGKILL if rank == lost else 4 for rank in range(3)]
    (line,) = said
    assert f"rank {lost} of 3 on {socket.gethostname()} (process {three.ranks[lost].pid})" in line
    assert ("killed" if number == signal.SIGKILL else "not answered") in line


@pytest.mark.slow
def test_a_suspended_job_goes_on_and_finds_who_does_not_wake(three):
    """All stand still for longer than a silent rank may, and wake some time apart."""
    three.tell(0, "behind")
    assert three.ranks[0].stdout.readline() == "[0, 1]\n"
    for _ in range(2):
        for rank in three.ranks:
            rank.send_signal(signal.SIGSTOP)
        time.sleep(3.5)
        for rank in three.ranks:
            rank.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        time.sleep(2.5)
        assert [rank.poll() for rank in three.ranks] == [None] * 3
    for rank in three.ranks:
        rank.send_signal(signal.SIGSTOP)
    time.sleep(3)
    for rank in three.ranks[:2]:
        rank.send_signal(signal.SIGCONT)
    codes, said = three.end()
    assert codes == [4, 4, -signal.SIGKILL]
    assert "rank 2 of 3" in said[0]


def test_a_lost_rank_ends_a_job_within_half_a_minute():
    """By the settings of a job; those of these tests and of tests/training are shorter."""
    assert watch.SILENCE_S + watch.GRACE_S + 2 * watch._BEAT_S < 30


@pytest.mark.slow
def test_a_rank_that_fails_says_why_and_rank_0_passes_it_on(three):
    three.tell(2, "fail")
    codes, said = three.end()
    assert codes == [3, 3, 3]
    assert said == [f"cloudjob: rank 2 of 3 on {socket.gethostname()}: shard 7 is missing"]


@pytest.mark.slow
def test_a_failed_collective_call_learns_its_cause_and_leaves_by_itself(three):
    for rank in (0, 1):
        three.tell(rank, "settle")
    three.ranks[2].kill()
    codes, said = three.end()
    assert codes == [5, 5, -signal.SIGKILL]
    assert said == []


@pytest.mark.slow
def test_nobody_is_missed_who_said_goodbye_whoever_knocks(three):
    three.tell(0, "behind")
    assert three.ranks[0].stdout.readline() == "[0, 1]\n"
    _, port, _ = json.loads(three.address)
    for word in (b"GET / HTTP/1.0\r\n\r\n", b"", b"7\n", b'{"pid": 1}\n', b'{"failed": {}}\n'):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(word)
    three.tell(1, "leave")
    time.sleep(1)
    three.tell(2, "leave")
    three.tell(0, "leave")
    assert three.end() == ([0, 0, 0], [])
