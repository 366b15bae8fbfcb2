"""What STAC and OData have in common: the question, the product that an answer describes, pages that are followed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from shapely.errors import ShapelyError
from shapely.geometry import shape

from cloudjob.copernicus.session import Endpoints, Session, get_json, host_of
from cloudjob.errors import ConfigError, InterruptedJob, ItemError
from cloudjob.footprints import split
from cloudjob.names import ProductName

Ring = list[tuple[float, float]]  # closed, of (longitude, latitude) in degrees
_ODD = (KeyError, TypeError, ValueError, AttributeError, ConfigError, ShapelyError)  # where the shape is another


@dataclass(frozen=True)
class Scene:
    """A product as a catalogue describes it; percentages are 0..100, None if the catalogue does not give them."""

    product: str  # without .SAFE
    id: str  # UUID, which the download needs
    datetime: str  # 2020-07-05T10:15:59.024Z
    tile: str
    relative_orbit: int
    baseline: str
    satellite: str
    cloud_cover: float  # of the valid pixels, thin cirrus included
    snow_cover: float | None
    sun_elevation: float | None  # degrees
    no_data: float | None
    footprint: dict  # GeoJSON geometry of the pixels with data, cut at 180 degrees
    size: int | None  # bytes of the whole product
    online: bool
    checksums: dict[str, dict] = field(default_factory=dict)  # path below the SAFE -> {"size", "multihash"}
    s3: str = ""  # its place in the S3 storage, /eodata/...; "" where the catalogue does not tell


@dataclass(frozen=True)
class Odd:
    """A row that is no scene: its name, and what is wrong with it."""

    name: str
    reason: str


def lack(row: Mapping[str, Any]) -> tuple:
    """What sorts the fields of scenes of one product: first what can be had, has less no data, covers more."""
    had, ground, no_data = row.get("online", True), row.get("footprint"), row.get("no_data")
    area = shape(ground).area if ground else 0.0
    return not had or "left_out" in row, 100.0 if no_data is None else no_data, -area, row["id"]


Rows = dict[str, Scene | Odd]  # by the catalogue's own key: each row once, on however many pages it comes


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked for: from `start` to before `end`, within a range of cloud cover in percent, that touches `ring`
    and lies on one of the `tiles` (anywhere without the one or the other)."""

    start: datetime
    end: datetime
    cloud: tuple[float, float]
    ring: Ring | None = None
    tiles: tuple[str, ...] = ()

    def halves(self) -> tuple[Self, Self]:
        """The same for the first and for the second half of the time."""
        middle = self.start + (self.end - self.start) / 2
        middle = middle.replace(microsecond=middle.microsecond // 1000 * 1000)  # what `iso` writes
        return replace(self, end=middle), replace(self, start=middle)

    def __str__(self) -> str:
        return f"{iso(self.start)} to {iso(self.end)}"


@dataclass(frozen=True)
class Asker:
    """Who asks both catalogues: rows to a page at most, who hears how far it is, and whether to stop."""

    session: Session
    endpoints: Endpoints
    page_size: int
    progress: Callable[[str], None] = lambda line: None
    stopped: Callable[[], bool] = lambda: False

    def get(self, request: dict, *, holding: str = "") -> dict:
        """The answer to a request ({"method", "url", "json"}); one without the key `holding` is asked for again."""
        if self.stopped():
            raise InterruptedJob("search: stopped; run the same command again")
        return get_json(self.session, holding=holding, **request)

    def follow(
        self,
        first: dict,
        *,
        rows: str,
        parse: Callable[[dict], Scene],
        key: str,
        following: Callable[[dict, dict], dict | None],
    ) -> Rows:
        """The rows of all pages, by their `key`. The last page has no next link, or nothing that is new. ItemError
        where a link leads elsewhere than to the two catalogues."""
        known_hosts = [_origin(url) for url in (self.endpoints.stac, self.endpoints.catalogue)]
        found: Rows = {}
        request: dict | None = first
        while request:
            page = self.get(request, holding=rows)
            known, url = len(found), request["url"]
            host = host_of(url)
            try:
                for row in page[rows]:
                    name, scene = _read(row, parse, key)
                    if isinstance(scene, Scene) or name not in found:
                        found[name] = scene
                request = following(page, request) if len(found) > known else None
                if request:
                    request["url"] = urljoin(url, request["url"])
            except _ODD as error:
                raise other_shape(host, repr(error)) from None
            if request and (other := _origin(request["url"])) not in known_hosts:
                raise ItemError(f"{host}: the next page is on another host, {other[0]}://{other[1]}; not followed")
            self.progress(f"{len(found)} products from {host}")
        return found


def other_shape(host: str, what: str) -> ItemError:
    """The error of an answer that nobody can read: then the service has changed."""
    return ItemError(f"{host}: an answer of another shape than documented: {what}")


def given(row: dict, key: str, *kinds: type) -> Any:
    """The value of a key that no product can do without, of one of these types."""
    if not isinstance(value := row[key], kinds):
        raise ValueError(f"{key} is {json.dumps(value)[:60]}")
    return value


def number(row: dict, key: str) -> Any:
    """The number under a key, None where there is none."""
    value = row.get(key)
    return value if isinstance(value, int | float) else None


def footprint(row: dict, key: str) -> dict:
    """The GeoJSON polygon, or polygons, under a key, cut at 180 degrees."""
    geometry = given(row, key, dict)
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"{key} is a {geometry['type']}")
    shape(geometry)
    return split(geometry)


def from_name(product: str) -> dict:
    """The fields of a scene that its name tells."""
    name = ProductName.parse(product)
    return {"product": name.name} | {
        field: getattr(name, field) for field in ("satellite", "baseline", "relative_orbit", "tile")
    }


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds: the catalogues write three or six decimals, which do not sort as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read(row: Any, parse: Callable[[dict], Scene], key: str) -> tuple[str, Scene | Odd]:
    texts = [row[each] for each in (key, "Name", "id") if isinstance(row, dict) and isinstance(row.get(each), str)]
    own = texts[0] if texts else json.dumps(row)[:60]
    try:
        return own, parse(row)
    except _ODD as error:
        return own, Odd((texts or [own])[-1].removesuffix(".SAFE"), f"{type(error).__name__}: {error}")


def _origin(url: str) -> tuple[str, str]:
    """Scheme and host: what is sent by https does not go on by http."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
