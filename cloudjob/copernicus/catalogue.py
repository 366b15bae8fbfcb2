"""Search of the Copernicus Data Space for Sentinel-2 Level-2A products, by STAC or by OData."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import requests

from cloudjob.copernicus.session import Endpoints, get_json, host_of
from cloudjob.errors import ConfigError, ItemError
from cloudjob.footprints import parts_of, split
from cloudjob.names import ProductName

_PRODUCT_ID = re.compile(r"Products\(([0-9a-f-]{36})\)")
_CHECKED_ASSETS = ("B04_10m", "B03_10m", "B02_10m", "B08_10m", "SCL_20m")
_CHECKED_WITH = ("file:local_path", "file:size", "file:checksum")
_ODD = (KeyError, TypeError, ValueError, AttributeError, ConfigError)  # what reading raises where the shape is another


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


def search_stac(
    session: requests.Session,
    endpoints: Endpoints,
    *,
    polygon: list[tuple[float, float]],
    start: datetime,
    end: datetime,
    cloud: tuple[float, float],
    page_size: int = 100,
    said: Callable[[str], None] = lambda line: None,
) -> list[Scene]:
    """All products that intersect `polygon`, a closed ring of (longitude, latitude), from `start` to before `end`. A
    ring across 180 degrees goes on beyond it, as 179, 181.

    `cloud` is the range of cloud cover in percent. Sorted by (datetime, product), each product once. A row that cannot
    be read is left out, and `said` by its name; ItemError if none can be, if a response is malformed, or if the service
    returns fewer products than it announces.
    """
    parts = parts_of(polygon)
    body = {
        "collections": ["sentinel-2-l2a"],
        "intersects": {"type": "Polygon", "coordinates": parts}
        if len(parts) == 1
        else {"type": "MultiPolygon", "coordinates": [[part] for part in parts]},
        "datetime": f"{_iso(start)}/{_iso(end - timedelta(milliseconds=1))}",  # STAC includes both ends
        "query": {"eo:cloud_cover": {"gte": cloud[0], "lte": cloud[1]}},
        "sortby": [{"field": "datetime", "direction": "asc"}],
        "limit": page_size,
    }

    def following(page: dict, request: dict) -> dict | None:
        link = next((link for link in page.get("links") or [] if link.get("rel") == "next"), None)
        if link is None:
            return None
        body = {**request.get("json", {}), **link["body"]} if link.get("merge") else link.get("body")
        return {"method": link.get("method", "GET"), "url": link["href"], **({"json": body} if body else {})}

    first = {"method": "POST", "url": f"{endpoints.stac}/search", "json": body}
    found = _collect(session, first, rows="features", count="numberMatched", parse=_from_stac, following=following)
    return _readable(found, host_of(endpoints.stac), said)


def search_odata(
    session: requests.Session,
    endpoints: Endpoints,
    *,
    polygon: list[tuple[float, float]],
    start: datetime,
    end: datetime,
    cloud: tuple[float, float],
    page_size: int = 100,
    said: Callable[[str], None] = lambda line: None,
) -> list[Scene]:
    """As `search_stac`, from OData: without snow, sun, no-data share and checksums; at most 10000 products."""
    rings = [",".join(f"{lon} {lat}" for lon, lat in part) for part in parts_of(polygon)]
    touching = [f"OData.CSC.Intersects(area=geography'SRID=4326;POLYGON(({ring}))')" for ring in rings]
    attribute = "Attributes/OData.CSC.{0}Attribute/any(att:att/Name eq '{1}' and att/OData.CSC.{0}Attribute/Value {2})"
    conditions = [
        "Collection/Name eq 'SENTINEL-2'",
        attribute.format("String", "productType", "eq 'S2MSI2A'"),
        attribute.format("Double", "cloudCover", f"ge {cloud[0]:.4f}"),
        attribute.format("Double", "cloudCover", f"le {cloud[1]:.4f}"),
        touching[0] if len(touching) == 1 else f"({' or '.join(touching)})",  # it takes no MULTIPOLYGON
        f"ContentDate/Start ge {_iso(start)}",
        f"ContentDate/Start lt {_iso(end)}",
    ]
    query = {
        "$filter": " and ".join(conditions),
        "$orderby": "ContentDate/Start asc",  # without it, pagination loses and repeats rows
        "$top": str(page_size),
        "$count": "true",
        "$expand": "Attributes",
    }

    def following(page: dict, request: dict) -> dict | None:
        link = page.get("@odata.nextLink")  # silently omitted beyond the 10000th row
        return {"method": "GET", "url": link} if link else None

    encoded = urlencode(query, quote_via=quote, safe="$'()/:,")
    first = {"method": "GET", "url": f"{endpoints.catalogue}/Products?{encoded}"}
    found = _collect(session, first, rows="value", count="@odata.count", parse=_from_odata, following=following)
    return _readable(found, host_of(endpoints.catalogue), said)


def digest_of(multihash: str) -> tuple[str, str]:
    """(algorithm, hexadecimal digest) of a STAC `file:checksum`.

    The length of the digest decides, since the Data Space labels the SHA3-256 of XML files with the code of MD5.
    """
    for digits, algorithm in ((64, "SHA3-256"), (32, "MD5")):
        if re.fullmatch(rf"(16|d501){digits // 2:02x}[0-9a-f]{{{digits}}}", multihash):
            return algorithm, multihash[-digits:]
    raise ItemError(f"checksum of an unknown kind: {multihash!r}")


def _collect(
    session: requests.Session,
    first: dict,
    *,
    rows: str,
    count: str,
    parse: Callable[[dict], Scene],
    following: Callable[[dict, dict], dict | None],
) -> dict[str, Scene | str]:
    """The scene of each row, or what is wrong with the row, by the row's own name.

    Follows the pagination to the end: the last page has no next link, or no rows.
    """
    request: dict | None = first
    host = host_of(first["url"])
    scenes: dict[str, Scene | str] = {}
    received, expected = 0, 0
    while request:
        if host_of(request["url"]) != host:
            raise ItemError(f"{host}: the next page is on another host, {host_of(request['url'])}; not followed")
        page = get_json(session, **request)
        try:
            found = [_read(row, parse) for row in page[rows]]
            expected = max(expected, page.get(count) or 0)
            request = following(page, request) if found else None
        except _ODD as error:
            raise _other_shape(host, repr(error)) from None
        known = len(scenes)
        scenes.update((name, row) for name, row in found if isinstance(row, Scene) or name not in scenes)
        if request and len(scenes) == known:
            raise ItemError(f"{host}: the pages repeat themselves after {received} products")
        received += len(found)
    if received < expected:
        raise ItemError(f"{host}: has {expected} products, gave {received}: make the dates or the area smaller")
    return scenes


def _read(row: Any, parse: Callable[[dict], Scene]) -> tuple[str, Scene | str]:
    try:
        scene = parse(row)
        return scene.product, scene
    except _ODD as error:
        named = [row[key] for key in ("id", "Name") if isinstance(row, dict) and isinstance(row.get(key), str)]
        return (named[0].removesuffix(".SAFE") if named else json.dumps(row)[:60]), f"{type(error).__name__}: {error}"


def _readable(found: dict[str, Scene | str], host: str, said: Callable[[str], None]) -> list[Scene]:
    """The scenes by time; says which rows are none. ItemError where all are none: then the service has changed."""
    scenes = [scene for scene in found.values() if isinstance(scene, Scene)]
    odd = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if odd and not scenes:
        raise _other_shape(host, next(f"{name}: {reason}" for name, reason in odd.items()))
    for name, reason in odd.items():
        said(f"{host}: {name} is left out, its row cannot be read ({reason})")
    return sorted(scenes, key=lambda scene: (scene.datetime, scene.product))


def _other_shape(host: str, what: str) -> ItemError:
    return ItemError(f"{host}: an answer of another shape than documented: {what}")


def _from_stac(item: dict) -> Scene:
    properties = item["properties"]
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset, dict)}
    match = _PRODUCT_ID.search(json.dumps(assets))
    if match is None:
        raise ValueError("no asset has the address of the product")
    prefix = f"{item['id']}.SAFE/"
    return Scene(
        **_from_name(item["id"]),
        id=match[1],
        datetime=_iso(datetime.fromisoformat(properties["datetime"])),
        cloud_cover=_given(properties, "eo:cloud_cover"),
        snow_cover=properties.get("eo:snow_cover"),
        sun_elevation=properties.get("view:sun_elevation"),
        no_data=(properties.get("statistics") or {}).get("nodata"),
        footprint=split(_given(item, "geometry")),
        size=assets.get("Product", {}).get("file:size"),
        online=True,  # the STAC catalogue does not say
        checksums={
            asset["file:local_path"].removeprefix(prefix): {
                "size": asset["file:size"],
                "multihash": asset["file:checksum"],
            }
            for asset in (assets[key] for key in _CHECKED_ASSETS if key in assets)
            if all(asset.get(name) for name in _CHECKED_WITH)
        },
    )


def _from_odata(row: dict) -> Scene:
    attributes = {each.get("Name"): each.get("Value") for each in row["Attributes"]}
    return Scene(
        **_from_name(row["Name"]),
        id=_given(row, "Id"),
        datetime=_iso(datetime.fromisoformat(row["ContentDate"]["Start"])),
        cloud_cover=_given(attributes, "cloudCover"),
        snow_cover=None,
        sun_elevation=None,
        no_data=None,
        footprint=split(_given(row, "GeoFootprint")),
        size=row.get("ContentLength") or None,  # 0 = not known
        online=row.get("Online", True),
    )


def _given(row: dict, key: str) -> Any:
    """The value of a key that no product can do without."""
    if row[key] is None:
        raise ValueError(f"{key} is null")
    return row[key]


def _from_name(product: str) -> dict:
    name = ProductName.parse(product)
    return {"product": name.name} | {
        field: getattr(name, field) for field in ("satellite", "baseline", "relative_orbit", "tile")
    }


def _iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds: the catalogues write three or six decimals, which do not sort as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
