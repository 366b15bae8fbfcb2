"""Forty products through a server with every fault, by two processes at once, one of which is killed five times.

Times are scaled to files of a few kilobytes (`configs/faults.yaml`, SETTINGS): a stalled body half a second instead of
two minutes, a token 20 s instead of ten minutes, patience 8 s instead of half an hour.
"""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import defaultdict
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from forked import Forked
from front_door import CLOUDJOB, CONFIG

from cloudjob.archive.make import make_synthetic

FAULTS = Path(__file__).resolve().parents[2] / "configs" / "faults.yaml"
TILES = ["04WFD", "05WMU", "05WPS", "06WVC"]
CLEAR = [date(2024, 3, 4), date(2024, 3, 20)]
CLOUDY = [date(2024, 2, 20) + timedelta(days=2 * number) for number in range(8)]
KILLS, LONGEST, SILENCE, TERM = 5, 300, 60, 5  # of the one process; seconds of the test, between words, to stop
SETTINGS = {"patience": 8, "retries": 8}
TOKEN = "/auth/realms/CDSE/protocol/openid-connect/token"


class Process:
    """cloudjob in a process of its own, and when it said what."""

    def __init__(self, *arguments, env: dict):
        command = [*CLOUDJOB, *map(str, arguments)]
        self.begun = time.time()
        self.own = Forked(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.words: list[tuple[float, str]] = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        for line in self.own.stderr:
            self.words.append((time.time(), line.rstrip()))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.words)

    def end(self, timeout: float = LONGEST) -> int:
        """Its exit code, once it has ended."""
        code = self.own.wait(timeout)
        self.thread.join(10)
        return code

    def silence(self) -> float:
        """The longest time without a word, until it ended."""
        times = [self.begun, *(moment for moment, _ in self.words)]
        return max((b - a for a, b in pairwise(times)), default=0)


class Work:
    """An archive that is served with faults, and a run folder on it."""

    def __init__(self, folder: Path, faults: Path):
        self.archive, self.root, self.journal = folder / "archive", folder / "run", folder / "journal.jsonl"
        make_synthetic(self.archive, tiles=TILES, size=64, clear=CLEAR, cloudy=CLOUDY, cloud=(0.2, 0.3), seed=5)
        (folder / "home").mkdir()
        self.env = os.environ | {"CDSE_USERNAME": "ann", "CDSE_PASSWORD": "secret-of-ann", "HOME": str(folder / "home")}
        command = ("archive", "serve", self.archive, "--port", 0, "--faults", faults, "--journal", self.journal)
        self.server = Process(*command, "--seed", 1, env=self.env)
        while not (found := re.search(r"at (http://\S+);", self.server.text)):
            assert self.server.own.poll() is None, self.server.text
            time.sleep(0.05)
        self.config = folder / "hostile.yaml"
        self.config.write_text(yaml.safe_dump(self._settings(found[1])))
        self.ended: list[tuple[Process, int]] = []

    def _settings(self, url: str) -> dict:
        settings = yaml.safe_load(CONFIG.read_text())
        del settings["archive"]
        paths = {"stac": "/v1", "catalogue": "/odata/v1", "download": "/odata/v1", "token": TOKEN}
        settings["copernicus"] = {name: url + path for name, path in paths.items()} | SETTINGS
        settings["masks"] = {"cloud_m": 0, "shadow_m": 0, "cirrus_m": 0}
        settings["pair"] = {"max_days": 60}
        return settings

    def start(self, *command: str) -> Process:
        return Process(*command, self.config, "--run-dir", self.root, env=self.env)

    def end(self, process: Process) -> int:
        """Waits for the end of a process, and looks at what it has said and how it ended."""
        code = process.end()
        self.ended.append((process, code))
        assert code in (0, 4), process.text
        assert (code == 4) == ("failed items" in process.text), process.text
        return code

    def requests(self) -> list[dict]:
        lines = self.journal.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def bands(self) -> int:
        return len(list((self.root / "scenes").glob("*.SAFE/GRANULE/*/IMG_DATA/R10m/*.jp2")))


@pytest.fixture
def work(tmp_path):
    made = Work(tmp_path, FAULTS)
    yield made
    made.server.own.terminate()
    made.server.end(20)


@pytest.mark.slow
@pytest.mark.long
def test_forty_products_come_whole(work):
    begun, kills = time.time(), []
    kills += fetch(work, "run", "--until", "preview", kills=3)
    assert work.end(work.start("run", "--from", "pair", "--until", "review")) == 0
    kills += fetch(work, "download", kills=KILLS - 3)
    assert time.time() - begun < LONGEST
    for process, _ in work.ended:
        assert process.silence() < SILENCE, process.text
        assert "Traceback" not in process.text, process.text
    check_files(work)
    check_journal(work, kills)


def fetch(work: Work, *command: str, kills: int) -> list[float]:
    """A command by two processes at once, one of which is killed so often and the other stopped, until nothing is
    missing. When the kills were. A wrong checksum of the catalogue is a right one when it is asked again."""
    other, moments, chance = work.start(*command), [], random.Random(kills)
    while len(moments) < kills:
        victim = work.start(*command)
        try:
            victim.end(timeout=chance.uniform(3, 6))
        except subprocess.TimeoutExpired:
            moments.append(time.time())
            victim.own.kill()
            assert victim.end() == -signal.SIGKILL
            work.ended.append((victim, -signal.SIGKILL))
        else:
            assert work.end(victim) == 4, "nothing was left to be killed at"
    if other.own.poll() is None:
        stop(other)
        work.ended.append((other, 75))
    for _ in range(12):
        if {work.end(each) for each in (work.start(*command), work.start(*command))} == {0}:
            return moments
        work.end(work.start("search", "--force"))
    raise AssertionError(work.ended[-2][0].text)


def stop(process: Process) -> None:
    """SIGTERM is answered in good order, soon."""
    begun = time.time()
    process.own.terminate()
    assert process.end() == 75, process.text
    assert time.time() - begun < TERM


def check_files(work: Work) -> None:
    """The previews of the forty products are there and the bands of as many, byte for byte as in the archive; but a
    manifest whose checksum the catalogue did not tell can be verified by its size alone."""
    unknown = told(work.requests(), "checksum_empty", "checksum_unknown")
    products = sorted(path.name for path in work.archive.glob("*.SAFE"))
    assert len(products) == 40
    assert work.bands() >= 4 * 40  # an odd twin that can be had may stand in for a product as the clear one of a pair
    for name in products:
        files = [path for path in (work.root / "scenes" / name).rglob("*") if path.is_file()]
        files = [path for path in files if path.suffix != ".corrupt"]  # a manifest set aside, which had no checksum
        assert {"MTD_MSIL2A.xml", "MTD_TL.xml", "manifest.safe"} <= {path.name for path in files}, name
        for path in files:
            original = work.archive / path.relative_to(work.root / "scenes")
            if path.name == "manifest.safe" and path.parent.stem in unknown:
                assert path.stat().st_size == original.stat().st_size, path
            else:
                assert path.read_bytes() == original.read_bytes(), path


def told(asked: list[dict], *faults: str) -> set[str]:
    """The products of whose rows one came with one of these faults."""
    return {name for line in asked for name, fault in line.get("rows", {}).items() if fault in faults}


def check_journal(work: Work, kills: list[float]) -> None:
    asked = work.requests()
    assert {line.get("fault") for line in asked} > {"short", "reset", "unauthorized", "page_short"}
    assert not [line for line in asked if line.get("leaks")]
    assert not [line for line in asked if line["service"] == "elsewhere"]
    refused = [line for line in asked if line.get("status") == 429 and "fault" not in line]
    assert not refused, "a fifth connection"
    assert max(line.get("running", 0) for line in asked) <= 4
    grants = [(line.get("grant"), line.get("status"), line.get("fault")) for line in asked if "grant" in line]
    lost = sum(kind == "refresh_token" and status in (400, 401) for kind, status, _ in grants)
    signed_in = sum(kind == "password" and status == 200 and fault in (None, "slow") for kind, status, fault in grants)
    assert signed_in <= 1 + lost, "the password was sent though there was a refresh token"
    misled = told(asked, "checksum_wrong")
    named, whole = when_named(work.root), defaultdict(list)
    for line in asked:
        path = path_of(line) if line["service"] == "file" else ""
        if path not in named or path.split(".")[0] in misled:
            continue
        if path.endswith(
            "manifest.safe"
        ):  # OData tells neither its size nor its digest: nobody knows whether it is right
            continue
        assert line["time"] < named[path] + 0.01, f"{path} was asked for again though it was there"
        if line.get("status") == 200 and line["bytes"] == line["size"] and line.get("fault") in (None, "slow"):
            whole[path].append(line["time"] + line["seconds"])
    for path, ends in whole.items():
        killed = sum(any(end - 1 < kill < end + 1 for kill in kills) for end in ends)
        assert len(ends) - killed <= 1, f"{path} came whole {len(ends)} times"


def when_named(root: Path) -> dict[str, float]:
    """When each file got its name, by its path below the scenes: its inode has not changed since."""
    scenes = root / "scenes"
    return {str(path.relative_to(scenes)): path.stat().st_ctime for path in scenes.rglob("*") if path.is_file()}


def path_of(line: dict) -> str:
    """The path of a file below the scenes, of its address: Products(id)/Nodes(name.SAFE)/Nodes(GRANULE)/..."""
    return "/".join(re.findall(r"Nodes\(([^)]*)\)", line["path"]))
