"""Search of the Copernicus Data Space for Sentinel-2 Level-2A products: all that OData counts, each of them once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from cloudjob.copernicus import odata, stac
from cloudjob.copernicus.scenes import Asker, Odd, Question, Ring, Rows, Scene, lack, other_shape
from cloudjob.copernicus.session import Endpoints, Session, host_of
from cloudjob.errors import ItemError

_PAGE = 1000  # rows: as many as OData gives at once
_MOST = 9000  # rows of one question: beyond 10000, OData leaves the next link out without a word
_SHORTEST = timedelta(seconds=1)
_TILES = 10  # of one question: an address of more than 8000 characters is not safe
_HALVINGS = 3  # of a question whose pages lose rows: fewer pages lose fewer


def search(
    session: Session,
    endpoints: Endpoints,
    *,
    catalogue: Literal["stac", "odata"],
    polygon: Ring | None,
    tiles: Sequence[str] = (),
    start: datetime,
    end: datetime,
    cloud: tuple[float, float],
    page_size: int = _PAGE,
    said: Callable[[str], None] = lambda line: None,
    progress: Callable[[str], None] = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Scene]:
    """All products from `start` to before `end` that touch `polygon`, a closed ring of (longitude, latitude), and lie
    on one of the `tiles`; anywhere without the one or the other.

    `cloud` is the range of cloud cover in percent. Sorted by (datetime, product), each product once, offline ones too.
    OData counts them, whichever catalogue describes them, and describes what STAC lacks; by itself it knows no snow,
    sun, share of no data and checksums. A row that cannot be read is left out, and `said` by its name.

    ItemError if OData gives fewer different rows than it counts, if none of several rows can be read, or if an answer
    is malformed; InterruptedJob when `stopped`.
    """
    asker = Asker(session, endpoints, page_size, progress, stopped)
    found: Rows = {}
    for first in range(0, max(len(tiles), 1), _TILES):
        some = tuple(tiles[first : first + _TILES])
        question = Question(start=start, end=end, cloud=cloud, ring=polygon, tiles=some)
        for part, count in _parts(asker, question):
            found |= _by_odata(asker, part, count) if catalogue == "odata" else _by_stac(asker, part, count, said)
    return _readable(found.values(), host_of(endpoints.catalogue if catalogue == "odata" else endpoints.stac), said)


search_stac, search_odata = (partial(search, catalogue=name) for name in ("stac", "odata"))


def distinct(scenes: Iterable[Scene]) -> list[Scene]:
    """Each product once, by (datetime, product): of equal names what is online, has less no data, covers more."""
    found: dict[str, Scene] = {}
    for scene in scenes:
        found[scene.product] = min(scene, found.get(scene.product, scene), key=lambda each: lack(vars(each)))
    return sorted(found.values(), key=lambda scene: (scene.datetime, scene.product))


def _parts(asker: Asker, question: Question) -> Iterator[tuple[Question, int]]:
    """The question, or halves of it, each with its number of rows, which OData can still list."""
    count = odata.count(asker, question)
    if count <= _MOST:
        yield question, count
    elif question.end - question.start > _SHORTEST:
        for half in question.halves():
            yield from _parts(asker, half)
    else:
        raise ItemError(f"{_host(asker)}: {count} products of {question}: make the area smaller")


def _by_odata(asker: Asker, question: Question, count: int, halvings: int = _HALVINGS) -> Rows:
    found = odata.rows(asker, question)
    if len(found) >= count:
        return found
    if not halvings:
        raise ItemError(
            f"{_host(asker)}: has {count} products of {question}, gave {len(found)} different ones; run the same "
            "command again, or make the dates or the area smaller"
        )
    halves = [part for half in question.halves() for part in _parts(asker, half)]
    return {key: row for part, own in halves for key, row in _by_odata(asker, part, own, halvings - 1).items()}


def _by_stac(asker: Asker, question: Question, count: int, said: Callable[[str], None]) -> Rows:
    found = stac.rows(asker, question)
    offline = set()
    if len(found) < count:
        known = {_name(row) for row in found.values()}
        listed = _by_odata(asker, question, count)
        lacking = {key: row for key, row in listed.items() if _name(row) not in known}
        if lacking:
            said(f"{host_of(asker.endpoints.stac)}: lacks {len(lacking)} of {count} products; OData describes them")
        offline = {row.id for row in listed.values() if isinstance(row, Scene) and not row.online}
        found |= lacking
    elif found:
        offline = odata.offline(asker, question)
    return {
        key: replace(row, online=row.id not in offline) if isinstance(row, Scene) else row for key, row in found.items()
    }


def _readable(rows: Iterable[Scene | Odd], host: str, said: Callable[[str], None]) -> list[Scene]:
    """The scenes; says which rows are none. ItemError where all of several are none: then the service has changed."""
    rows = list(rows)
    scenes = [row for row in rows if isinstance(row, Scene)]
    odd = [row for row in rows if isinstance(row, Odd)]
    if len(odd) > 1 and not scenes:
        raise other_shape(host, f"{odd[0].name}: {odd[0].reason}")
    for row in odd:
        said(f"{host}: {row.name} is left out, its row cannot be read ({row.reason})")
    return distinct(scenes)


def _name(row: Scene | Odd) -> str:
    return row.product if isinstance(row, Scene) else row.name


def _host(asker: Asker) -> str:
    return host_of(asker.endpoints.catalogue)
