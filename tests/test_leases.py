"""Leases: one owner at a time, whoever is killed, suspended or in a hurry."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob import files, leases
from cloudjob.errors import ConfigError, DiskFullError, InterruptedJob
from cloudjob.leases import Lease

ELSEWHERE = {"host": "node7", "machine": "another", "pid": 1, "started": "1", "job": "77"}
ELSEWHERE |= {"since": 0, "key": "k", "patience": 0.2}


@pytest.fixture(autouse=True)
def no_guards_left():
    yield
    assert files.guards == []


def of(folder, **options) -> Lease:
    return Lease(folder, "shard", "pair-a", **options)


def left_by(folder, owner: dict, number: int = 4) -> None:
    """A lease as somebody else has left it."""
    place = folder / "shard" / "pair-a"
    place.mkdir(parents=True, exist_ok=True)
    (place / str(number)).write_text(json.dumps({"stage": "shard", "item": "pair-a", **owner}))


def everything(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- one owner -------------------------------------------------------------------------------------------------------
def test_one_has_it_the_other_hears_who_and_gets_it_afterwards(tmp_path):
    mine, other = of(tmp_path, job="12"), of(tmp_path)
    assert mine.take()
    assert not other.take()
    assert f"shard pair-a is being made by process {os.getpid()} of job 12 on {files.HOST} since " in other.occupied()
    (facts,) = leases.held(tmp_path)
    assert {key: facts[key] for key in ("stage", "item", "host", "pid", "job")} == {
        "stage": "shard",
        "item": "pair-a",
        "host": files.HOST,
        "pid": os.getpid(),
        "job": "12",
    }
    assert abs(facts["since"] - time.time()) < 60
    with pytest.raises(ValueError, match="mine"), mine:
        raise ValueError("mine")  # given back all the same
    assert leases.held(tmp_path) == everything(tmp_path) == []
    with other:
        assert other.take()


def test_leases_of_other_items_are_others(tmp_path):
    several = [Lease(tmp_path, *name) for name in (("shard", "a"), ("shard", "b"), ("infer", "a"))]
    assert all(lease.take() for lease in several)
    assert [(each["stage"], each["item"]) for each in leases.held(tmp_path)] == [
        *(("infer", "a"), ("shard", "a"), ("shard", "b"))
    ]
    for lease in several:
        lease.release()


class Schedule:
    """Lets one thread at a time do one operation on the files: which, follows from a list of numbers."""

    def __init__(self, choices: list[int]):
        self.choices, self.turn, self.waiting = iter(choices), threading.Condition(), {}
        self.go: int | None = None

    def step(self) -> None:
        """Called by an actor before each operation."""
        if (me := threading.get_ident()) not in self.waiting:
            return
        with self.turn:
            self.waiting[me] = True
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.go == me)
            self.go, self.waiting[me] = None, False

    def run(self, actors) -> None:
        threads = [threading.Thread(target=self._act, args=[actor]) for actor in actors]
        with self.turn:
            for thread in threads:
                thread.start()
            self.turn.wait_for(lambda: len(self.waiting) == len(threads))
            while self.waiting:
                self.turn.wait_for(lambda: all(self.waiting.values()))
                if self.waiting:
                    ready = sorted(self.waiting, key=self.order.index)
                    self.go = ready[next(self.choices, 0) % len(ready)]
                    self.turn.notify_all()
                    self.turn.wait_for(lambda: self.go is None)
        for thread in threads:
            thread.join()

    def _act(self, actor) -> None:
        me = threading.get_ident()
        with self.turn:
            self.order = [*getattr(self, "order", []), me]
            self.waiting[me] = False
        try:
            self.step()
            actor()
        finally:
            with self.turn:
                del self.waiting[me]
                self.turn.notify_all()


@given(st.lists(st.integers(0, 11), max_size=80), st.booleans(), st.integers(2, 4))
def test_however_their_steps_mix_at_most_one_still_has_it_at_the_end(tmp_path_factory, choices, begun, number):
    """The worst of worlds: each believes that every number stands still. All try to take it, own it, raise its number
    and make sure of it; who is not told that it is lost is alone."""
    folder, schedule = tmp_path_factory.mktemp("mixed"), Schedule(choices)
    if begun:
        left_by(folder, ELSEWHERE)

    class Stepped(Lease):
        def _live(self):
            pass

        def _stands_still(self, *_):
            return True

    for name in ("_numbers", "_read", "_make", "_remove", "_make_place"):

        def stepped(self, *args, name=name):
            schedule.step()
            return getattr(Lease, name)(self, *args)

        setattr(Stepped, name, stepped)
    actors = [Stepped(folder, "shard", "pair-a") for _ in range(number)]
    owned = []

    def act(lease):
        for _ in range(2):
            if lease.take():
                owned.append(lease)
                lease._raise()
                return

    leases._WITHDRAWS, before = 0.0, leases._WITHDRAWS
    try:
        schedule.run([lambda lease=lease: act(lease) for lease in actors])
    finally:
        leases._WITHDRAWS = before
    for lease in owned:
        lease._raise()
    still = [lease for lease in owned if not lease._lost]
    assert len(still) <= 1
    for lease in owned:
        lease.release()
    if still:
        assert everything(folder) == []


@pytest.mark.parametrize("begun", [False, True])
def test_of_many_that_hurry_one_gets_it(tmp_path, begun):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        if begun:
            left_by(folder, ELSEWHERE | {"machine": leases._machine(), "pid": os.getpid()})  # of an earlier process
        many, start = [of(folder) for _ in range(8)], threading.Barrier(8)
        got: list[Lease] = []

        def hurry(lease, start=start, got=got):
            start.wait()
            if lease.take():
                got.append(lease)

        threads = [threading.Thread(target=hurry, args=[lease]) for lease in many]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) <= 1  # none where two were in each other's way: both look again
        for lease in got:
            lease.check()
            lease.release()
            assert everything(folder) == []


# --- taking it over --------------------------------------------------------------------------------------------------
def test_of_a_process_of_this_machine_that_is_gone_it_is_taken_at_once(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = ELSEWHERE | {"machine": leases._machine()}
    for owner in ({"pid": ended.pid}, {"pid": os.getpid(), "started": "1"}):  # the second had our number before us
        left_by(tmp_path, here | owner)
        assert leases.held(tmp_path) == []
        with of(tmp_path) as lease:
            assert lease.take()
    running = {"pid": os.getpid(), "started": leases._started(os.getpid())}
    left_by(tmp_path, here | running)
    assert not of(tmp_path).take()
    left_by(tmp_path, ELSEWHERE | {"pid": ended.pid})  # process numbers of another machine tell nothing
    assert not of(tmp_path).take()


def test_a_dead_child_that_nobody_has_waited_for_is_gone_and_somebody_elses_process_is_not(monkeypatch, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    owner = ELSEWHERE | {"machine": leases._machine(), "pid": child.pid, "started": leases._started(child.pid)}
    while leases._started(child.pid):
        time.sleep(0.01)
    assert leases._gone(owner)
    child.wait()

    def hidden(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", hidden)
    assert not leases._gone(owner)  # /proc may hide what belongs to others


@pytest.fixture
def clock(monkeypatch):
    """The waiter's own clock, to be moved by hand."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(leases.time, "monotonic", lambda: now.seconds)
    return now


@pytest.mark.parametrize("text", [json.dumps(ELSEWHERE), '{"host": "no', ""])  # the last two were cut short
def test_a_number_that_stands_still_for_the_patience_of_who_waits_is_taken_over(tmp_path, clock, text):
    left_by(tmp_path, {})
    (tmp_path / "shard" / "pair-a" / "4").write_text(text)
    waiter = of(tmp_path, patience=60)
    for _ in range(6):
        assert not waiter.take()
        clock.seconds += 10
    assert waiter.take()
    waiter.release()
    assert everything(tmp_path) == []


def test_a_number_that_grows_is_waited_for_and_so_is_another_owner(tmp_path, clock):
    waiter = of(tmp_path, patience=60)
    for number in range(5):
        left_by(tmp_path, ELSEWHERE, number)
        for _ in range(5):
            assert not waiter.take()
            clock.seconds += 10
    left_by(tmp_path, ELSEWHERE | {"key": "of the next"}, 4)
    clock.seconds += 10
    assert not waiter.take()


def test_who_was_suspended_while_it_waited_does_not_count_that_time(tmp_path, clock):
    """As gang scheduling does: all jobs sleep and wake together, and who wakes first must not judge the others."""
    left_by(tmp_path, ELSEWHERE)
    waiter = of(tmp_path, patience=60)
    assert not waiter.take()
    for seconds in (3600, 7200, 3600):
        clock.seconds += seconds
        assert not waiter.take()
    clock.seconds += 3600
    assert waiter.take()
    waiter.release()


@pytest.mark.slow
def test_a_living_owner_keeps_it_for_as_long_as_it_likes(tmp_path):
    with of(tmp_path, patience=0.4) as owner:
        owner.take()
        waiter, end = of(tmp_path, patience=0.4), time.monotonic() + 1.5
        while time.monotonic() < end:
            assert not waiter.take()
            time.sleep(0.02)
        owner.check()


def test_who_judged_by_an_old_listing_gives_it_back_and_the_owner_keeps_it(tmp_path, monkeypatch):
    owner, late = of(tmp_path), of(tmp_path)
    owner.take()
    monkeypatch.setattr(late, "_stands_still", lambda *_: True)
    text, kept = owner._text, late._read
    listings = iter([[0]])  # as a network file system may remember it
    monkeypatch.setattr(late, "_numbers", lambda: next(listings, None) or leases._numbers(late.place))
    monkeypatch.setattr(late, "_read", lambda number: text if next(texts, False) else kept(number))
    texts = iter([True])
    owner._raise()
    owner._raise()
    assert not late.take()
    owner._raise()
    owner.check()
    owner.release()
    assert everything(tmp_path) == []


def test_a_listing_that_misses_all_does_not_make_a_second_owner(tmp_path, monkeypatch):
    """Numbers come and go while a folder is listed; a network file system may show an old listing again."""
    owner, late = of(tmp_path), of(tmp_path)
    owner.take()
    owner._raise()
    listings = iter([[], [0]])
    monkeypatch.setattr(late, "_numbers", lambda: next(listings))
    assert not late.take()
    second = of(tmp_path)
    monkeypatch.setattr(second, "_numbers", lambda: next(listings))
    monkeypatch.setattr(second, "_make_place", lambda: True)  # as if it had been slow between two steps
    listings = iter([[], [0, 1]])
    assert not second.take()
    owner._raise()
    owner.check()
    owner.release()
    assert everything(tmp_path) == []


def test_who_was_slow_to_take_over_finds_that_others_were_there_meanwhile(tmp_path, monkeypatch):
    slow, quick = of(tmp_path), of(tmp_path)
    monkeypatch.setattr(Lease, "_stands_still", lambda *_: True)
    left_by(tmp_path, ELSEWHERE)
    make = slow._make

    def slowly(number):
        left_by_dead = of(tmp_path)
        assert left_by_dead.take()
        left_by_dead.release()
        assert quick.take()
        return make(number)

    monkeypatch.setattr(slow, "_make", slowly)
    assert not slow.take()
    quick._raise()
    quick.check()
    quick.release()
    assert everything(tmp_path) == []


def test_a_number_above_ones_own_means_that_it_is_lost(tmp_path):
    owner = of(tmp_path)
    owner.take()
    left_by(tmp_path, ELSEWHERE, 7)  # of one that was killed in the moment of giving it back
    owner._raise()
    with pytest.raises(InterruptedJob):
        owner.check()
    owner.release()


def test_the_longer_patience_of_the_two_counts(tmp_path, clock):
    """The owner raises its number as its own patience asks."""
    left_by(tmp_path, ELSEWHERE | {"patience": 60})
    waiter = of(tmp_path, patience=8)
    for _ in range(30):
        assert not waiter.take()
        clock.seconds += 2
    assert waiter.take()
    waiter.release()


# --- losing it -------------------------------------------------------------------------------------------------------
def lost(folder, monkeypatch) -> tuple[Lease, Lease]:
    """A lease whose owner slept too long, and that of the one who took it over."""
    monkeypatch.setattr(Lease, "_live", lambda self: None)
    sleeper, taker = of(folder, patience=0.3), of(folder, patience=0.3)
    assert sleeper.take()
    while not taker.take():
        time.sleep(0.02)
    return sleeper, taker


def test_who_lost_it_gives_no_file_its_name_and_leaves_the_lease_alone(tmp_path, monkeypatch):
    sleeper, taker = lost(tmp_path / "leases", monkeypatch)
    target = tmp_path / "shard.h5"
    with pytest.raises(InterruptedJob, match=r"shard pair-a: another process took it over.*same command again"):
        files.write_text(target, "of yesterday")
    sleeper.release()
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]
    taker.patience = 60
    taker._raise()
    files.write_text(target, "of today")
    taker.release()
    assert target.read_text() == "of today"


@pytest.mark.parametrize("error", [OSError("the other one removed it"), ConfigError("half of it was new")])
def test_what_goes_wrong_after_the_loss_is_no_error_of_the_work(tmp_path, monkeypatch, error):
    sleeper, taker = lost(tmp_path, monkeypatch)
    with pytest.raises(InterruptedJob, match="took it over"), sleeper:
        raise error
    taker.release()


def test_released_and_taken_by_a_third_one_it_is_lost_to_the_first_too(tmp_path, monkeypatch):
    """The numbers begin anew: who slept finds its own again, with another owner."""
    sleeper, taker = lost(tmp_path, monkeypatch)
    taker.release()
    third = of(tmp_path)
    assert third.take()
    assert third._number == sleeper._number == 0
    sleeper._raise()
    with pytest.raises(InterruptedJob):
        sleeper.check()
    sleeper.release()
    third._raise()
    third.check()
    third.release()
    assert everything(tmp_path) == []


SLEEPER = """
import sys, time
from pathlib import Path
from cloudjob import files
from cloudjob.errors import InterruptedJob
from cloudjob.leases import Lease

folder = Path(sys.argv[1])
try:
    with Lease(folder / "leases", "shard", "pair-a", patience=1) as lease:
        assert lease.take()
        with files.atomic(folder / "shard.h5") as temporary:
            temporary.write_text("of yesterday")
            print("at work", flush=True)
            sys.stdin.readline()
except InterruptedJob as error:
    print(error, flush=True)
    sys.exit(75)
"""


@pytest.mark.slow
def test_a_process_that_was_suspended_drops_its_work(tmp_path):
    command = [sys.executable, "-c", SLEEPER, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sleeper:
        assert sleeper.stdout.readline() == "at work\n"
        sleeper.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        (lease,) = leases.wait([of(tmp_path / "leases", patience=1)], stopped=lambda: False, say=print, progress=print)
        assert 1 <= time.monotonic() - begun < 20
        with lease:
            files.write_text(tmp_path / "shard.h5", "of today")
            sleeper.send_signal(signal.SIGCONT)
            said = sleeper.communicate("go on\n", timeout=30)[0]
            assert sleeper.returncode == 75
            assert "took it over" in said
            lease.check()
    assert (tmp_path / "shard.h5").read_text() == "of today"
    assert [path.name for path in everything(tmp_path)] == ["shard.h5"]


def test_a_child_of_the_owner_holds_nothing(tmp_path):
    with of(tmp_path) as lease:
        lease.take()
        if not (child := os.fork()):
            os._exit(len(files.guards))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- waiting ---------------------------------------------------------------------------------------------------------
def test_who_waits_says_so_once_and_ends_on_a_wish_to_stop(tmp_path):
    left_by(tmp_path, ELSEWHERE)
    said, shown, looks = [], [], []
    wishes = iter([False] * 3)
    options = {"say": said.append, "progress": shown.append, "meanwhile": lambda: looks.append(1)}
    with pytest.raises(InterruptedJob, match=r"stopped while waiting: shard pair-a .* on node7") as caught:
        next(leases.wait([of(tmp_path, patience=0.4)], stopped=lambda: next(wishes, True), **options))
    assert caught.value.exit_code == 75
    assert [line.split(" since")[0] for line in said] == [
        "waits: shard pair-a is being made by process 1 of job 77 on node7"
    ]
    assert len(shown) + 1 == len(looks) > 1
    assert set(shown) == set(said)


def test_what_is_free_first_is_given_first(tmp_path):
    left_by(tmp_path, ELSEWHERE)
    busy, free = of(tmp_path, patience=0.3), Lease(tmp_path, "shard", "b")
    order = leases.wait([busy, free], stopped=lambda: False, say=print, progress=print)
    assert next(order) is free
    assert next(order) is busy
    for lease in (busy, free):
        lease.release()
    assert list(order) == []


@pytest.mark.slow
def test_who_lives_is_told_from_what_was_left(tmp_path):
    assert leases.alive(tmp_path, 0.2) is None
    left_by(tmp_path, ELSEWHERE)
    begun = time.monotonic()
    assert leases.alive(tmp_path, 0.2) is None
    assert time.monotonic() - begun < 5
    with of(tmp_path / "here") as lease:
        lease.take()
        assert leases.alive(tmp_path / "here", 60)["pid"] == os.getpid()
    timer = threading.Timer(0.2, left_by, [tmp_path, ELSEWHERE, 5])
    timer.start()
    assert leases.alive(tmp_path, 60)["host"] == "node7"
    timer.join()


def test_what_a_killed_process_of_this_machine_left_is_removed(tmp_path):
    left_by(tmp_path / "a", ELSEWHERE)
    left_by(tmp_path / "b", ELSEWHERE | {"machine": leases._machine(), "pid": os.getpid()})
    for folder in ("a", "b", "none"):
        leases.tidy(tmp_path / folder)
    assert [path.parents[2].name for path in everything(tmp_path)] == ["a"]


# --- file systems ----------------------------------------------------------------------------------------------------
def refuse(number):
    def refusing(*_, **__):
        raise OSError(number, os.strerror(number))

    return refusing


def fills(descriptor, *_, **__):
    os.close(descriptor)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAILS = {"open": (leases.os, "open", refuse(errno.ENOSPC)), "close": (leases, "open", fills, False)}


def test_a_number_of_its_own_that_an_error_cut_short_is_no_others(tmp_path, monkeypatch):
    with of(tmp_path) as lease:
        lease.take()
        with monkeypatch.context() as away:
            away.setattr(lease, "_read", refuse(errno.EIO))
            with pytest.raises(OSError, match="Input/output"):
                lease._raise()
        lease._raise()
        lease.check()
        assert lease._number == 1


def test_neither_locks_nor_links_are_needed(tmp_path, monkeypatch):
    for owner, name in ((fcntl, "flock"), (fcntl, "lockf"), (os, "link"), (os, "symlink")):
        monkeypatch.setattr(owner, name, refuse(errno.ENOLCK))
    with of(tmp_path) as lease:
        assert lease.take()
        lease._raise()
        lease.check()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EROFS, ConfigError, "lease on shard pair-a cannot be written .Read-only file system"),
        (errno.EACCES, ConfigError, "Permission denied"),
        (errno.ENOSPC, DiskFullError, "no space left"),
    ],
)
@pytest.mark.parametrize("operation", ["mkdir", "open"])
def test_a_file_system_that_refuses_gets_one_line(tmp_path, monkeypatch, operation, number, kind, words):
    monkeypatch.setattr(leases.os, operation, refuse(number))
    with pytest.raises(kind, match=words):
        of(tmp_path / "run" / "leases").take()


def test_a_full_disk_or_a_server_that_is_away_for_a_while_costs_no_lease(tmp_path, monkeypatch):
    with of(tmp_path, patience=0.6) as lease:
        lease.take()
        for operation in ("open", "close"):  # before and after the name is there
            with monkeypatch.context() as full:
                full.setattr(*FAILS[operation])
                time.sleep(0.3)
        time.sleep(0.3)
        assert lease._number > 0  # of itself
        lease.check()
