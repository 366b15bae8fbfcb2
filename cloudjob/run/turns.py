"""Whose turn it is: the items of a stage in their order, each under its lease; those that others hold come last."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from cloudjob.errors import InterruptedJob
from cloudjob.leases import Lease
from cloudjob.run.folder import RunFolder


class Named(Protocol):
    """An item of a stage."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


def turns(
    folder: RunFolder,
    stage: str,
    items: Sequence[Item],
    done: Callable[[Item], bool],
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Item, Lease | None]]:
    """Each item once: with its lease, which is ours, where it is to be made; with None where it is done, by whomever.

    Waits at the end for items that others hold, and calls `meanwhile` every few seconds then. InterruptedJob on a wish
    to stop.
    """
    later: dict[Lease, Item] = {}
    for item in items:
        if folder.stop_requested():
            raise InterruptedJob(f"{stage}: stopped before {item.name}; run the same command again")
        if done(item):
            yield item, None
            continue
        lease = folder.lease(stage, item.name)
        if lease.take():
            yield _turn(item, lease, done)
        else:
            later[lease] = item
    share = 1 - len(later) / max(len(items), 1)
    for lease in folder.wait(later, share=share, meanwhile=meanwhile):
        yield _turn(later[lease], lease, done)


def _turn(item: Item, lease: Lease, done: Callable[[Item], bool]) -> tuple[Item, Lease | None]:
    """Whoever held the lease before may have made the item."""
    if not done(item):
        return item, lease
    lease.release()
    return item, None
