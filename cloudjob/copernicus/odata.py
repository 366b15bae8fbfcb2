"""Search by OData: GET /Products of catalogue.dataspace.copernicus.eu, its exact counts, and what its rows tell.

https://documentation.dataspace.copernicus.eu/APIs/OData.html
"""

from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from cloudjob.copernicus.scenes import (
    Asker,
    Question,
    Rows,
    Scene,
    footprint,
    from_name,
    given,
    iso,
    number,
    other_shape,
)
from cloudjob.copernicus.session import host_of

_OFFLINE = "Online eq false"


def rows(asker: Asker, question: Question, *conditions: str) -> Rows:
    """The rows of all pages, by their Id. The next link is silently missing beyond the 10000th row."""

    def following(page: dict, request: dict) -> dict | None:
        link = page.get("@odata.nextLink")
        return {"method": "GET", "url": link} if link else None

    first = _request(asker, question, conditions, {"$top": str(asker.page_size), "$expand": "Attributes"})
    return asker.follow(first, rows="value", parse=_scene, key="Id", following=following)


def count(asker: Asker, question: Question) -> int:
    """How many rows there are, as the catalogue counts them itself."""
    page = asker.get(_request(asker, question, (), {"$top": "1", "$count": "true"}))
    if not isinstance(number := page.get("@odata.count"), int):
        raise other_shape(host_of(asker.endpoints.catalogue), f"@odata.count is {number!r}")
    return number


def offline(asker: Asker, question: Question) -> set[str]:
    """The UUIDs of the products that nobody can fetch at once."""
    found = rows(asker, question, _OFFLINE).values()
    return {scene.id for scene in found if isinstance(scene, Scene) and not scene.online}


def _request(asker: Asker, question: Question, conditions: tuple[str, ...], options: dict[str, str]) -> dict:
    query = {
        "$filter": " and ".join((*_conditions(question), *conditions)),
        "$orderby": "ContentDate/Start asc",  # without it, pagination loses and repeats rows
        **options,
    }
    encoded = urlencode(query, quote_via=quote, safe="$'()/:,")
    return {"method": "GET", "url": f"{asker.endpoints.catalogue}/Products?{encoded}"}


def _conditions(question: Question) -> list[str]:
    low, high = question.cloud
    conditions = [
        "Collection/Name eq 'SENTINEL-2'",
        _attribute("String", "productType", "eq 'S2MSI2A'"),
        _attribute("Double", "cloudCover", f"ge {low:.4f}"),
        _attribute("Double", "cloudCover", f"le {high:.4f}"),
    ]
    if question.tiles:  # a tileId has no leading T
        tiles = " or ".join(_attribute("String", "tileId", f"eq '{tile}'") for tile in question.tiles)
        conditions.append(f"({tiles})" if len(question.tiles) > 1 else tiles)
    if question.ring:
        ring = ",".join(f"{lon} {lat}" for lon, lat in question.ring)
        conditions.append(f"OData.CSC.Intersects(area=geography'SRID=4326;POLYGON(({ring}))')")
    return [*conditions, f"ContentDate/Start ge {iso(question.start)}", f"ContentDate/Start lt {iso(question.end)}"]


def _attribute(kind: str, name: str, test: str) -> str:
    own = f"OData.CSC.{kind}Attribute"
    return f"Attributes/{own}/any(att:att/Name eq '{name}' and att/{own}/Value {test})"


def _scene(row: dict) -> Scene:
    attributes: dict[Any, Any] = {each.get("Name"): each.get("Value") for each in row["Attributes"]}
    return Scene(
        **from_name(row["Name"]),
        id=given(row, "Id", str),
        datetime=iso(datetime.fromisoformat(row["ContentDate"]["Start"])),
        cloud_cover=given(attributes, "cloudCover", int, float),
        snow_cover=None,
        sun_elevation=None,
        no_data=None,
        footprint=footprint(row, "GeoFootprint"),
        size=number(row, "ContentLength") or None,  # 0 = not known
        online=row.get("Online", True) is not False,
        s3=str(row.get("S3Path") or ""),
    )
