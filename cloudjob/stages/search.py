"""search: asks the catalogue, one query per role and month, and writes scenes.jsonl."""

from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from cloudjob.config.models import Config
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import write_jsonl
from cloudjob.names import ProductName
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Summary

STAGE = "search"
_FETCHING = ("preview", "download")  # the stages that find out that a product is gone


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per role (clear, cloudy) and calendar month of its query."""
    found = []
    for role in ("clear", "cloudy"):
        query = getattr(config.search, role)
        for first, last in query.months():
            part = {"role": role, "first": str(first), "last": str(last), "cloud": list(query.cloud)}
            part |= {
                "polygon": [list(point) for point in config.search.polygon],
                "catalogue": config.search.catalogue,
            }
            inputs = {}
            if config.archive:
                inputs["archive"] = config.archive.model_dump_json(exclude={"path"})
            found.append(Item(STAGE, f"{role}-{first:%Y-%m}", part, inputs))
    return found


def run(config: Config, folder: RunFolder) -> Summary:
    """Asks the queries and joins their answers. ConfigError where a role has no product at all.

    A query that has answered with a product that is gone is asked once more: it may be served again.
    """
    from cloudjob.copernicus import catalogue
    from cloudjob.copernicus.session import Endpoints, open_session

    _check_polygon(config)
    endpoints = Endpoints(**config.copernicus.urls())
    search = catalogue.search_stac if config.search.catalogue == "stac" else catalogue.search_odata

    def ask(item: Item) -> list[dict]:
        start, end = (datetime.fromisoformat(item.config[key]).replace(tzinfo=UTC) for key in ("first", "last"))
        scenes = search(
            open_session(),
            endpoints,
            polygon=config.search.polygon,
            start=start,
            end=end + timedelta(days=1),
            cloud=tuple(item.config["cloud"]),
            said=folder.say,
        )
        return [asdict(scene) for scene in scenes]

    every = items(config, folder)
    summary = records.work(folder, STAGE, every, lambda item: ([], ask(item)))
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
    for role in ("clear", "cloudy"):
        if not summary.failed and not any(role in row["roles"] for row in rows):
            query = getattr(config.search, role)
            raise ConfigError(
                f"search.{role}: no product of {query.start} to {query.end} with {query.cloud[0]:g} to "
                f"{query.cloud[1]:g} % cloud touches the polygon; widen the dates, the cloud range or the area"
            )
    write_jsonl(folder.scenes, rows)
    names = {row["product"] for row in rows}
    summary.note = f"{len(names)} products on {len({row['tile'] for row in rows})} tiles"
    summary.note += f", {len(names & gone)} of them left out" if names & gone else ""
    for name in sorted(set(config.search.exclude) - names):
        folder.say(f"search.exclude: {name} is not among the products that were found")
    return summary


def _gone(config: Config, folder: RunFolder, item: Item) -> set[str]:
    """The products of a query's answer that later turned out to be gone, but for excluded ones."""
    (found,) = records.results(folder, [item])
    names = {row["product"] for row in found or []} - set(config.search.exclude)
    return {name for name in names if any(records.left_out(folder, stage, name) for stage in _FETCHING)}


def _look_again(folder: RunFolder, item: Item, gone: set[str], ask: Callable[[Item], list[dict]]) -> set[str]:
    """Asks a query again for the acquisitions of products that are gone. Takes up what the catalogue has of them, under
    the same name or reprocessed, and nothing else; returns their names. Without an answer all stays as it is."""
    try:
        answer = ask(item)
    except ItemError as error:
        folder.say(f"search: of {len(gone)} products that are left out, nothing new: {error}")
        return set()
    wanted = {ProductName.parse(name).granule for name in gone}
    served = {row["product"]: row for row in answer if ProductName.parse(row["product"]).granule in wanted}
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


def _check_polygon(config: Config) -> None:
    from shapely.geometry import Polygon
    from shapely.validation import explain_validity

    if not (polygon := Polygon(config.search.polygon)).is_valid:
        raise ConfigError(f"search.polygon: {explain_validity(polygon)}")


def _merge(every: list[Item], results: list, gone: Collection[str] = ()) -> list[dict]:
    """One row per product, with its roles. Of one datatake and tile the newest processing baseline is kept, ESA's
    before anybody else's, and what lies on other ground: what two stations received comes in two halves. Where one is
    gone, the newest that is not is kept beside it."""
    rows: dict[str, dict] = {}
    for item, scenes in zip(every, results, strict=True):
        for scene in scenes:
            row = rows.setdefault(scene["product"], {**scene, "roles": []})
            row["roles"] = sorted({*row["roles"], item.config["role"]})
    kept: dict[str, list[dict]] = {}
    for row in sorted(rows.values(), key=_newness, reverse=True):
        same = kept.setdefault(ProductName.parse(row["product"]).granule, [])
        if _on_other_ground(row, [other for other in same if other["product"] not in gone]):
            same.append(row)
    return sorted((row for same in kept.values() for row in same), key=lambda row: row["product"])


def _newness(row: dict) -> tuple[bool, str, int, str]:
    """What sorts copies of a product. A baseline of 99.xx tells nothing of its age: somebody's own Sen2Cor made it. Of
    one baseline, that with less no data, in tenths, comes first: the other may be the smaller part of a datatake."""
    fullness = -round((row.get("no_data") or 0) / 10)
    return not row["baseline"].startswith("99."), row["baseline"], fullness, row["product"]


def _on_other_ground(row: dict, others: list[dict]) -> bool:
    """Whether the others have less than half of the ground of a product; False where a footprint is not known."""
    from shapely import make_valid, union_all
    from shapely.geometry import shape

    from cloudjob.footprints import split

    if not others:
        return True
    if not all(each.get("footprint") for each in (row, *others)):
        return False
    own, *rest = (make_valid(shape(split(each["footprint"]))) for each in (row, *others))
    return own.intersection(union_all(rest)).area < own.area / 2
