"""A real HTTP server on this machine that answers what a test has written down."""

import contextlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """`cut` is the number of bytes of the body after which the connection is dropped; `drip` the seconds before each
    byte."""

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    cut: int | None = None
    drip: float = 0

    @classmethod
    def json(cls, body, status: int = 200, **headers) -> "Answer":
        return cls(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


class Server:
    """Answers each path with its script's next answer; the last one is repeated. `requests` is what was asked."""

    def __init__(self):
        self.scripts: dict[str, list] = defaultdict(list)
        self.requests: list[tuple[str, str, dict, str]] = []  # method, path with query, headers, body
        self.connections = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # header and body are two writes

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                owner.requests.append((self.command, self.path, dict(self.headers), body))
                script = owner.scripts[self.path.split("?")[0]]
                answer = script.pop(0) if len(script) > 1 else script[0] if script else Answer(404)
                if isinstance(answer, Callable):
                    answer = answer(owner.requests[-1])
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body)), **answer.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for place in range(len(answer.body) if answer.drip else 0):
                    time.sleep(answer.drip)
                    self.wfile.write(answer.body[place : place + 1])
                if not answer.drip:
                    self.wfile.write(answer.body[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True

            do_POST = do_GET

            def handle(self):
                owner.connections += 1
                with contextlib.suppress(OSError):  # the client has left
                    super().handle()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def ranged(data: bytes, **changes) -> Callable:
    """Answers a Range request as HTTP says: 206 with Content-Range, 416 beyond the end."""

    def answer(request) -> Answer:
        match = re.fullmatch(r"bytes=(\d+)-", request[2].get("Range", ""))
        if match is None:
            return Answer(200, data, **changes)
        start = int(match[1])
        if start >= len(data):
            return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return Answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, **changes)

    return answer
