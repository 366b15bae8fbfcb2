"""A guard for each MPI rank: the process that the launcher started stays behind as the rank's parent, and watches.

Launchers kill all ranks at once where one dies, without a word and with an exit code of their own, or let the others
wait for ever. So the rank runs in a child. The guards of all ranks keep connections to that of rank 0 (see `watch`),
whatever the ranks do in the meantime: Python's lock, which a library may hold for minutes, is not theirs. A rank that
is killed, or stands still for SILENCE_S, or whose guard falls silent, ends all: rank 0's guard says which one and why,
each rank gets GRACE_S to end in good order, and every process ends with the code for a lost rank.

Signals reach both, as they go to a group of processes. A rank dies with its guard.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudjob.hpc import watch
from cloudjob.hpc.awake import Clock
from cloudjob.hpc.watch import Member, Watch

LOST = 76  # exit code, see `errors.LostRankError`
_LOOK_S = 0.2
_TELL_S = 0.5  # until a launcher has read what was said
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_DEATH = 1  # PR_SET_PDEATHSIG


# --- the rank's side ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Guarded:
    """A rank's line to its guard."""

    words: int  # file descriptors
    answers: int

    def lead(self, size: int) -> str | None:
        """Rank 0: from now on its guard awaits those of the others, at this address."""
        return self._ask({"rank": 0, "size": size, "addresses": []})

    def follow(self, rank: int, size: int, addresses: str) -> bool:
        """Connects the guard of another rank; whether that was possible."""
        return self._ask({"rank": rank, "size": size, "addresses": json.loads(addresses)}) is not None

    def leave(self) -> None:
        """From now on the rank may end when it likes."""
        self._ask({"bye": True})

    def verdict(self) -> str | None:
        """Why all ranks end, if they do; to be asked between two looks for a message."""
        return self._answer() if select.select([self.answers], [], [], 0)[0] else None

    def _ask(self, word: dict) -> str | None:
        os.write(self.words, json.dumps(word).encode() + b"\n")
        return self._answer()

    def _answer(self) -> str | None:
        data = b""
        while not data.endswith(b"\n") and (more := os.read(self.answers, 65536)):
            data += more
        return json.loads(data) if data else "its guard is gone"


def enter() -> Guarded:
    """Splits this process: the one that goes on is a child, and the one that the launcher knows becomes its guard."""
    theirs, words = os.pipe()
    answers, ours = os.pipe()
    before = os.getpid()
    if rank := os.fork():
        for number in (theirs, ours):
            os.set_inheritable(number, True)
        place = os.pathsep.join(path or os.getcwd() for path in sys.path)
        code = "PMI_FD" in os.environ and "PMI_JOBID" not in os.environ  # of MPICH's own launcher, not of SLURM
        arguments = [str(rank), str(theirs), str(ours), os.environ["PMI_FD"] if code else "-1"]
        os.execve(sys.executable, [sys.executable, "-P", "-m", __name__, *arguments], {"PYTHONPATH": place})
    ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != before:
        os._exit(LOST)
    for number in (theirs, ours):
        os.close(number)
    return Guarded(words, answers)


# --- the guard's side -----------------------------------------------------------------------------------------------
class _Guard:
    """The guard of one process; `launcher` is the descriptor to MPICH's launcher, -1 where there is another."""

    def __init__(self, rank_pid: int, words: int, answers: int, launcher: int):
        self.pid, self._words, self._answers, self._launcher = rank_pid, words, answers, launcher
        self._watch: Watch | None = None
        self._clock, self._moved, self._rest = Clock(), 0.0, b""

    def run(self) -> int:
        """The exit code of the rank, or that of a lost one."""
        while True:
            listening = [self._words] if self._words >= 0 else []
            if select.select(listening, [], [], _LOOK_S)[0]:
                self._hear(os.read(self._words, 65536))
            self._clock.tick()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return self._ended(os.waitstatus_to_exitcode(status))
            if self._watch and self._watch.verdict:
                return self._over(self._watch)
            if not _stands_still(self.pid):
                self._moved = self._clock.now
            elif self._watch and self._clock.now - self._moved > watch.SILENCE_S:
                return self._fail(self._watch, f"stood still for {watch.SILENCE_S:.0f} s: it was stopped", LOST)

    def _hear(self, data: bytes) -> None:
        if not data:  # the rank ends
            self._words = -1
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._answer(self._obey(json.loads(line)))

    def _obey(self, word: dict) -> str | None:
        if self._watch:
            self._watch.close()
            self._watch = None
        if "bye" in word:
            return "bye"
        member = Member.of(word["rank"], self.pid)
        if not word["rank"]:
            self._watch = Watch(0, word["size"], code=LOST, member=member)
            return json.dumps([self._watch.address(host) for host in _own_names()])
        for address in word["addresses"]:
            with contextlib.suppress(OSError):
                self._watch = Watch(word["rank"], word["size"], code=LOST, address=address, member=member)
                return "here"
        return None

    def _answer(self, word: str | None) -> None:
        with contextlib.suppress(OSError):
            os.write(self._answers, json.dumps(word).encode() + b"\n")

    def _ended(self, code: int) -> int:
        if not self._watch:
            return code if code >= 0 else self._leave(LOST)
        if code < 0:
            return self._fail(self._watch, f"was killed by {signal.Signals(-code).name}, or its memory ran out", LOST)
        return self._fail(self._watch, f"ended with {code} before the others", code) if code else 0

    def _fail(self, own: Watch, what: str, code: int) -> int:
        text = f"process {self.pid} {what}"
        told = own.fail(text, code)
        if own.rank == 0 or not told:
            _say(f"rank {own.rank} of {own.size} on {socket.gethostname()}: {text}")
        self._end_rank("another rank was lost")
        return self._leave(code)

    def _over(self, own: Watch) -> int:
        """Another rank is lost."""
        verdict = own.settle()
        assert verdict is not None
        if own.tells:
            _say(verdict.text)
        self._end_rank(verdict.text)
        return self._leave(verdict.code)

    def _end_rank(self, why: str) -> None:
        """Lets the rank end by itself, if it can within GRACE_S."""
        self._answer(why)
        end = time.monotonic() + watch.GRACE_S
        with contextlib.suppress(ChildProcessError):  # it is gone
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > end or _stands_still(self.pid):
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(_LOOK_S / 4)

    def _leave(self, code: int) -> int:
        """MPICH's launcher would kill the guards that are left, and end with the code of that. It is told ours."""
        time.sleep(_TELL_S)
        if self._launcher >= 0:
            with contextlib.suppress(OSError):
                os.write(self._launcher, f"cmd=abort exitcode={code}\n".encode())
                time.sleep(watch.GRACE_S)  # until it ends this process
        return code


def _say(text: str) -> None:
    print(f"cloudjob: {text}", file=sys.stderr, flush=True)


def _stands_still(pid: int) -> bool:
    """Whether a process is stopped."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "T"
        )
    except OSError:
        return False


def _own_names() -> Iterator[str]:
    """Under which other machines may know this one."""
    yield socket.gethostname()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # nothing is sent: it only tells by which address this machine would
        yield way.getsockname()[0]
    yield "localhost"


def main(arguments: list[str]) -> int:
    """The guard of the process, with the descriptors, that the arguments name."""
    guard = _Guard(*map(int, arguments))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, frame: os.kill(guard.pid, number))
    code = guard.run()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
