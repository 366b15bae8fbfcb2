"""Both catalogues of the Data Space over a list of products, for a scripted server: a request of another form than the
documented one gets HTTP 400."""

import json
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlencode, urlsplit

from scripted_server import Answer, Server

_ATTRIBUTE = r"Attributes/OData\.CSC\.(\w+)Attribute/any\(att:att/Name eq '\w+' and att/OData\.CSC\.\1Attribute/Value "
_TEST = _ATTRIBUTE + r"(eq '\w+'|[lg]e \d+\.\d{4})\)"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
_POINT = r"-?\d+\.\d+ -?\d+\.\d+"
_CLAUSE = rf"{_TEST}|Collection/Name eq 'SENTINEL-2'|Online eq false|ContentDate/Start (ge|lt) {_TIME}"
_CLAUSE += rf"|OData\.CSC\.Intersects\(area=geography'SRID=4326;POLYGON\(\(({_POINT})(,{_POINT}){{3,}}\)\)'\)"
ODATA = {  # https://documentation.dataspace.copernicus.eu/APIs/OData.html
    "$orderby": r"ContentDate/Start asc",
    "$top": r"\d{1,3}|1000",
    "$skip": r"\d{1,4}|10000",
    "$count": r"true",
    "$expand": r"Attributes",
}
_SEARCH = {"collections", "datetime", "query", "fields", "sortby", "limit", "intersects", "token"}  # STAC API 1.0


def odata_mistakes(query: dict[str, str]) -> list[str]:
    """What is not documented of a request for products, by its query."""
    wrong = [f"{key}={value}" for key, value in query.items() if not re.fullmatch(ODATA.get(key, ".*"), value)]
    wrong += [key for key in query if key not in (*ODATA, "$filter")]
    text = re.sub(r"\(((?:Attributes.*?\)(?: or )?)+)\)(?= and )", lambda match: match[1], query["$filter"])
    wrong += [
        clause
        for clause in re.split(r" (?:and|or) (?=Attr|Coll|Online|Content|OData\.CSC\.Int)", text)
        if not re.fullmatch(_CLAUSE, clause)
    ]
    return wrong + [key for key in ("$orderby", "$top", "$filter") if key not in query]


def stac_mistakes(body: dict, item: dict | None = None) -> list[str]:
    """What is not documented of the body of a search. `item` is a recorded one: its members can be asked for."""
    wrong = [key for key in body if key not in _SEARCH]
    wrong += [] if body["collections"] == ["sentinel-2-l2a"] and 1 <= body["limit"] <= 100 else ["limit"]
    wrong += [] if re.fullmatch(f"{_TIME}/{_TIME}", body["datetime"]) else ["datetime"]
    wrong += [name for tests in body["query"].values() for name in tests if name not in ("gte", "lte", "in", "eq")]
    for path in [*body["fields"]["include"], *(f"properties.{name}" for name in body["query"])] if item else []:
        found = item
        for name in path.split("."):
            found = (found or {}).get(name)
        wrong += [path] if found is None else []
    return wrong


class DataSpace:
    """STAC and OData over one list of products (dictionaries: id, name, moment, cloud, online), on a scripted server.

    `lacking` names products that STAC does not have, `repeats` changes what OData lists, `recount` what it counts, and
    `damage` a row of either.
    """

    def __init__(self, server: Server, products: list[dict], item: dict | None = None):
        self.server, self.products, self.item = server, products, item
        self.lacking: set[str] = set()
        self.repeats: Callable[[list[dict], int], list[dict]] = lambda rows, number: rows
        self.recount: Callable[[int], int] = lambda number: number
        self.damage: Callable[[dict, str], None] = lambda row, name: None
        server.scripts["/v1/search"] = [self._stac]
        server.scripts["/odata/v1/Products"] = [self._odata]

    def asked(self, *, count: bool = False, offline: bool = False) -> list[dict]:
        """The queries of OData's requests: for counts, for offline products or for the rows."""
        found = [
            {key: values[0] for key, values in parse_qs(urlsplit(path).query).items()}
            for _, path, *_ in self.server.requests
            if path.startswith("/odata")
        ]
        return [
            each for each in found if ("$count" in each) == count and ("Online eq false" in each["$filter"]) == offline
        ]

    def _rows(self, products: list[dict], form: Callable[[dict], dict]) -> list[dict]:
        rows = [form(each) for each in products]
        for row, each in zip(rows, products, strict=True):
            self.damage(row, each["name"])
        return rows

    def _within(self, start: str, end: str) -> list[dict]:
        return sorted((p for p in self.products if start <= p["moment"] < end), key=lambda p: (p["moment"], p["id"]))

    def _odata(self, request) -> Answer:
        query = {key: values[0] for key, values in parse_qs(urlsplit(request[1]).query).items()}
        if wrong := odata_mistakes(query):
            return Answer.json({"detail": {"message": f"not documented: {wrong}"}}, 400)
        start, end = re.findall(r"ContentDate/Start \w\w (\S+)", query["$filter"])[-2:]
        rows = self._within(start, end)
        if "Online eq false" in query["$filter"]:
            rows = [row for row in rows if not row.get("online", True)]
        top, skip = int(query["$top"]), int(query.get("$skip", 0))
        page = {"value": self._rows(self.repeats(rows, len(self.server.requests))[skip : skip + top], odata_row)}
        if "$count" in query:
            page["@odata.count"] = self.recount(len(rows))
        if len(page["value"]) == top and skip + 2 * top <= 10000:
            page["@odata.nextLink"] = f"{self.server.url}/odata/v1/Products?{urlencode(query | {'$skip': skip + top})}"
        return Answer.json(page)

    def _stac(self, request) -> Answer:
        body = json.loads(request[3])
        if wrong := stac_mistakes(body, self.item):
            return Answer.json({"code": "ValidationError", "description": f"not documented: {wrong}"}, 400)
        start, end = body["datetime"].split("/")
        rows = [row for row in self._within(start, end[:-1] + "9Z") if row["name"] not in self.lacking]
        first = int(body.get("token", "next:0").removeprefix("next:"))
        last = first + body["limit"]
        link = {"rel": "next", "method": "POST", "href": f"{self.server.url}/v1/search", "merge": True}
        links = [link | {"body": {"token": f"next:{last}"}}] if last < len(rows) else []
        return Answer.json({"features": self._rows(rows[first:last], stac_item), "links": links})


def name(day: int, tile: str = "32TNT", baseline: str = "0500") -> str:
    return f"S2B_MSIL2A_202007{day:02d}T101559_N{baseline}_R065_T{tile}_20230530T175912"


def product(day: int, **facts) -> dict:
    moment = f"2020-07-{day:02d}T10:15:59.024Z"
    return {"id": f"{day:08d}-af5f-46de-868e-fe5a8faa2d9c", "name": name(day), "moment": moment, "cloud": 12.5} | facts


def square(size: float = 1.0) -> dict:
    ring = [[9, 47], [9 + size, 47], [9 + size, 47 + size], [9, 47 + size], [9, 47]]
    return {"type": "Polygon", "coordinates": [ring]}


def stac_item(each: dict) -> dict:
    return {
        "id": each["name"],
        "geometry": each.get("footprint", square()),
        "properties": {
            "datetime": each["moment"],
            "eo:cloud_cover": each["cloud"],
            "statistics": {"nodata": each.get("no_data")},
        },
        "assets": {"Product": {"href": f"https://x/Products({each['id']})/$value"}},
    }


def odata_row(each: dict) -> dict:
    return {
        "Id": each["id"],
        "Name": f"{each['name']}.SAFE",
        "ContentLength": 0,
        "Online": each.get("online", True),
        "ContentDate": {"Start": each["moment"].replace("Z", "000Z")},
        "GeoFootprint": each.get("footprint", square()),
        "Attributes": [{"Name": "cloudCover", "Value": each["cloud"]}],
    }
