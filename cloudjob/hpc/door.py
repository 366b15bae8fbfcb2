"""Where the ranks of a job meet, although another program may hold the port that they were told.

Rank 0 opens its door at the first free one of a few ports that follow from the one given. Whoever knocks is told, in a
line of JSON, whose door it is and where the store is. The others go from port to port until they find their own.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

from cloudjob.errors import InterruptedJob

_TRIES = 8
_STRIDE = 1009  # between two of the ports: far from those of the neighbours' jobs
_LOWEST, _HIGHEST = 10000, 60000
_ANSWER_S = 2.0  # a door answers at once; another program may not answer at all
_PAUSE_S = 0.2


def ports(first: int) -> list[int]:
    """The ports to try, that which was given first."""
    span = _HIGHEST - _LOWEST
    return [first, *(_LOWEST + (first + number * _STRIDE) % span for number in range(1, _TRIES))]


class Door:
    """Rank 0's door. It answers until it is closed."""

    def __init__(self, whose: str, first: int):
        """InterruptedJob where all ports are taken: later, or on another node, one is free."""
        self._whose, self._answer = whose, b""
        for self.port in ports(first):
            with contextlib.suppress(OSError):
                self._server = listening(self.port)
                return
        raise InterruptedJob(
            f"ports {', '.join(map(str, ports(first)))} of {socket.gethostname()} are all taken; run the same command "
            "again, or set MASTER_PORT to a free one"
        )

    def open(self, store: int) -> None:
        """From now on it tells the port of the store."""
        self._answer = json.dumps([self._whose, store]).encode() + b"\n"
        threading.Thread(target=self._run, name="door", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                knocking, _ = self._server.accept()
            except OSError:  # it was closed
                return
            with knocking, contextlib.suppress(OSError):
                knocking.sendall(self._answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def find(whose: str, host: str, first: int, within_s: float) -> int | None:
    """The port of the store of rank 0 on `host`; None where its door is not found in so many seconds."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for found in _answers(host, first):
            if found[0] == whose:
                return found[1]
        time.sleep(_PAUSE_S)
    return None


def _answers(host: str, first: int) -> Iterator[list]:
    for port in ports(first):
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host, port), timeout=_ANSWER_S) as line,
            line.makefile() as file,
        ):
            found = json.loads(file.readline(1000))
            if isinstance(found, list) and len(found) == 2:
                yield found


def listening(port: int, backlog: int = 128) -> socket.socket:
    """A server on all addresses of this machine; port 0 is any that is free."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    dual = family == socket.AF_INET6
    return socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=dual)
