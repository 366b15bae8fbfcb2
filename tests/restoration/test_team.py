"""A team of ranks: each unit made once, by whom it falls to; what goes wrong on one is known to all."""

import os
import time

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from worlds import together

from cloudjob.errors import CorruptFileError, DiskFullError, InterruptedJob, ItemError
from cloudjob.restoration.team import Team, Unit, shared_out


@examples(50)
@given(st.lists(st.floats(0.1, 20), max_size=40), st.integers(1, 6))
def test_each_unit_falls_to_one_rank_and_none_has_much_more_than_another(weights, ranks):
    units = [Unit(str(number), lambda: None, weight=weight) for number, weight in enumerate(weights)]
    shares = shared_out(units, ranks)
    assert sorted(unit.name for share in shares for unit in share) == sorted(unit.name for unit in units)
    loads = [sum(unit.weight for unit in share) for share in shares]
    assert max(loads) - min(loads) <= max(weights, default=0) + 1e-9
    assert shared_out(units, ranks) == shares


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_is_made_once_and_not_again(tmp_path, size, threads):
    made = []

    def plan():
        return [Unit(f"{number}", lambda number=number: made.append(number)) for number in range(10)]

    def work(ranks):
        team = Team(tmp_path, ranks, threads=threads)
        team.do("first", plan, threads=threads)
        team.do("second", plan)
        return sorted(team.seconds)

    assert together(size, work) == [["first", "second"]] * size
    assert sorted(made) == sorted([*range(10)] * 2)
    made.clear()
    (tmp_path / "done" / "first-3").unlink()
    assert together(3 - size or 1, work)[0] == ["first", "second"]
    assert made == [3]


def test_a_unit_with_files_is_made_where_one_is_missing(tmp_path):
    files = (tmp_path / "a", tmp_path / "b")
    made = []

    def write() -> None:
        made.append(1)
        for file in files:
            file.touch()

    for _ in range(2):
        Team(tmp_path).do("tiles", lambda: [Unit("ab", write, files)])
    assert made == [1]
    files[1].unlink()
    Team(tmp_path).do("tiles", lambda: [Unit("ab", write, files)])
    assert made == [1, 1]
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ItemError("tile 3 is broken"), "rank 1: tile 3 is broken"),
        (DiskFullError("no room"), "rank 1: no room"),
        (InterruptedJob("stopped"), "rank 1: stopped"),
        (CorruptFileError("band.jp2", "is damaged"), "band.jp2: is damaged"),
        (OSError(5, "Input/output error", "band.jp2"), "rank 1: band.jp2: Input/output error"),
    ],
)
def test_what_goes_wrong_on_one_rank_all_of_them_raise(tmp_path, error, message):
    def fail():
        raise error

    def work(ranks):
        Team(tmp_path, ranks).do("some", lambda: [Unit("0", lambda: None), Unit("1", fail)])

    found = together(2, work)
    assert all(str(each).startswith(message) for each in found), found
    kind = ItemError if isinstance(error, OSError) else type(error)
    assert all(isinstance(each, kind) for each in found)
    if kind is CorruptFileError:
        assert found[0].path == "band.jp2"


def test_a_plan_that_cannot_be_made_is_such_an_error_too(tmp_path):
    def work(ranks):
        def plan():
            if ranks.rank == 1:
                raise ItemError("no product")
            return []

        Team(tmp_path, ranks).do("some", plan)

    assert [str(each) for each in together(2, work)] == ["rank 1: no product"] * 2


def test_a_wish_to_stop_is_heard_between_two_units(tmp_path):
    made, answers = [], iter([False, False, True])
    team = Team(tmp_path, stopped=lambda: next(answers))
    with pytest.raises(InterruptedJob, match="run the same command again"):
        team.do("some", lambda: [Unit(str(number), lambda: made.append(1)) for number in range(5)])
    assert len(made) == 2
    team = Team(tmp_path)
    with pytest.raises(InterruptedJob, match="another rank ended"):  # never as if all had been made
        team.do("some", lambda: [Unit(str(number), lambda: made.append(1)) for number in range(5)])
    team.begin()
    team.do("some", lambda: [Unit(str(number), lambda: made.append(1)) for number in range(5)])
    assert len(made) == 5
    Team(tmp_path, stopped=lambda: True).do("some", lambda: [Unit(str(number), list) for number in range(5)])


@pytest.mark.parametrize("threads", [1, 4])
def test_who_works_ends_soon_after_another_rank_has_ended(tmp_path, threads):
    """Without having been told itself; and at the next attempt that is forgotten."""
    made = []

    def unit(number: int) -> None:
        time.sleep(0.01)
        made.append(number)

    def work(ranks):
        team = Team(tmp_path, ranks, threads=threads, stopped=lambda: ranks.rank == 1)
        team.do(
            "some",
            lambda: [Unit(str(number), lambda number=number: unit(number)) for number in range(40)],
            threads=threads,
        )

    assert all(isinstance(each, InterruptedJob) for each in together(2, work))
    assert len(made) < 15
    team = Team(tmp_path)
    team.begin()
    team.do("some", lambda: [Unit(str(number), lambda number=number: unit(number)) for number in range(40)])
    assert sorted(made) == list(range(40))


def test_a_rank_that_comes_late_marks_nothing_in_a_folder_that_is_another(tmp_path):
    """Whose job lost its lease: another one has made the scene, removed the folder, and may have begun anew."""
    work = tmp_path / "work"
    late = Team(work)
    late.begin()
    for begun_anew in (True, False):

        def meanwhile(begun_anew=begun_anew) -> None:
            Team(work).discard()
            if begun_anew:
                Team(work).begin()

        with pytest.raises(InterruptedJob, match="another job has made this scene"):
            late.do("some", lambda meanwhile=meanwhile: [Unit("0", meanwhile)])
        assert not (work / "done").exists()
        (work / "over").unlink()


def test_a_folder_is_removed_at_once(tmp_path, monkeypatch):
    """Killed in the midst of it, nothing is left that somebody goes on from."""
    team = Team(tmp_path / "work")
    team.begin()
    team.do("some", lambda: [Unit("0", list)])
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before
    team.discard()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".tmp-{os.getpid()}-")
    monkeypatch.undo()
    team.discard()  # gone already
    team.begin()
    team.discard()
    assert list(tmp_path.iterdir()) == [left]


def test_rank_0_tells_its_progress(tmp_path):
    told = []
    Team(tmp_path, progress=lambda *now: told.append(now)).do("some", lambda: [Unit(str(n), list) for n in range(4)])
    assert told == [("some", share) for share in (0.25, 0.5, 0.75, 1.0)]


def test_figures_are_those_of_every_rank(tmp_path):
    def work(ranks):
        team = Team(tmp_path, ranks)
        team.do("some", lambda: [Unit(str(number), list) for number in range(3)])
        return team.all_figures()

    one, other = together(2, work)
    assert other is None
    assert [list(rank["seconds"]) for rank in one] == [["some"]] * 2
    assert all(rank["peak_bytes"] > 2**20 for rank in one)
    assert Team(tmp_path).all_figures()[0]["seconds"] == {}
