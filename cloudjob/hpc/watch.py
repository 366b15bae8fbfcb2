"""Who is still there: a thread on each rank that holds a line to rank 0 and says a word on it each second.

A rank that fails says why before it goes. A line that breaks without a goodbye is a rank that was killed; one that is
silent for SILENCE_S is a rank that was stopped, or whose node is gone. Rank 0 tells the others, and every process ends:
by its main thread where that notices by itself (see `settle`), else, GRACE_S later, by this one, since a main thread
that waits in a collective call hears nothing. So one lost rank ends all within SILENCE_S + GRACE_S and a second or two.

Not seen from here: a rank whose main thread alone hangs, in a file system or a driver, goes on answering. The time-out
of the collective calls ends it, and `behind` names who was waited for.
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

SILENCE_S = 20.0  # a busy machine, or a library that holds Python's lock, may keep the thread from its word for seconds
GRACE_S = 5.0
_BEAT_S = 1.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Member:
    """A rank as it introduces itself; `started` (clock ticks since boot) tells its process from a later one."""

    rank: int
    host: str
    pid: int
    started: str

    @classmethod
    def here(cls, rank: int) -> "Member":
        return cls(rank, socket.gethostname(), os.getpid(), _started(os.getpid()))

    def kill(self) -> None:
        """Ends a process of this machine that no longer answers: nobody else may."""
        if self.host == socket.gethostname() and self.started and _started(self.pid) == self.started:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Verdict:
    """Why all ranks end; `lost`, a Member as a dictionary, hangs and cannot end by itself."""

    text: str
    code: int
    lost: dict | None = None


class Watch:
    """The line of one rank. `address` is what rank 0's `address` says, None for rank 0 itself; `code` the exit code for
    a lost rank; `speaks` whether this rank may say why all end where rank 0 is lost."""

    def __init__(self, rank: int, size: int, *, code: int, address: str | None = None, speaks: bool = True):
        self.rank, self.size, self.code, self.speaks = rank, size, code, speaks
        self.verdict: Verdict | None = None
        self.seen = 0  # samples; the main thread says how far it is
        self._known, self._leaving, self._told, self._all = (threading.Event() for _ in range(4))
        self._own: Verdict | None = None
        self._found = False  # that another rank is lost: found out by this one, not told
        self._goodbye = False
        self._lines: dict[int, _Line] = {}
        self._expected: dict[int, tuple[Member, float]] = {}
        self._selector = selectors.DefaultSelector()
        if rank == 0:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            self._server = socket.create_server(
                ("", 0), family=family, backlog=size, dualstack_ipv6=family == socket.AF_INET6
            )
            self._port = self._server.getsockname()[1]
            self._selector.register(self._server, selectors.EVENT_READ, None)
        else:
            assert address is not None, "a rank above 0 needs rank 0's address"
            host, port, chief = json.loads(address)
            line = _Line(socket.create_connection((host, port), timeout=SILENCE_S))
            line.send(asdict(Member.here(rank)))
            line.member, self._lines[0] = Member(**chief), line
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    # --- what the main thread asks ------------------------------------------------------------------------------
    def address(self, host: str) -> str:
        """Rank 0: what the other ranks need to reach it, by this name of its machine."""
        return json.dumps([host, self._port, asdict(Member.here(0))])

    def expect(self, member: Member) -> None:
        """Rank 0: a rank is on its way, so it is missed if it does not say its first word soon."""
        self._expected.setdefault(member.rank, (member, time.monotonic()))

    def all_here(self, timeout_s: float) -> list[int]:
        """Rank 0: waits until every rank has come; the ranks that have not."""
        self._all.wait(timeout_s)
        return [rank for rank in range(1, self.size) if rank not in self._lines]

    def fail(self, text: str, code: int) -> bool:
        """Says that this rank cannot go on, and waits until that is passed on; whether it was."""
        self._leaving.set()
        self._own = Verdict(f"rank {self.rank} of {self.size} on {socket.gethostname()}: {text}", code)
        return self._told.wait(GRACE_S)

    def settle(self) -> Verdict | None:
        """For a main thread whose collective call has failed: why, as soon as it is known. It then has to leave."""
        self._known.wait(SILENCE_S + GRACE_S)
        if self.verdict:
            self._leaving.set()
        return self.verdict

    def behind(self) -> list[int]:
        """Rank 0: the ranks that have seen fewer samples than others, as they said last."""
        seen = {0: self.seen} | {rank: line.seen for rank, line in list(self._lines.items())}
        return [rank for rank, count in seen.items() if count < max(seen.values())]

    @property
    def tells(self) -> bool:
        """Whether it is for this rank to say why all end: rank 0's voice is that of all while it is there."""
        return self.rank == 0 or (self._found and self.speaks)

    @property
    def stands(self) -> bool:
        """Whether all is well, and nobody has said goodbye."""
        return not (self.verdict or self._leaving.is_set() or self._goodbye)

    def close(self) -> None:
        """In good order: the others are not to miss this rank."""
        self._goodbye = True
        self._thread.join(GRACE_S)

    # --- the thread -----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        beat = time.monotonic()
        while True:
            for key, _ in self._selector.select(_POLL_S):
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
            if time.monotonic() - beat >= _BEAT_S:
                beat = time.monotonic()
                self._pass_on({"seen": self.seen})
                self._miss()

    def _greet(self) -> None:
        with contextlib.suppress(OSError):
            line = _Line(self._server.accept()[0])
            self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _hear(self, line: "_Line") -> None:
        words, stands = line.receive()
        for word in words:
            if word.keys() == Member.__dataclass_fields__.keys():
                line.member = member = Member(**word)
                self._lines[member.rank] = line
                if len(self._lines) == self.size - 1:
                    self._all.set()
            if not line.member:  # somebody who knocked at the wrong door
                continue
            line.seen = word.get("seen", line.seen)
            line.left |= "bye" in word
            if "failed" in word:
                self._told.set()
                self._judge(Verdict(**word["failed"]))
        if not stands:
            self._selector.unregister(line.socket)
            if line.member and not line.left:
                self._lose(line.member, "has ended without a word: it was killed, or its memory ran out")

    def _miss(self) -> None:
        """Notices who has not spoken for too long."""
        for line in self._lines.values():
            if line.member and not line.left and time.monotonic() - line.heard > SILENCE_S:
                self._lose(line.member, f"has not answered for {SILENCE_S:.0f} s: it was stopped, or its node was")
        for rank, (member, since) in list(self._expected.items()):
            if rank not in self._lines and time.monotonic() - since > SILENCE_S:
                self._lose(member, f"was on its way and did not come for {SILENCE_S:.0f} s: it was killed or stopped")

    def _lose(self, member: Member, what: str) -> None:
        who = f"rank {member.rank} of {self.size} on {member.host} (process {member.pid})"
        self._found = True
        self._judge(Verdict(f"{who} {what}", self.code, asdict(member)))

    def _judge(self, verdict: Verdict) -> None:
        if self.verdict is None:
            self.verdict = verdict

    def _end(self) -> None:
        """Ends this process, by its main thread if that comes by."""
        verdict = self.verdict
        assert verdict is not None
        if self.rank == 0:
            self._pass_on({"failed": asdict(verdict)})
        self._known.set()
        leaving = self._leaving.wait(GRACE_S)
        if self.tells and not leaving:
            print(f"cloudjob: {verdict.text}", file=sys.stderr, flush=True)
        if verdict.lost:  # not before: to a rank that has not noticed yet it would look like one that was killed
            Member(**verdict.lost).kill()
        if leaving:
            time.sleep(SILENCE_S)  # long enough for any exit that does not hang itself
        os._exit(verdict.code)

    def _pass_on(self, word: dict) -> None:
        for line in list(self._lines.values()):
            line.send(word)


class _Line:
    """One end of a connection: JSON, a word a line."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self.socket = connection
        self.member: Member | None = None  # None until it has introduced itself
        self.heard, self.seen, self.left, self._rest = time.monotonic(), 0, False, b""

    def send(self, word: dict) -> None:
        """A word that does not go through is not missed: whoever takes none is found silent, or gone."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(word).encode() + b"\n")

    def receive(self) -> tuple[list[dict], bool]:
        """The words that have come, and whether the line still stands."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return [], True
        except OSError:
            data = b""
        if data:
            self.heard = time.monotonic()
        *whole, self._rest = (self._rest + data).split(b"\n")
        with contextlib.suppress(ValueError):  # not one of ours
            return [found for word in whole if isinstance(found := json.loads(word), dict)], bool(data)
        return [], False


def _started(pid: int) -> str:
    """When a process of this machine began, '' where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
