"""The ranks that restore scenes one after the other: rank 0 leads, and all of them share the units of each scene.

MPI carries what a scene is made of, in names, and the ranks' answers, never pixels: those lie in working folders.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cloudjob.errors import CloudjobError
from cloudjob.hpc.mpi import Communicator
from cloudjob.hpc.placement import Place
from cloudjob.restoration.team import Team, Unit

if TYPE_CHECKING:  # torch, which nobody waits for where there is nothing to do
    from cloudjob.restoration.network import Model

T = TypeVar("T")
Progress = Callable[[str, float], object]
_SHARES = {  # of a scene that its phases take, from and until
    "checking": (0.0, 0.01),
    "decoding": (0.01, 0.2),
    "masks": (0.2, 0.2),
    "placing": (0.2, 0.21),
    "lines": (0.21, 0.21),
    "matching": (0.21, 0.22),
    "first guess": (0.22, 0.4),
    "tiles": (0.4, 0.9),
    "blending": (0.9, 0.95),
}


@dataclass
class Crew:
    """This process among its `ranks`; made on all of them at once. `open_model` gives the network of a rank and a local
    rank, not before there is work for it. `prepare` leaves, by all ranks, the conditions of a scene in the team's
    folder, as rank 0 has told what they are made of. Tiles of `size` pixels overlap by `overlap`, and have so many
    `members`."""

    ranks: Communicator
    open_model: "Callable[[int, int], Model]"
    size: int
    overlap: int
    members: int
    prepare: Callable[[Team, Any], object] = lambda team, told: None
    stopped: Callable[[], bool] = lambda: False
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.place = Place.of(self.ranks)

    @cached_property
    def model(self) -> "Model":
        return self.open_model(self.ranks.rank, self.place.local_rank)

    def run(self, lead: Callable[[], T]) -> T | None:
        """What `lead`, which calls `restore`, returns on rank 0; the others help until it ends, and get None."""
        if self.ranks.rank:
            while (named := self.ranks.bcast(None)) is not None:
                folder, told = named
                try:
                    self._make(self.team(Path(folder)), told)
                except CloudjobError:  # rank 0 has it too, and says it
                    continue
            return None
        failure = None
        try:
            found = lead()
        except CloudjobError as error:
            failure = error  # raised only after the bcast, which ends the ranks that wait for a name
        self.ranks.bcast(None)
        if failure:
            raise failure
        return found

    def team(self, folder: Path, progress: Progress = lambda phase, share: None) -> Team:
        """This rank among those that make the scene of a working folder."""
        return Team(folder, self.ranks, threads=self.place.cores, stopped=self.stopped, progress=progress)

    def restore(self, team: Team, told: Any = None) -> list[dict]:
        """On rank 0: makes a scene, which then lies in the team's folder (`scene.stripes`). The figures of the ranks.
        What goes wrong on a rank is raised."""
        team.begin()
        self.ranks.bcast((str(team.folder), told))
        return self._make(team, told) or []

    def _make(self, team: Team, told: Any) -> list[dict] | None:
        from cloudjob.restoration import scene

        team.do("opening", self._open)
        self.prepare(team, told)
        factors = self.model.factors if self.members > 1 else None
        layout = scene.Layout(self.size, self.overlap, self.members)
        scene.restore(team, self.model.restorer, layout, factors=factors)
        return team.all_figures()

    def _open(self) -> list[Unit]:
        """No work, but for the network, which all ranks open at once: an error of one is then one of all."""
        assert self.model
        return []


def within(say: Callable[[float, str], object], stage: str, name: str, number: int, count: int) -> Progress:
    """Tells `say` how far all `count` scenes of a stage are, and in words what is done of this one."""

    def progress(phase: str, share: float) -> None:
        begin, end = _SHARES[phase]
        past = (number + begin + share * (end - begin)) / count
        say(past, f"{stage}: {number} of {count} ({name}: {phase} {share:.0%})")

    return progress
