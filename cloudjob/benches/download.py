"""bench download: files of the Data Space's kind through the queue, against `curl --parallel`, from a server beside it.

Once behind 20 MB/s a connection and 0.2 s until each answer, as the Data Space has it, once as fast as it goes. Ours
hashes (SHA3-256) and flushes each file, curl does neither.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cloudjob.errors import ConfigError
from cloudjob.files import check_room
from cloudjob.hpc import machine

RATE, LATENCY = 20e6, 0.2  # bytes per second of a connection, seconds until an answer
CONNECTIONS = 4  # of an account
PRODUCTS, BANDS = 5, ("B02", "B03", "B04", "B08")
_START = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_PIECE = 1 << 18  # bytes that the slow server sends at a time
_spawn = multiprocessing.get_context("spawn")


def run(folder: Path, *, megabytes: int = 300, say: Callable[[str], None] = print) -> dict:
    """Figures of one run in a new folder below `folder`, which is removed at the end."""
    curl = shutil.which("curl")
    if curl is None:
        raise ConfigError("bench download measures against curl, which is not installed")
    work = Path(folder) / f"bench-download-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        check_room(work, 2.5e6 * megabytes, "bench download", "try --dir elsewhere")
        say(f"writing {megabytes} MB in {PRODUCTS * len(BANDS)} files")
        files = _write(work / "served", megabytes * 10**6)
        figures: dict[str, Any] = {"megabytes": megabytes, "files": len(files)}
        for name, rate, latency, rounds in (("limited", RATE, LATENCY, 2), ("full", None, 0.0, 8)):
            say(f"{name}: {rounds} rounds of curl and of ours in turn, then five processes of ours together")
            with _Server(work / "served", rate, latency) as server:
                figures[name] = _compare(curl, server.url, work, files, rounds)
        ratios = {
            "vs_curl4": _best(figures["limited"], "curl4", "ours"),
            "five_vs_one": _best(figures["limited"], "ours", "five"),
            "vs_curl4_full": _best(figures["full"], "curl4", "ours"),
        }
        memory = max(figures[name]["memory_mb"] for name in ("limited", "full"))
        return {"ratios": ratios, "figures": figures | {"memory_mb": memory}} | machine.describe()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(folder: Path, size: int) -> list[tuple[str, str, int, str]]:
    """(product, file, bytes, SHA3-256) of random files of equal size."""
    files, each = [], size // (PRODUCTS * len(BANDS))
    folder.mkdir()
    for number in range(PRODUCTS):
        for band in BANDS:
            name, data = f"P{number}_{band}_10m.jp2", _START + secrets.token_bytes(each - len(_START))
            (folder / name).write_bytes(data)
            files.append((f"P{number}", name, each, hashlib.sha3_256(data).hexdigest()))
    return files


def _compare(curl: str, url: str, work: Path, files: list[tuple[str, str, int, str]], rounds: int) -> dict:
    """Seconds of each round, and the peak memory of ours."""
    seconds: dict[str, list[float]] = {"curl4": [], "ours": [], "five": []}
    memory = 0.0

    def ours(processes: int) -> float:
        nonlocal memory
        spent, peak = _ours(url, work / "ours", files, processes)
        memory = max(memory, peak)
        return spent

    for _ in range(rounds):
        seconds["curl4"].append(_curl(curl, url, work / "curl", files))
        seconds["ours"].append(ours(1))
    seconds["five"].append(ours(5))
    size = sum(each for _, _, each, _ in files)
    rates = {name: round(size / min(spent) / 1e6, 1) for name, spent in seconds.items()}
    return {"mb_per_s": rates, "seconds": seconds, "memory_mb": round(memory, 1)}


def _best(found: dict, other: str, ours: str) -> float:
    """How many times as fast `ours` is, by the best round of each: other work on the machine only slows them."""
    return round(min(found["seconds"][other]) / min(found["seconds"][ours]), 3)


def _address(url: str, product: str, name: str) -> str:
    from cloudjob.copernicus.sources.https import file_url

    return file_url(_endpoints(url), "0", product, name)


def _curl(curl: str, url: str, target: Path, files: list[tuple[str, str, int, str]]) -> float:
    target.mkdir()
    lines = [f'url = "{_address(url, product, name)}"\noutput = "{target / name}"\n' for product, name, _, _ in files]
    (config := target / "config").write_text("globoff\n" + "".join(lines), encoding="utf-8")
    command = [curl, "--no-progress-meter", "--fail", "--parallel", "--parallel-max", str(CONNECTIONS)]
    begin = time.perf_counter()
    subprocess.run([*command, "--header", "Authorization: Bearer T", "--config", config], check=True)
    spent = time.perf_counter() - begin
    _forget(target)
    return spent


def _ours(url: str, target: Path, files: list[tuple[str, str, int, str]], processes: int) -> tuple[float, float]:
    """Seconds from the start of the first process's work until all files are there, and peak memory in MB."""
    target.mkdir()
    barrier = _spawn.Barrier(processes + 1)
    results = _spawn.SimpleQueue()
    workers = [
        _spawn.Process(
            target=_fetch, args=(url, target, _share(files, number, processes), barrier, results), daemon=True
        )
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait(120)
    begin = time.perf_counter()
    peaks = [results.get() for _ in workers]
    spent = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    if len(list(target.rglob("*.jp2"))) != len(files):
        raise RuntimeError("bench download: not all files are there")
    _forget(target)
    return spent, max(peaks)


def _share(files: list[tuple[str, str, int, str]], number: int, processes: int) -> list[tuple[str, str, int, str]]:
    """The products of one process, as an array job divides them."""
    mine = sorted({product for product, *_ in files})[number::processes]
    return [file for file in files if file[0] in mine]


def _fetch(url: str, target: Path, files: list[tuple[str, str, int, str]], barrier: Any, results: Any) -> None:
    """One process of ours, into one folder with the others."""
    from cloudjob.copernicus.account import open_account
    from cloudjob.copernicus.checks import Wanted
    from cloudjob.copernicus.queue import Order, Queue
    from cloudjob.copernicus.session import open_session
    from cloudjob.copernicus.sources import Remote
    from cloudjob.copernicus.sources.https import Https
    from cloudjob.copernicus.tally import Tally
    from cloudjob.copernicus.transfer import Limits
    from cloudjob.leases import Lease

    endpoints = _endpoints(url)
    os.environ |= {"CDSE_USERNAME": "bench", "CDSE_PASSWORD": "bench"}
    source = Https(endpoints, open_account(endpoints, folder=target / "account"), lambda: open_session(endpoints))
    wanted: dict[str, list[Wanted]] = {}
    for product, name, size, digest in files:
        wanted.setdefault(product, []).append(Wanted(name, size, ("SHA3-256", digest)))
    orders = [Order(Remote(name, "0"), target / name, iter([every])) for name, every in wanted.items()]
    barrier.wait(120)
    with Queue(
        source,
        connections=CONNECTIONS,
        lease=lambda name: Lease(target / "leases", "file", name),
        limits=Limits(),
        tally=Tally(len(orders), lambda line: None),
        stopped=lambda: False,
        progress=lambda share, line: None,
    ) as queue:
        queue.plan(orders)
        for order in orders:
            queue.get(order)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    results.put(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3)  # type: ignore[index]


def _endpoints(url: str) -> Any:
    from cloudjob.copernicus.session import Endpoints

    return Endpoints(stac=url, catalogue=url, download=url, token=f"{url}/token")


def _forget(folder: Path) -> None:
    """Removes a folder, and waits until the disk has nothing left to write."""
    shutil.rmtree(folder)
    os.sync()


class _Server:
    """A process that serves the files of a folder; `rate` in bytes per second of a connection, None for no limit."""

    def __init__(self, folder: Path, rate: float | None, latency: float):
        here, there = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(folder, rate, latency, there), daemon=True)
        self._process.start()
        if not here.poll(60):
            raise RuntimeError("bench download: the server does not start")
        self.url = f"http://127.0.0.1:{here.recv()}"

    def __enter__(self) -> "_Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _serve(folder: Path, rate: float | None, latency: float, pipe: Connection) -> None:
    slots = threading.Semaphore(CONNECTIONS)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            """A token for everybody."""
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(latency)
            answer = {"access_token": "T", "refresh_token": "R", "expires_in": 600, "refresh_expires_in": 3600}
            self.send_response(200)
            self.send_header("Content-Length", str(len(body := json.dumps(answer).encode())))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            time.sleep(latency)
            path = folder / self.path.split("Nodes(")[-1].partition(")")[0]
            if not slots.acquire(blocking=False):  # a fifth connection of the account
                self.send_response(429)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            with path.open("rb") as file, contextlib.ExitStack() as held:
                held.callback(slots.release)
                size = path.stat().st_size
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                begin, last = time.monotonic(), max(size - _PIECE, 0)
                piece = _PIECE if rate else size
                for first in range(0, last, piece):
                    if rate and (wait := begin + first / rate - time.monotonic()) > 0:
                        time.sleep(wait)
                    self.connection.sendfile(file, first, min(piece, last - first))
                held.close()  # before the last piece: a client that has it all may begin its next file at once
                self.connection.sendfile(file, last, size - last)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()
