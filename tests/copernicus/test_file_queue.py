"""The queue: several files at a time over all products, each once, whatever else goes wrong."""

import contextlib
import hashlib
import threading
import time

import pytest

from cloudjob.copernicus.checks import Wanted
from cloudjob.copernicus.patience import Patience
from cloudjob.copernicus.queue import Order, Queue
from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.tally import Tally
from cloudjob.copernicus.transfer import Limits
from cloudjob.errors import CorruptFileError, DiskFullError, InterruptedJob, ItemError, LeftOutError
from cloudjob.leases import Lease

NAMES = [f"P{number}" for number in range(5)]
FILES = ["a", "b", "c"]


def content(product: str, path: str) -> bytes:
    return f"{product} {path}".encode() * 99


class Source:
    """Files in memory. `before` is called with product and path when one is asked for."""

    def __init__(self, before=lambda product, path: None):
        self.before, self.asked, self.busy, self.most = before, [], 0, 0
        self.lock = threading.Lock()

    def local(self, product, path):
        return None

    def slot(self):
        return contextlib.nullcontext()

    def open(self, product, path, start):
        with self.lock:
            self.asked.append((product.name, path))
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            self.before(product.name, path)
        finally:
            with self.lock:
                self.busy -= 1
        return Body(content(product.name, path)[start:], start)


class Body:
    def __init__(self, rest, start):
        self.rest, self.start = rest, start

    def read(self):
        block, self.rest = self.rest[:100], self.rest[100:]
        return block

    def stop(self):
        pass

    close = stop


@pytest.fixture
def make(tmp_path):
    """Makes a queue on the folder, and an order of it by the product's name."""

    def queue(source, *, connections=3, stopped=lambda: False, progress=lambda share, line: None):
        return Queue(
            source,
            connections=connections,
            lease=lambda name: Lease(tmp_path / "leases", "file", name, patience=1),
            limits=Limits(Patience(retries=0, seconds=30)),
            tally=Tally(len(NAMES), lambda line: None),
            stopped=stopped,
            progress=progress,
        )

    return queue


@pytest.fixture
def order(tmp_path):
    def steps(name):
        yield [wanted(name, "first")]
        assert (tmp_path / name / "first").exists()
        yield [wanted(name, path) for path in FILES]

    def wanted(name, path):
        data = content(name, path)
        return Wanted(path, len(data), ("MD5", hashlib.md5(data).hexdigest()))

    return lambda name: Order(Remote(name), tmp_path / name, steps(name))


def whole(tmp_path) -> list[str]:
    found = [path for name in NAMES for path in (tmp_path / name).glob("*")]
    assert all(path.read_bytes() == content(path.parent.name, path.name) for path in found)
    return sorted(f"{path.parent.name} {path.name}" for path in found)


EVERY = sorted(f"{name} {path}" for name in NAMES for path in ("first", *FILES))


def test_all_files_come_once_and_later_steps_after_earlier_ones(make, order, tmp_path):
    source = Source(lambda product, path: time.sleep(0.005))
    with make(source) as queue:
        queue.plan(map(order, NAMES))
        for name in NAMES:
            assert queue.get(order(name)) == [tmp_path / name / path for path in ("first", *FILES)]
        assert whole(tmp_path) == EVERY
        assert sorted(" ".join(each) for each in source.asked) == EVERY
        assert source.most == 3
        assert (queue.tally.share, queue.tally.failures, queue.tally.files_done) == (1, 0, 20)
        assert queue.tally.arrived == queue.tally.verified == sum(path.stat().st_size for path in tmp_path.glob("P*/*"))
    assert not list((tmp_path / "leases").glob("*/*"))
    source = Source()
    source.slot = None  # no connection is asked for
    with make(source) as queue:
        queue.get(order("P0"))
        assert (queue.tally.arrived, queue.tally.verified) == (0, queue.tally.kept)


def test_an_optional_file_that_is_gone_costs_itself_alone(make, tmp_path):
    def before(product, path):
        if path == "b":
            raise LeftOutError(f"{path}: HTTP 404")

    files = [Wanted(path, len(content("P0", path)), optional=path != "a") for path in FILES]
    with make(Source(before)) as queue:
        found = queue.get(Order(Remote("P0"), tmp_path / "P0", iter([files])))
        assert found == [tmp_path / "P0" / "a", tmp_path / "P0" / "c"]
        assert whole(tmp_path) == ["P0 a", "P0 c"]
        assert (queue.tally.files, queue.tally.files_done, queue.tally.failures) == (2, 2, 0)
        with pytest.raises(LeftOutError, match="b: HTTP 404"):
            queue.get(Order(Remote("P1"), tmp_path / "P1", iter([[Wanted("b")]])))


def test_a_file_that_takes_long_holds_up_nobody(make, order, tmp_path):
    slow = threading.Event()

    def before(product, path):
        if (product, path) == ("P0", "b"):
            assert slow.wait(10)

    with make(Source(before)) as queue:
        queue.plan(map(order, NAMES))
        for name in NAMES[1:]:
            queue.get(order(name))
        assert not (tmp_path / "P0" / "b").exists()
        slow.set()
        queue.get(order("P0"))


@pytest.mark.parametrize("kind", [ItemError, LeftOutError, RuntimeError])
def test_what_fails_is_said_where_it_is_waited_for_and_the_rest_goes_on(make, order, tmp_path, kind):
    def before(product, path):
        if (product, path) == ("P1", "a"):
            raise kind("no")

    with make(Source(before)) as queue:
        queue.plan(map(order, NAMES))
        for name in NAMES:
            with pytest.raises(kind, match="no") if name == "P1" else contextlib.nullcontext():
                queue.get(order(name))
        assert queue.tally.share == 0.8
        assert queue.tally.failures == (kind is not LeftOutError)
    assert "P1 a" not in whole(tmp_path)
    assert len(whole(tmp_path)) >= len(EVERY) - len(FILES)


def test_a_full_disk_ends_all(make, order):
    def before(product, path):
        if path == "a":
            raise DiskFullError("full")

    with make(Source(before)) as queue:
        queue.plan(map(order, NAMES))
        with pytest.raises(DiskFullError):
            queue.get(order("P4"))


def test_what_cannot_be_planned_is_raised(make, order):
    def orders():
        yield order("P0")
        raise RuntimeError("a bug")

    never = threading.Event()
    with make(Source(lambda product, path: product == "P4" and never.wait(1))) as queue:
        queue.plan(orders())
        with pytest.raises(RuntimeError, match="a bug"):
            queue.get(order("P4"))


def test_a_stop_ends_the_wait(make, order):
    stop, never = threading.Event(), threading.Event()
    source = Source(lambda product, path: stop.set() or never.wait(5))
    begin = time.monotonic()
    with make(source, stopped=stop.is_set) as queue, pytest.raises(InterruptedJob):
        queue.get(order("P0"))
    assert time.monotonic() - begin < 3  # nobody waits for a thread that cannot be ended


def test_files_that_another_process_makes_are_waited_for_and_not_fetched(make, order, tmp_path):
    other = Lease(tmp_path / "leases", "file", "P0.first", patience=1)
    assert other.take()
    source, lines = Source(), []
    with make(source, progress=lambda share, line: lines.append(line)) as queue:
        queue.plan(map(order, NAMES))
        for name in NAMES[1:]:
            queue.get(order(name))
        (tmp_path / "P0").mkdir()
        (tmp_path / "P0" / "first").write_bytes(content("P0", "first"))
        threading.Timer(0.3, other.release).start()
        queue.get(order("P0"))
    assert ("P0", "first") not in source.asked
    assert whole(tmp_path) == EVERY
    assert any("waits for 1 files: file P0.first is being made by process" in line for line in lines)


def test_two_queues_on_one_folder_fetch_each_file_once(make, order, tmp_path):
    source = Source(lambda product, path: time.sleep(0.01))

    def work(names):
        with make(source) as queue:
            queue.plan(map(order, names))
            for name in names:
                queue.get(order(name))

    threads = [threading.Thread(target=work, args=(names,)) for names in (NAMES, NAMES[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(tmp_path) == EVERY
    assert sorted(" ".join(each) for each in source.asked) == EVERY


def test_a_damaged_file_is_fetched_anew_and_one_of_a_site_is_a_link(make, order, tmp_path):
    site = tmp_path / "site"
    for path in ("first", *FILES):
        site.mkdir(exist_ok=True)
        (site / path).write_bytes(content("P0", path))
    source = Source()
    (tmp_path / "P0").mkdir()
    (tmp_path / "P0" / "a").write_bytes(b"x" * len(content("P0", "a")))
    with make(source) as queue:
        queue.get(order("P0"))
    assert (tmp_path / "P0" / "a").read_bytes() == content("P0", "a")

    (tmp_path / "P0" / "a").unlink()
    source.asked.clear()
    source.local = lambda product, path: site / path
    with make(source) as queue:
        queue.get(order("P0"))
        assert queue.tally.linked == len(content("P0", "a"))
    assert (tmp_path / "P0" / "a").is_symlink()
    assert source.asked == []

    (tmp_path / "P0" / "a").unlink()
    (site / "a").write_bytes(b"x" * len(content("P0", "a")))
    with make(source) as queue, pytest.raises(CorruptFileError, match=r"MD5 is .* instead of"):
        queue.get(order("P0"))
