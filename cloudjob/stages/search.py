"""search: asks the catalogue, one query per role and month, and writes scenes.jsonl."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from cloudjob.config.models import Config
from cloudjob.errors import ConfigError
from cloudjob.files import write_jsonl
from cloudjob.names import ProductName
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

STAGE = "search"


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
    """Asks all queries and joins their answers. ConfigError where a role has no product at all."""
    from cloudjob.copernicus import catalogue
    from cloudjob.copernicus.session import Endpoints, open_session

    _check_polygon(config)
    endpoints = Endpoints(**config.copernicus.urls())
    search = catalogue.search_stac if config.search.catalogue == "stac" else catalogue.search_odata

    def make(item: Item) -> Made:
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
        return [], [asdict(scene) for scene in scenes]

    every = items(config, folder)
    summary = records.work(folder, STAGE, every, make)
    if summary.failed or any(records.why(folder, item) for item in every):
        return summary
    rows = _merge(every, records.results(folder, every))
    for role in ("clear", "cloudy"):
        if not any(role in row["roles"] for row in rows):
            query = getattr(config.search, role)
            raise ConfigError(
                f"search.{role}: no product of {query.start} to {query.end} with {query.cloud[0]:g} to "
                f"{query.cloud[1]:g} % cloud touches the polygon; widen the dates, the cloud range or the area"
            )
    write_jsonl(folder.scenes, rows)
    summary.note = f"{len(rows)} products on {len({row['tile'] for row in rows})} tiles"
    return summary


def _check_polygon(config: Config) -> None:
    from shapely.geometry import Polygon
    from shapely.validation import explain_validity

    if not (polygon := Polygon(config.search.polygon)).is_valid:
        raise ConfigError(f"search.polygon: {explain_validity(polygon)}")


def _merge(every: list[Item], results: list) -> list[dict]:
    """One row per product, with its roles. Of one datatake and tile the newest processing baseline is kept, ESA's
    before anybody else's, and what lies on other ground: what two stations received comes in two halves."""
    rows: dict[str, dict] = {}
    for item, scenes in zip(every, results, strict=True):
        for scene in scenes:
            row = rows.setdefault(scene["product"], {**scene, "roles": []})
            row["roles"] = sorted({*row["roles"], item.config["role"]})
    kept: dict[str, list[dict]] = {}
    for row in sorted(rows.values(), key=_newness, reverse=True):
        same = kept.setdefault(ProductName.parse(row["product"]).granule, [])
        if not same or _on_other_ground(row, same):
            same.append(row)
    return sorted((row for same in kept.values() for row in same), key=lambda row: row["product"])


def _newness(row: dict) -> tuple[bool, str, str]:
    """What sorts copies of a product. A baseline of 99.xx tells nothing of its age: somebody's own Sen2Cor made it."""
    return not row["baseline"].startswith("99."), row["baseline"], row["product"]


def _on_other_ground(row: dict, others: list[dict]) -> bool:
    """Whether the others have less than half of the ground of a product; False where a footprint is not known."""
    from shapely import make_valid, union_all
    from shapely.geometry import shape

    if not all(each.get("footprint") for each in (row, *others)):
        return False
    own, *rest = (make_valid(shape(each["footprint"])) for each in (row, *others))
    return own.intersection(union_all(rest)).area < own.area / 2
