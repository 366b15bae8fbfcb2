"""Detects lost ranks: a thread on each rank keeps a connection to rank 0 and sends a heartbeat every second.

A rank that fails reports why before it exits. A connection that breaks without a goodbye means a rank that was killed;
no heartbeat for SILENCE_S means a rank that was stopped, or whose node is down. Rank 0 tells the others, and every
process ends. Its main thread ends it if it notices the failure (see `settle`). Otherwise the watch thread does so after
GRACE_S, since a main thread that waits in a collective call does not react. One lost rank thus ends all ranks within
SILENCE_S + GRACE_S and a second or two.

A suspended job is not lost: where all ranks stand still and wake again, each notices the gap in its own clock, and the
silence of the others counts from then on.

The watch does not detect a rank of which only the main thread hangs, in a file system or a driver, because its
heartbeats go on. The time-out of the collective calls ends it, and `behind` names the ranks that the others waited for.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cloudjob.hpc.awake import Clock
from cloudjob.hpc.door import listening

SILENCE_S = 20.0  # a busy machine, or a library that holds Python's lock, may delay heartbeats for seconds
GRACE_S = 5.0
_BEAT_S = 1.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Member:
    """Identity of a rank; `started` (clock ticks since boot) tells its process from a later one of the same number."""

    rank: int
    host: str
    pid: int
    started: str

    @classmethod
    def here(cls, rank: int) -> "Member":
        return cls.of(rank, os.getpid())

    @classmethod
    def of(cls, rank: int, pid: int) -> "Member":
        """The rank that is this process of this machine."""
        return cls(rank, socket.gethostname(), pid, _started(pid))

    def kill(self) -> None:
        """Kills the rank's process if it runs on this machine, as it no longer answers."""
        if self.host == socket.gethostname() and self.started and _started(self.pid) == self.started:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Verdict:
    """Why all ranks end; `lost` (a Member as a dictionary) is a rank that may hang and be unable to end by itself."""

    text: str
    code: int
    lost: dict | None = None


class Watch:
    """The watch of one rank. `address` is the result of rank 0's `address`, None on rank 0 itself; `code` the exit code
    for a lost rank; `speaks` whether this rank may print why all end if rank 0 is lost; `member` the process of the
    rank, where it is another than this."""

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        code: int,
        address: str | None = None,
        speaks: bool = True,
        member: Member | None = None,
    ):
        self.member = member or Member.here(rank)
        self.rank, self.size, self.code, self.speaks = rank, size, code, speaks
        self.verdict: Verdict | None = None
        self.seen = 0  # samples; set by the main thread
        self._known, self._leaving, self._told, self._all = (threading.Event() for _ in range(4))
        self._own: Verdict | None = None
        self._found = False  # whether this rank itself detected that another one is lost
        self._goodbye = False
        self._clock = Clock()
        self._lines: dict[int, _Line] = {}
        self._expected: dict[int, tuple[Member, float]] = {}
        self._selector = selectors.DefaultSelector()
        if rank == 0:
            self._server = listening(0, backlog=size)
            self._port = self._server.getsockname()[1]
            self._selector.register(self._server, selectors.EVENT_READ, None)
        else:
            assert address is not None, "a rank above 0 needs rank 0's address"
            host, port, chief = json.loads(address)
            line = _Line(socket.create_connection((host, port), timeout=SILENCE_S), self._clock)
            line.send(asdict(self.member))
            line.member, self._lines[0] = Member(**chief), line
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    # --- called by the main thread --------------------------------------------------------------------------------
    def address(self, host: str) -> str:
        """Rank 0: the address at which the other ranks connect to it; `host` is the name of its machine."""
        return json.dumps([host, self._port, asdict(self.member)])

    def expect(self, member: Member) -> None:
        """Rank 0: a rank is about to connect, and counts as lost if it does not within SILENCE_S."""
        self._expected.setdefault(member.rank, (member, self._clock.now))

    def all_here(self, timeout_s: float) -> list[int]:
        """Rank 0: waits until every rank has connected; returns the ranks that have not."""
        self._all.wait(timeout_s)
        return [rank for rank in range(1, self.size) if rank not in self._lines]

    def fail(self, text: str, code: int) -> bool:
        """Reports that this rank cannot go on, and waits until the report is delivered; returns whether it was."""
        self._leaving.set()
        self._own = Verdict(f"rank {self.rank} of {self.size} on {socket.gethostname()}: {text}", code)
        return self._told.wait(GRACE_S)

    def settle(self) -> Verdict | None:
        """Waits for the reason why a collective call failed, and returns it. The calling main thread must then exit."""
        self._known.wait(SILENCE_S + GRACE_S)
        if self.verdict:
            self._leaving.set()
        return self.verdict

    def behind(self) -> list[int]:
        """Rank 0: the ranks that have seen fewer samples than others, by their last heartbeats."""
        seen = {0: self.seen} | {rank: line.seen for rank, line in list(self._lines.items())}
        return [rank for rank, count in seen.items() if count < max(seen.values())]

    @property
    def tells(self) -> bool:
        """Whether this rank prints why all end: rank 0 does, or one that `speaks` and detected the loss of rank 0."""
        return self.rank == 0 or (self._found and self.speaks)

    @property
    def stands(self) -> bool:
        """Whether no failure is known, and this rank has not begun to leave."""
        return not (self.verdict or self._leaving.is_set() or self._goodbye)

    def close(self) -> None:
        """Says goodbye, so that the others do not count this rank as lost."""
        self._goodbye = True
        self._thread.join(GRACE_S)

    # --- the thread -----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        beat = self._clock.now
        while True:
            found = self._selector.select(_POLL_S)
            self._clock.tick()
            for key, _ in found:
                self._greet() if key.data is None else self._hear(key.data)
            if self.verdict:
                return self._end()
            if self._own:
                self._pass_on({"failed": asdict(self._own)})
                if self.rank == 0:
                    self._told.set()
                    return None
                self._own = None
            if self._goodbye:
                return self._pass_on({"bye": True})
            if self._clock.now - beat >= _BEAT_S:
                beat = self._clock.now
                self._pass_on({"seen": self.seen})
                self._miss()

    def _greet(self) -> None:
        with contextlib.suppress(OSError):
            line = _Line(self._server.accept()[0], self._clock)
            self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _hear(self, line: "_Line") -> None:
        words, stands = line.receive()
        for word in words:
            if word.keys() == Member.__dataclass_fields__.keys():
                line.member = member = Member(**word)
                self._lines[member.rank] = line
                if len(self._lines) == self.size - 1:
                    self._all.set()
            if not line.member:  # not a peer: it has not introduced itself
                continue
            line.seen = word.get("seen", line.seen)
            line.left |= "bye" in word
            if "failed" in word:
                self._told.set()
                self._judge(Verdict(**word["failed"]))
        if not stands:
            self._selector.unregister(line.socket)
            if line.member and not line.left:
                self._lose(line.member, "has ended without a message: it was killed, or its memory ran out")

    def _miss(self) -> None:
        """Finds the ranks whose heartbeat, or whose connection, is overdue."""
        for line in self._lines.values():
            if line.member and not line.left and self._clock.now - line.heard > SILENCE_S:
                self._lose(line.member, f"has not answered for {SILENCE_S:.0f} s: it was stopped, or its node was")
        for rank, (member, since) in list(self._expected.items()):
            if rank not in self._lines and self._clock.now - since > SILENCE_S:
                self._lose(member, f"was on its way and did not come for {SILENCE_S:.0f} s: it was killed or stopped")

    def _lose(self, member: Member, what: str) -> None:
        who = f"rank {member.rank} of {self.size} on {member.host} (process {member.pid})"
        self._found = True
        self._judge(Verdict(f"{who} {what}", self.code, asdict(member)))

    def _judge(self, verdict: Verdict) -> None:
        if self.verdict is None:
            self.verdict = verdict

    def _end(self) -> None:
        """Ends this process, through its main thread if that reacts within GRACE_S."""
        verdict = self.verdict
        assert verdict is not None
        if self.rank == 0:
            self._pass_on({"failed": asdict(verdict)})
        self._known.set()
        leaving = self._leaving.wait(GRACE_S)
        if self.tells and not leaving:
            print(f"cloudjob: {verdict.text}", file=sys.stderr, flush=True)
        if verdict.lost:  # not earlier: a rank that has not noticed yet would report it as killed
            Member(**verdict.lost).kill()
        if leaving:
            time.sleep(SILENCE_S)  # long enough for any exit that does not hang
        os._exit(verdict.code)

    def _pass_on(self, word: dict) -> None:
        for line in list(self._lines.values()):
            line.send(word)


class _Line:
    """One end of a connection: JSON messages, one per line."""

    def __init__(self, connection: socket.socket, clock: Clock):
        connection.setblocking(False)
        self.socket, self._clock = connection, clock
        self.member: Member | None = None  # None until the peer has introduced itself
        self.heard, self.seen, self.left, self._rest = clock.now, 0, False, b""

    def send(self, word: dict) -> None:
        """Sends a message, or drops it if that fails: the watch then detects the peer as silent or gone."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(word).encode() + b"\n")

    def receive(self) -> tuple[list[dict], bool]:
        """The messages received, and whether the connection still stands."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return [], True
        except OSError:
            data = b""
        if data:
            self.heard = self._clock.now
        *whole, self._rest = (self._rest + data).split(b"\n")
        with contextlib.suppress(ValueError):  # not JSON, so not a peer
            return [found for word in whole if isinstance(found := json.loads(word), dict)], bool(data)
        return [], False


def _started(pid: int) -> str:
    """Start time of a process of this machine (clock ticks since boot), '' if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
