"""search: asks the catalogue, one query per role and month, and writes scenes.jsonl."""

from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cloudjob.config.models import Config
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import file_sha256, write_jsonl
from cloudjob.names import ProductName
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Summary

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from cloudjob.copernicus.scenes import Ring

STAGE = "search"
OFFLINE = "offline: the Data Space does not hand it out"  # why a row of scenes.jsonl is left out
GONE = "no longer in the catalogue"
HALF = "the smaller half of one overpass; the larger is"
_FETCHING = ("preview", "download")  # the stages that find out that a product is gone
_NAMED = 10  # products that are named of a list


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per role (clear, cloudy) and calendar month of its query."""
    wanted = config.search
    where: dict = {"polygon": [list(point) for point in wanted.polygon]} if wanted.polygon else {}
    where |= {"tiles": sorted(set(wanted.tiles))} if wanted.tiles else {}
    inputs = {}
    if wanted.area:
        if not wanted.area.is_file():
            raise ConfigError(f"search.area: {wanted.area} is no file")
        inputs["area"] = file_sha256(wanted.area)
    if config.archive:
        inputs["archive"] = config.archive.model_dump_json(exclude={"path"})
    found = []
    for role in ("clear", "cloudy"):
        query = getattr(wanted, role)
        for first, last in query.months():
            part = {"role": role, "first": str(first), "last": str(last), "cloud": list(query.cloud)}
            part |= where | {"catalogue": wanted.catalogue}
            found.append(Item(STAGE, f"{role}-{first:%Y-%m}", part, dict(inputs)))
    return found


def run(config: Config, folder: RunFolder) -> Summary:
    """Asks the queries and joins their answers. ConfigError where a role has no product at all.

    A query that has answered with a product that is gone is asked once more: it may be served again. One that is asked
    again (`--force`) says what is new and what is gone.
    """
    every = items(config, folder)
    ask = _asker(config, folder)

    def make(item: Item) -> records.Made:
        rows = ask(item)
        return [], rows + _missing(folder, item, rows)

    summary = records.work(folder, STAGE, every, make)
    found = records.settled(folder, every)
    if not found:
        folder.scenes.unlink(missing_ok=True)
        return summary
    for item in found:
        if gone := _gone(config, folder, item):
            served = gone if item.name in summary.done else _look_again(folder, item, gone, ask)
            _reopen(folder, gone & served)
    gone = {name for item in found for name in _gone(config, folder, item)} | set(config.search.exclude)
    rows = _merge(found, records.results(folder, found), gone)
    if not summary.failed:
        _check_roles(config, rows)
    write_jsonl(folder.scenes, rows)
    _tell(config, folder, summary, rows, gone)
    return summary


def _asker(config: Config, folder: RunFolder) -> Callable[[Item], list[dict]]:
    """A function that asks the query of an item: the rows of its products."""
    from cloudjob.copernicus import catalogue
    from cloudjob.copernicus.session import Endpoints, open_session

    rings = _rings(config, folder)
    search = catalogue.search_stac if config.search.catalogue == "stac" else catalogue.search_odata
    endpoints, waiting = Endpoints(**config.copernicus.urls()), config.copernicus.waiting()
    names = [item.name for item in items(config, folder)]

    def ask(item: Item) -> list[dict]:
        start, end = (datetime.fromisoformat(item.config[key]).replace(tzinfo=UTC) for key in ("first", "last"))
        session, scenes = open_session(endpoints, patience=waiting, stopped=folder.stop_requested, said=folder.say), []
        done = names.index(item.name) / len(names)
        for ring in rings:
            scenes += search(
                session,
                endpoints,
                polygon=ring,
                tiles=item.config.get("tiles", ()),
                start=start,
                end=end + timedelta(days=1),
                cloud=tuple(item.config["cloud"]),
                said=folder.say,
                progress=lambda line: folder.progress(done, f"search {item.name}: {line}"),
                stopped=folder.stop_requested,
            )
        found = catalogue.distinct(scenes)
        return [asdict(scene) | ({} if scene.online else {"left_out": OFFLINE}) for scene in found]

    return ask


def _rings(config: Config, folder: RunFolder) -> "list[Ring] | list[None]":
    """The rings to ask for one by one, and says where they lie; [None] where tiles alone are asked for. ConfigError
    where there is no such area, or no such tile."""
    from cloudjob.copernicus import area
    from cloudjob.sentinel2.geometry import tile_corner

    for tile in config.search.tiles:
        try:
            tile_corner(tile)
        except ConfigError as error:
            raise ConfigError(f"search.tiles: {error}") from None
    if config.search.polygon:
        key, outlines = "search.polygon", [config.search.polygon]
    elif config.search.area:
        key, outlines = "search.area", area.read_geojson(config.search.area, "search.area")
    else:
        return [None]
    rings = area.rings(outlines, key, folder.say)
    folder.say(f"{key}: {area.describe(outlines)}")
    return rings


def _check_roles(config: Config, rows: list[dict]) -> None:
    """ConfigError where a role has no product that can be had. A network from elsewhere restores without clear ones."""
    alone = config.infer.unpaired and config.infer.checkpoint
    for role in ("cloudy",) if alone else ("clear", "cloudy"):
        own = [row for row in rows if role in row["roles"]]
        if all(row.get("left_out") for row in own):
            query = getattr(config.search, role)
            but = f" ({len(own)} that are left out)" if own else ""
            raise ConfigError(
                f"search.{role}: no product{but} of {query.start} to {query.end} with {query.cloud[0]:g} to "
                f"{query.cloud[1]:g} % cloud touches the area; widen the dates, the cloud range or the area. "
                "Is each of its points (longitude, latitude)?"
            )


def _tell(config: Config, folder: RunFolder, summary: Summary, rows: list[dict], gone: set[str]) -> None:
    """How many products there are, and what is special about some."""
    names = {row["product"] for row in rows}
    reasons = {row["product"]: row["left_out"] for row in rows if row.get("left_out")}
    summary.note = f"{len(names)} products on {len({row['tile'] for row in rows})} tiles"
    left_out = names & gone | reasons.keys()
    offline = [name for name, reason in reasons.items() if reason == OFFLINE]
    summary.note += f", {len(left_out)} of them left out" if left_out else ""
    summary.note += f" ({len(offline)} offline)" if offline else ""
    for reason in (OFFLINE, GONE):
        if found := [name for name in reasons if reasons[name] == reason]:
            folder.say(f"search: left out, {reason}: {_named(found)}")
    for name, reason in reasons.items():
        if reason.startswith(HALF):
            folder.say(f"search: {name} is left out: {reason}")
    for name in sorted(set(config.search.exclude) - names):
        folder.say(f"search.exclude: {name} is not among the products that were found")


def _named(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _missing(folder: RunFolder, item: Item, rows: list[dict]) -> list[dict]:
    """The products of an earlier answer to the same query that this one lacks, marked as left out. Says what is new and
    what is gone."""
    before = records.record(folder, STAGE, item.name) or {}
    if (before.get("status"), before.get("config"), before.get("inputs")) != ("done", item.config, item.inputs):
        return []
    known = {row["product"]: row for row in before["result"]}
    names = {row["product"] for row in rows}
    there = {name for name, row in known.items() if row.get("left_out") != GONE}
    changes = {"new": names - there, "gone": there - names}
    told = [f"{len(found)} {what}: {_named(found)}" for what, found in changes.items() if found]
    folder.say(f"search {item.name}: {'; '.join(told) or 'nothing new, nothing gone'}")
    return [row | {"left_out": GONE} for name, row in known.items() if name not in names]


def _gone(config: Config, folder: RunFolder, item: Item) -> set[str]:
    """The products of a query's answer that later turned out to be gone, but for excluded ones and smaller halves."""
    (found,) = records.results(folder, [item])
    names = {row["product"] for row in found or []} - set(config.search.exclude)
    return {name for name in names if any(_is_gone(folder, stage, name) for stage in _FETCHING)}


def _is_gone(folder: RunFolder, stage: str, name: str) -> bool:
    found = records.record(folder, stage, name) or {}
    named = str(found.get("config", {}).get("left_out"))
    return records.left_out(folder, stage, name) and not named.startswith(HALF)


def _look_again(folder: RunFolder, item: Item, gone: set[str], ask: Callable[[Item], list[dict]]) -> set[str]:
    """Asks a query again for the acquisitions of products that are gone. Takes up what the catalogue has of them, under
    the same name or reprocessed, and nothing else; returns their names. Without an answer all stays as it is."""
    try:
        answer = ask(item)
    except ItemError as error:
        folder.say(f"search: of {len(gone)} products that are left out, nothing new: {error}")
        return set()
    wanted = {ProductName.parse(name).granule for name in gone}
    served = {
        row["product"]: row
        for row in answer
        if ProductName.parse(row["product"]).granule in wanted and not row.get("left_out")
    }
    if served:
        (before,) = records.results(folder, [item])
        records.replace_result(folder, item, list(({row["product"]: row for row in before} | served).values()))
    return set(served)


def _reopen(folder: RunFolder, products: set[str]) -> None:
    """Has the next stages look anew at products that were gone."""
    for name in products:
        for stage in _FETCHING:
            if records.left_out(folder, stage, name):
                records.path(folder, stage, name).unlink()


def _merge(every: list[Item], results: list, gone: Collection[str] = ()) -> list[dict]:
    """One row per product, with its roles. Of one datatake and tile the newest processing baseline is kept, ESA's
    before anybody else's, and what lies on other ground: what two stations received comes in two halves, of which the
    smaller is left out. Where one is gone or left out, the newest that is not is kept beside it."""
    from cloudjob.copernicus.scenes import lack

    rows: dict[str, dict] = {}
    for item, scenes in zip(every, results, strict=True):
        for scene in scenes:
            name, role = scene["product"], item.config["role"]
            best = min(scene, rows.get(name, scene), key=lack)
            rows[name] = best | {"roles": sorted({*rows.get(name, {}).get("roles", ()), role})}
    gone = {*gone, *(name for name, row in rows.items() if row.get("left_out"))}
    kept: dict[str, list[dict]] = {}
    for row in sorted(rows.values(), key=_newness, reverse=True):
        same = kept.setdefault(ProductName.parse(row["product"]).granule, [])
        if _on_other_ground(row, [other for other in same if other["product"] not in gone]):
            same.append(row)
    for same in kept.values():
        halves = [row for row in same if row["product"] not in gone]
        if len(halves) > 1:
            largest = max(halves, key=lambda row: _ground(row).area)
            for row in halves:
                row |= {} if row is largest else {"left_out": f"{HALF} {largest['product']}"}
    return sorted((row for same in kept.values() for row in same), key=lambda row: row["product"])


def _newness(row: dict) -> tuple[bool, str, int, str]:
    """What sorts copies of a product. A baseline of 99.xx tells nothing of its age: somebody's own Sen2Cor made it. Of
    one baseline, that with less no data, in tenths, comes first: the other may be the smaller part of a datatake."""
    fullness = -round((row.get("no_data") or 0) / 10)
    return not row["baseline"].startswith("99."), row["baseline"], fullness, row["product"]


def _on_other_ground(row: dict, others: list[dict]) -> bool:
    """Whether the others have less than half of the ground of a product; False where a footprint is not known."""
    from shapely import union_all

    if not others:
        return True
    if not all(each.get("footprint") for each in (row, *others)):
        return False
    own, *rest = map(_ground, (row, *others))
    return own.intersection(union_all(rest)).area < own.area / 2


def _ground(row: dict) -> "BaseGeometry":
    from shapely import make_valid
    from shapely.geometry import shape

    from cloudjob.footprints import split

    return make_valid(shape(split(row["footprint"])))
