import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.copernicus.patience import Patience, Weather, duration
from cloudjob.errors import InterruptedJob, ItemError


def never() -> bool:
    return False


@given(st.integers(1, 2000), st.booleans(), st.floats(0, 1e4), st.floats(0.01, 1e6))
def test_waits_grow_to_a_limit_and_are_never_shorter_than_asked(tries, limited, asked, seconds):
    patience = Patience(seconds=seconds)
    wait = patience.wait(tries, limited=limited, asked=asked)
    assert asked <= wait <= max(patience.longest, asked + patience.first)
    assert patience.wait(1) <= patience.first <= 2
    assert patience.longest / 2 <= patience.wait(60) <= patience.longest <= 60


def test_what_the_defaults_come_to():
    usual = Patience()
    assert (usual.retries, usual.seconds, usual.first, usual.longest) == (5, 1800, 2, 60)
    assert (usual.unknown, usual.answer, usual.silence) == (8, 300, 60)
    assert [duration(seconds) for seconds in (45, 1800, 93600)] == ["45 s", "30 min", "26 h"]


def test_a_host_that_is_down_is_noticed_once_and_given_up_by_all():
    host, patience, said, failed = Weather("a.eu"), Patience(seconds=0.3), [], []
    host.good(said.append)
    begun = time.monotonic()

    def work():
        try:
            while True:
                host.bad("refused", patience, said.append)
                host.pause(0.05, "refused", never, said.append)
        except ItemError as error:
            failed.append((str(error), time.monotonic() - begun))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
    assert said[0].startswith("a.eu: no answer since ")
    assert said[0].endswith(" (refused); waiting up to 0 s")
    assert len({words for words, _ in failed}) == 1
    assert all(0.3 <= after < 0.6 for _, after in failed)
    with pytest.raises(ItemError, match="no answer since"):  # at once, without another try
        host.ask_first(Patience())
    host.ask_first(Patience(seconds=0))  # some time later one may try again
    host.good(said.append)
    host.ask_first(Patience())
    assert said[1:] == ["a.eu: answers again"]


def test_who_waits_goes_on_when_the_host_is_back_and_hears_a_stop():
    host, said, begun = Weather("a.eu"), [], time.monotonic()
    host.bad("refused", Patience(), said.append)
    back = threading.Timer(0.1, host.good, [said.append])
    back.start()
    host.pause(30, "refused", never, said.append)
    with pytest.raises(InterruptedJob, match=r"a\.eu: stopped while waiting \(busy\)"):
        host.pause(30, "busy", lambda: time.monotonic() > begun + 0.5, said.append)
    assert time.monotonic() - begun < 1.5


def test_a_long_wait_is_said_now_and_then_alone():
    host, said = Weather("a.eu"), []
    host.pause(0.01, "busy", never, said.append)
    for _ in range(2):
        with pytest.raises(InterruptedJob):
            host.pause(40, "busy", lambda: bool(said), said.append)
    assert len(said) == 1
    assert said[0].startswith("a.eu: busy; again in 40 s")
