"""The ranks that restore scenes together: rank 0 leads, and each restores its share of a scene's tiles.

MPI carries the names of working folders and the ranks' answers, never pixels: those lie in the folders.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cloudjob.errors import CloudjobError, DiskFullError, InterruptedJob, ItemError
from cloudjob.hpc.mpi import Communicator

if TYPE_CHECKING:  # torch, which nobody waits for where there is nothing to do
    from numpy.typing import NDArray

    from cloudjob.restoration.network import Model

T = TypeVar("T")
_KINDS = {kind.__name__: kind for kind in (InterruptedJob, DiskFullError, ItemError)}  # what a rank may answer with


@dataclass(frozen=True)
class Crew:
    """This process among its `ranks`. `open_model` gives the network of a rank, not before there is work for it; tiles
    of `size` pixels overlap by `overlap`, and have so many `members`."""

    ranks: Communicator
    open_model: "Callable[[int], Model]"
    size: int
    overlap: int
    members: int
    stopped: Callable[[], bool] = lambda: False

    @cached_property
    def model(self) -> "Model":
        return self.open_model(self.ranks.rank)

    def run(self, lead: Callable[[], T]) -> T | None:
        """What `lead`, which calls `restore`, returns on rank 0; the others help until it ends, and get None."""
        if self.ranks.rank:
            while (work := self.ranks.bcast(None)) is not None:
                self.ranks.gather(self._share(Path(work)))
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

    def restore(self, name: str, work: Path) -> "tuple[NDArray, NDArray, NDArray | None]":
        """On rank 0: the scene whose conditions are saved in the folder `work`, as `scene.put_together` gives it. What
        goes wrong on a rank is raised."""
        from cloudjob.restoration import scene
        from cloudjob.restoration.conditions import SceneConditions

        self.ranks.bcast(str(work))
        for rank, answer in enumerate(self.ranks.gather(self._share(work)) or []):
            if answer is not None:
                kind, message = answer
                raise _KINDS[kind](f"{name}, rank {rank}: {message}")
        factors = self.model.factors if self.members > 1 else None
        conditions = SceneConditions.load(work)
        return scene.put_together(conditions, work, size=self.size, overlap=self.overlap, factors=factors)

    def _share(self, work: Path) -> tuple[str, str] | None:
        """Restores this rank's tiles. It returns an error instead of raising it, which would deadlock the others."""
        from cloudjob.restoration import scene
        from cloudjob.restoration.conditions import SceneConditions

        try:
            scene.restore_tiles(
                SceneConditions.load(work),
                self.model.restorer,
                work,
                size=self.size,
                overlap=self.overlap,
                members=self.members,
                rank=self.ranks.rank,
                ranks=self.ranks.size,
                stopped=self.stopped,
            )
        except (CloudjobError, OSError) as error:
            kind = type(error).__name__
            return (kind if kind in _KINDS else ItemError.__name__), str(error)
        return None
