"""Ranks that restore together: rank 0 leads, the others help until it ends, what goes wrong on one is told."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudjob.errors import ConfigError, CorruptFileError, DiskFullError, InputError, InterruptedJob, ItemError
from cloudjob.restoration import scene
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.crew import Crew


class Ranks:
    """This rank of several: what it is told, and what it tells."""

    def __init__(self, rank: int, size: int, *, told=(), answers=()):
        self.rank, self.size, self.told, self.answers = rank, size, iter(told), list(answers)
        self.sent, self.gathered = [], []

    def bcast(self, value):
        self.sent.append(value)
        return next(self.told) if self.rank else value

    def gather(self, value):
        self.gathered.append(value)
        return None if self.rank else [value, *self.answers]


def crew(ranks, **options):
    model = SimpleNamespace(restorer="restorer", factors=[1.0, 2.0, 3.0, 4.0])
    return Crew(ranks, lambda rank: model, **({"size": 32, "overlap": 8, "members": 2} | options))


@pytest.fixture
def asked(monkeypatch) -> list:
    """What the tiles are restored with."""
    found = []
    monkeypatch.setattr(scene, "restore_tiles", lambda *given, **options: found.append((given, options)))
    monkeypatch.setattr(SceneConditions, "load", lambda work: f"conditions of {work}")
    return found


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (None, None),
        (InterruptedJob("stopped"), ("InterruptedJob", "stopped")),
        (DiskFullError("no room"), ("DiskFullError", "no room")),
        (ItemError("broken"), ("ItemError", "broken")),
        (CorruptFileError("tile.npy", "is damaged"), ("ItemError", "tile.npy: is damaged")),
        (ConfigError("alpha"), ("ItemError", "alpha")),
        (PermissionError("no"), ("ItemError", "no")),
    ],
)
def test_what_goes_wrong_on_a_rank_is_its_answer(asked, monkeypatch, error, answer):
    def stopped():
        return False

    def restore(*given, **options):
        asked.append((given, options))
        if error:
            raise error

    monkeypatch.setattr(scene, "restore_tiles", restore)
    assert crew(Ranks(1, 3), stopped=stopped)._share(Path("work")) == answer
    ((given, options),) = asked
    assert given == ("conditions of work", "restorer", Path("work"))
    assert options == {"size": 32, "overlap": 8, "members": 2, "rank": 1, "ranks": 3, "stopped": stopped}


def test_other_ranks_restore_their_share_of_each_scene_that_is_named(asked):
    ranks = Ranks(1, 2, told=["one", "two", None])
    assert crew(ranks).run(lambda: pytest.fail("rank 1 does not lead")) is None
    assert [given[2] for given, _ in asked] == [Path("one"), Path("two")]
    assert ranks.gathered == [None, None]


@pytest.mark.parametrize(("members", "factors"), [(1, None), (2, [1.0, 2.0, 3.0, 4.0])])
def test_rank_0_names_the_scene_and_puts_it_together(asked, monkeypatch, members, factors):
    def put(conditions, work, **options):
        return conditions, work, options

    monkeypatch.setattr(scene, "put_together", put)
    ranks = Ranks(0, 3, answers=[None, None])
    led = crew(ranks, members=members)
    found = led.run(lambda: led.restore("name", Path("work")))
    assert found == ("conditions of work", Path("work"), {"size": 32, "overlap": 8, "factors": factors})
    assert ranks.sent == ["work", None]  # and home


@pytest.mark.parametrize("kind", [InterruptedJob, DiskFullError, ItemError])
def test_what_a_rank_answers_is_raised_once_all_have_gone_home(asked, kind):
    ranks = Ranks(0, 3, answers=[None, (kind.__name__, "enough")])
    led = crew(ranks)
    with pytest.raises(kind, match=r"^name, rank 2: enough$"):
        led.run(lambda: led.restore("name", Path("work")))
    assert ranks.sent == ["work", None]


def test_an_error_of_the_lead_sends_the_others_home(asked):
    ranks = Ranks(0, 2)

    def lead():
        raise InputError("nothing there")

    with pytest.raises(InputError):
        crew(ranks).run(lead)
    assert ranks.sent == [None]


def test_the_network_is_not_opened_before_there_is_work():
    opened = []
    led = Crew(Ranks(1, 2, told=[None]), opened.append, size=32, overlap=8, members=1)
    led.run(lambda: None)
    assert opened == []
