"""Ranks that restore scenes together: rank 0 leads, all take part in each scene, what goes wrong on one is told."""

from types import SimpleNamespace

import pytest
from worlds import together

from cloudjob.errors import DiskFullError, InputError, InterruptedJob, ItemError
from cloudjob.hpc.mpi import Communicator
from cloudjob.restoration import scene
from cloudjob.restoration.crew import Crew, within

FACTORS = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture
def made(monkeypatch) -> list:
    """What each rank makes scenes with, in place of making them: (rank, folder, layout, factors)."""
    found = []

    def restore(team, restorer, layout, *, factors):
        found.append((team.rank, team.folder.name, layout, factors))

    monkeypatch.setattr(scene, "restore", restore)
    return found


def crew(ranks, opened=None, **options):
    def open_model(rank, local_rank):
        (opened if opened is not None else []).append((rank, local_rank))
        return SimpleNamespace(restorer="restorer", factors=FACTORS)

    return Crew(ranks, open_model, **({"size": 32, "overlap": 8, "members": 2} | options))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_ranks_prepare_and_make_each_scene_that_rank_0_names(tmp_path, made, size):
    prepared = []

    def work(rank):
        led = crew(rank, prepare=lambda team, told: prepared.append((team.rank, team.folder.name, told)))

        def lead():
            return [len(led.restore(led.team(tmp_path / name), {"pair": name})) for name in ("one", "two")]

        return led.run(lead)

    assert together(size, work) == [[size, size], *[None] * (size - 1)]
    every = [(rank, name) for name in ("one", "two") for rank in range(size)]
    assert sorted(prepared) == sorted((rank, name, {"pair": name}) for rank, name in every)
    assert sorted(made) == sorted((rank, name, scene.Layout(32, 8, 2), FACTORS) for rank, name in every)


def test_one_member_has_no_factors(tmp_path, made):
    alone = crew(Communicator(), members=1)
    alone.restore(alone.team(tmp_path / "one"))
    assert made == [(0, "one", scene.Layout(32, 8, 1), None)]


@pytest.mark.parametrize("kind", [InterruptedJob, DiskFullError, ItemError])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_on_a_rank_is_raised_once_all_have_gone_home(tmp_path, made, kind, rank):
    def prepare(team, told):
        def plan():
            if team.rank == rank:
                raise kind("it is broken")
            return []

        team.do("decoding", plan)

    def work(ranks):
        led = crew(ranks, prepare=prepare)
        return led.run(lambda: led.restore(led.team(tmp_path / "one")))

    lead, other = together(2, work)
    assert (type(lead), str(lead)) == (kind, "it is broken" if rank == 0 else "rank 1: it is broken")
    assert other is None
    assert made == []


def test_an_error_of_the_lead_sends_the_others_home(made):
    def lead():
        raise InputError("nothing to do")

    first, other = together(2, lambda ranks: crew(ranks).run(lead))
    assert (type(first), str(first)) == (InputError, "nothing to do")
    assert other is None


def test_the_network_is_opened_once_and_not_before_there_is_work(tmp_path, made):
    opened = []

    def work(rank):
        led = crew(rank, opened)
        led.run(lambda: assert_none(opened))
        return led.run(lambda: [led.restore(led.team(tmp_path / name)) for name in ("one", "two")])

    together(2, work)
    assert sorted(opened) == [(0, 0), (1, 1)]  # both of one node


def assert_none(opened):
    assert opened == []


def test_progress_counts_scenes_and_their_phases():
    told = []
    progress = within(lambda share, words: told.append((share, words)), "infer", "NAME", 1, 4)
    progress("tiles", 0.5)
    assert told == [((1 + 0.4 + 0.5 / 2) / 4, "infer: 1 of 4 (NAME: tiles 50%)")]
