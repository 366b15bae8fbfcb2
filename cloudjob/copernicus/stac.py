"""Search by STAC: POST /search of stac.dataspace.copernicus.eu, and what its items tell of a product.

STAC API 1.0, Item Search, with its extensions Query, Fields and Sort.
"""

import json
import re
from datetime import datetime, timedelta

from cloudjob.copernicus.scenes import Asker, Question, Rows, Scene, footprint, from_name, given, iso, number

_PRODUCT_ID = re.compile(r"Products\(([0-9a-f-]{36})\)")
_CHECKED: tuple[str, ...] = (
    "B04_10m",
    "B03_10m",
    "B02_10m",
    "B08_10m",
    "B04_60m",
    "B03_60m",
    "B02_60m",
    "B11_60m",
    "B11_20m",
)
_CHECKED += ("SCL_20m", "safe_manifest", "product_metadata", "granule_metadata")
_PATH, _SIZE, _CHECKSUM = _CHECKED_WITH = ("file:local_path", "file:size", "file:checksum")
_FIELDS = ["id", "geometry"]
_FIELDS += [f"properties.{name}" for name in ("datetime", "eo:cloud_cover", "eo:snow_cover", "view:sun_elevation")]
_FIELDS += [
    "properties.statistics",
    "assets.Product.href",
    "assets.Product.file:size",
    "assets.safe_manifest.href",
    "assets.safe_manifest.alternate",
]
_FIELDS += [f"assets.{asset}.{name}" for asset in _CHECKED for name in _CHECKED_WITH]


def rows(asker: Asker, question: Question) -> Rows:
    """The items of all pages, by their id. A next link is followed as it is given."""
    query: dict = {"eo:cloud_cover": {"gte": question.cloud[0], "lte": question.cloud[1]}}
    if question.tiles:
        query["grid:code"] = {"in": [f"MGRS-{tile}" for tile in question.tiles]}
    body = {
        "collections": ["sentinel-2-l2a"],
        "datetime": f"{iso(question.start)}/{iso(question.end - timedelta(milliseconds=1))}",  # both ends included
        "query": query,
        "fields": {"include": _FIELDS},  # a third of the bytes; a service may send the others too
        "sortby": [{"field": name, "direction": "asc"} for name in ("datetime", "id")],
        "limit": min(asker.page_size, 100),  # the Data Space's default is 12, its highest is not documented
    }
    if question.ring:
        body["intersects"] = {"type": "Polygon", "coordinates": [[list(point) for point in question.ring]]}
    first = {"method": "POST", "url": f"{asker.endpoints.stac}/search", "json": body}
    return asker.follow(first, rows="features", parse=_scene, key="id", following=_following)


def _following(page: dict, request: dict) -> dict | None:
    link = next((link for link in page.get("links") or [] if link.get("rel") == "next"), None)
    if link is None:
        return None
    body = link.get("body") or {}
    if link.get("merge"):
        body = request.get("json", {}) | body
    return {"method": link.get("method", "GET"), "url": link["href"], **({"json": body} if body else {})}


def _scene(item: dict) -> Scene:
    properties = item["properties"]
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset, dict)}
    match = _PRODUCT_ID.search(json.dumps(assets))
    if match is None:
        raise ValueError("no asset has the address of the product")
    prefix = f"{item['id']}.SAFE/"
    return Scene(
        **from_name(item["id"]),
        id=match[1],
        datetime=iso(datetime.fromisoformat(properties["datetime"])),
        cloud_cover=given(properties, "eo:cloud_cover", int, float),
        snow_cover=number(properties, "eo:snow_cover"),
        sun_elevation=number(properties, "view:sun_elevation"),
        no_data=number(properties.get("statistics") or {}, "nodata"),
        footprint=footprint(item, "geometry"),
        size=number(assets.get("Product", {}), "file:size") or None,
        online=True,  # STAC does not say: `odata.offline` does
        checksums={
            asset[_PATH].removeprefix(prefix): {
                "size": asset.get(_SIZE) or None,
                "multihash": asset.get(_CHECKSUM) or "",
            }
            for asset in (assets[key] for key in _CHECKED if key in assets)
            if asset.get(_PATH) and (asset.get(_SIZE) or asset.get(_CHECKSUM))  # one of them is better than none
        },
        s3=_s3(assets.get("safe_manifest", {}).get("href")),
    )


def _s3(manifest: object) -> str:
    """The place of a product, from the address of its manifest: s3://eodata/...SAFE/manifest.safe."""
    if not isinstance(manifest, str) or not manifest.startswith("s3://"):
        return ""
    return manifest.removeprefix("s3:/").rpartition("/")[0]
