"""Serves an archive over HTTP as the Copernicus Data Space does: tokens, STAC and OData search, Nodes with Range.

Shapes and error bodies follow recorded answers of stac., catalogue., download. and identity.dataspace.copernicus.eu.
"""

import base64
import contextlib
import hashlib
import json
import logging
import operator
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote_plus, unquote, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

import shapely
from defusedxml.ElementTree import parse
from shapely.geometry import Polygon, box, mapping, shape

from cloudjob.sentinel2.product import Product, read_manifest

COLLECTION = "sentinel-2-l2a"
TOKEN_SECONDS = 600
REFRESH_SECONDS = 3600
MAX_TRANSFERS = 4  # of one account at a time
_PIECE = 65536
_LOG = logging.getLogger(__name__)
_BANDS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
_STATISTICS = {
    "nodata": "NODATA_PIXEL_PERCENTAGE",
    "saturated_defective": "SATURATED_DEFECTIVE_PIXEL_PERCENTAGE",
    "dark_area": "DARK_FEATURES_PERCENTAGE",
    "cloud_shadow": "CLOUD_SHADOW_PERCENTAGE",
    "vegetation": "VEGETATION_PERCENTAGE",
    "not_vegetated": "NOT_VEGETATED_PERCENTAGE",
    "water": "WATER_PERCENTAGE",
    "unclassified": "UNCLASSIFIED_PERCENTAGE",
    "medium_proba_clouds": "MEDIUM_PROBA_CLOUDS_PERCENTAGE",
    "high_proba_clouds": "HIGH_PROBA_CLOUDS_PERCENTAGE",
    "thin_cirrus": "THIN_CIRRUS_PERCENTAGE",
}
_OPERATORS = {  # of OData, of STAC's query extension, of CQL2
    name: compare
    for names, compare in (
        ("eq =", operator.eq),
        ("ne neq <>", operator.ne),
        ("lt <", operator.lt),
        ("le lte <=", operator.le),
        ("gt >", operator.gt),
        ("ge gte >=", operator.ge),
    )
    for name in names.split()
}


class ArchiveServer:
    """`with ArchiveServer(folder) as server:` answers at `server.url` until the block ends.

    The SAFE folders are read once, at the start. Any user name and password that are not empty get a token.
    """

    def __init__(self, archive: Path, *, port: int = 0, host: str = "127.0.0.1"):
        entries = [_Entry.read(folder) for folder in sorted(Path(archive).glob("S2*.SAFE"))]
        self._server = _Server((host, port), _Handler)
        self._server.entries = sorted(entries, key=lambda entry: (entry.sensing, entry.name))
        self._server.by_id = {entry.id: entry for entry in entries}
        name = socket.gethostname() if host in ("", "0.0.0.0") else host
        self.url = f"http://{name}:{self._server.server_address[1]}"

    def __enter__(self) -> "ArchiveServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Answer until interrupted."""
        with self._server:
            self._server.serve_forever()


class _Refusal(Exception):
    """An HTTP status other than 200, with the JSON body that goes with it."""

    def __init__(self, status: int, body: dict, headers: dict | None = None):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


def _zipper(status: int, code: str, message: str) -> _Refusal:
    return _Refusal(status, {"code": code, "message": message})


def _invalid(message: str) -> _Refusal:
    return _Refusal(400, {"detail": {"message": message}})


@dataclass(frozen=True)
class _Entry:
    """One product of the archive, with what the catalogues say about it."""

    product: Product
    outline: Polygon  # longitude, latitude
    sun_azimuth: float
    digests: dict[str, tuple[str, str]]  # path below the folder -> algorithm and digest, mostly the manifest's

    @classmethod
    def read(cls, folder: Path) -> "_Entry":
        product = Product.open(folder)
        manifest = read_manifest(folder / "manifest.safe")
        positions = _texts(folder / "MTD_MSIL2A.xml", "EXT_POS_LIST")[0].split()
        tile = next(entry.path for entry in manifest if entry.path.endswith("MTD_TL.xml"))
        extra = ("manifest.safe", f"{product.name.name}-ql.jpg")
        return cls(
            product=product,
            outline=Polygon(zip(map(float, positions[1::2]), map(float, positions[0::2]), strict=True)),
            sun_azimuth=float(_texts(folder / tile, "AZIMUTH_ANGLE")[0]),
            digests={entry.path: (entry.algorithm, entry.digest) for entry in manifest}
            | {file: ("MD5", hashlib.md5((folder / file).read_bytes()).hexdigest()) for file in extra},
        )

    @property
    def name(self) -> str:
        return self.product.name.name

    @property
    def sensing(self) -> datetime:
        return self.product.sensing_time

    @cached_property
    def id(self) -> str:
        return str(uuid5(NAMESPACE_URL, f"{self.name}.SAFE"))

    @cached_property
    def made(self) -> str:
        return f"{datetime.strptime(self.product.name.discriminator, '%Y%m%dT%H%M%S'):%Y-%m-%dT%H:%M:%S}.000000Z"

    @cached_property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.product.folder.rglob("*") if path.is_file())

    @property
    def s3_path(self) -> str:
        return f"eodata/Sentinel-2/MSI/L2A/{self.sensing:%Y/%m/%d}/{self.name}.SAFE"

    @cached_property
    def orbit(self) -> int:
        return int(re.search(r"_A(\d{6})_", self.product.files["SCL_20m"])[1])

    @cached_property
    def properties(self) -> dict:
        """Of the STAC item; nothing is known of the viewing angles."""
        name, percentages = self.product.name, self.product.percentages
        datatake = f"G{name.satellite}_{self.sensing:%Y%m%dT%H%M%S}_{self.orbit:06d}_N{name.baseline}"
        datastrip = f"{name.satellite}_OPER_MSI_L2A_DS_2APS_{name.discriminator}_S{self.sensing:%Y%m%dT%H%M%S}"
        return {
            "gsd": 10,
            "created": self.made,
            "updated": self.made,
            "published": self.made,
            "datetime": self.timestamp(3),
            "start_datetime": self.timestamp(3),
            "end_datetime": self.timestamp(3),
            "platform": f"sentinel-{name.satellite[1:].lower()}",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "grid:code": f"MGRS-{name.tile}",
            "statistics": {key: percentages[element] for key, element in _STATISTICS.items()},
            "eo:cloud_cover": round(percentages["Cloud_Coverage_Assessment"], 2),
            "eo:snow_cover": round(percentages["SNOW_ICE_PERCENTAGE"], 2),
            "auth:schemes": {"s3": {"type": "s3"}, "oidc": {"type": "openIdConnect"}},
            "storage:schemes": {"cdse-s3": {"requester_pays": False}, "creodias-s3": {"requester_pays": True}},
            "product:type": "S2MSI2A",
            "product:timeliness": "PT24H",
            "product:timeliness_category": "NRT",
            "processing:level": "L2",
            "processing:version": self.product.baseline,
            "processing:datetime": self.made,
            "processing:facility": "ESA",
            "sat:orbit_state": "descending",
            "sat:absolute_orbit": self.orbit,
            "sat:relative_orbit": name.relative_orbit,
            "sat:platform_international_designator": {"A": "2015-028A", "B": "2017-013A"}.get(name.satellite[2]),
            "view:azimuth": None,
            "view:incidence_angle": None,
            "view:sun_azimuth": self.sun_azimuth,
            "view:sun_elevation": self.product.sun_elevation,
            "eopf:datatake_id": datatake,
            "eopf:datastrip_id": f"{datastrip}_N{name.baseline}",
            "eopf:instrument_mode": "INS-NOBS",
            "eopf:origin_datetime": self.made,
        }

    def timestamp(self, digits: int) -> str:
        return f"{self.sensing:%Y-%m-%dT%H:%M:%S.%f}"[: 20 + digits] + "Z"


def _texts(path: Path, name: str) -> list[str]:
    return [e.text.strip() for e in parse(path).iter() if e.tag.rpartition("}")[2] == name]


# --- STAC ---------------------------------------------------------------------------------------------------------


def _item(entry: _Entry, base: str) -> dict:
    """The STAC item of a product, with the members of the Data Space's own."""
    collection = f"{base}/v1/collections/{COLLECTION}"
    links = [
        {"rel": "collection", "type": "application/json", "href": collection},
        {"rel": "parent", "type": "application/json", "href": collection},
        {"rel": "root", "type": "application/json", "href": f"{base}/v1/"},
        {"rel": "self", "type": "application/geo+json", "href": f"{collection}/items/{entry.name}"},
    ]
    return {
        "id": entry.name,
        "bbox": [round(value, 6) for value in entry.outline.bounds],
        "type": "Feature",
        "links": links,
        "geometry": mapping(entry.outline),
        "collection": COLLECTION,
        "properties": entry.properties,
        "assets": _assets(entry, base),
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
            "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
            "https://stac-extensions.github.io/view/v1.0.0/schema.json",
            "https://stac-extensions.github.io/file/v2.1.0/schema.json",
            "https://stac-extensions.github.io/alternate-assets/v1.2.0/schema.json",
        ],
        "stac_version": "1.1.0",
    }


def _assets(entry: _Entry, base: str) -> dict:
    """As the Data Space does it: masks are no assets, and the XML files' digests carry MD5's code whatever they are."""
    product, assets = entry.product, {}
    for key, path in product.files.items():
        if key.startswith("MSK_"):
            continue
        metres = int(key[-3:-1])
        rows, columns = (-(-length * 10 // metres) for length in product.shape)
        left, top = product.transform.c, product.transform.f
        assets[key] = _asset(entry, base, path, "image/jp2", ["data"]) | {
            "gsd": metres,
            "nodata": 0,
            "data_type": "uint16" if key[0] == "B" else "uint8",
            "proj:code": product.crs,
            "proj:shape": [rows, columns],
            "proj:bbox": [left, top - metres * rows, left + metres * columns, top],
            "proj:transform": [float(metres), 0.0, left, 0.0, -float(metres), top],
        }
        if key[:3] in _BANDS:  # the offset is a constant there, true or not
            band = [{"name": key[:3], "eo:common_name": _BANDS[key[:3]]}]
            assets[key] |= {"bands": band, "raster:scale": 0.0001, "raster:offset": -0.1}
    tile = next(path for path in entry.digests if path.endswith("MTD_TL.xml"))
    for key, path in (("safe_manifest", "manifest.safe"), ("granule_metadata", tile)):
        assets[key] = _asset(entry, base, path, "application/xml", ["metadata"])
    assets["product_metadata"] = _asset(entry, base, "MTD_MSIL2A.xml", "application/xml", ["metadata"])
    assets["thumbnail"] = _asset(entry, base, f"{entry.name}-ql.jpg", "image/jpeg", ["thumbnail", "overview"])
    return assets


def _asset(entry: _Entry, base: str, path: str, media_type: str, roles: list[str]) -> dict:
    file = entry.product.folder / path
    algorithm, digest = entry.digests[path]
    code = "1620" if algorithm == "SHA3-256" and path.endswith(".jp2") else f"d501{len(digest) // 2:02x}"
    return {
        "href": f"s3://{entry.s3_path}/{path}",
        "type": media_type,
        "title": file.name,
        "roles": roles,
        "file:size": file.stat().st_size,
        "file:checksum": code + digest,
        "file:local_path": f"{entry.name}.SAFE/{path}",
        "alternate:name": "S3",
        "auth:refs": ["s3"],
        "storage:refs": ["cdse-s3", "creodias-s3"],
        "alternate": {
            "https": {
                "href": f"{base}{_node_path(entry, path)}/$value",
                "auth:refs": ["oidc"],
                "storage:refs": [],
                "alternate:name": "HTTPS",
            }
        },
    }


def _search(entries: list[_Entry], body: dict, base: str) -> dict:
    """POST /v1/search: a page of items, and the link to the next one."""
    limit = body.get("limit", 12)
    if not isinstance(limit, int) or not 1 <= limit <= 10_000:
        raise _invalid(f"limit = {limit!r}: expected 1 to 10000")
    query = {key: value for key, value in body.items() if key != "token"}
    stamp = hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:12]
    start = _page_start(body.get("token"), stamp)
    found = [entry for entry in entries if _matches(entry, body)]
    for rule in reversed(body.get("sortby") or [{"field": "datetime", "direction": "desc"}]):
        field = rule["field"].removeprefix("properties.")
        found.sort(key=lambda entry: _value(entry, field), reverse=rule.get("direction") == "desc")
    page = found[start : start + limit]
    search = f"{base}/v1/search"
    links = [
        {"rel": "root", "type": "application/json", "href": f"{base}/v1/"},
        {"rel": "self", "type": "application/json", "href": search},
    ]
    if start + limit < len(found):
        token = "next:" + base64.urlsafe_b64encode(f"{start + limit} {stamp}".encode()).decode()
        following = {"method": "POST", "href": search, "body": query | {"token": token}}
        links.insert(0, {"rel": "next", "type": "application/geo+json"} | following)
    items = [_item(entry, base) for entry in page]
    return {"type": "FeatureCollection", "links": links, "features": items, "numberReturned": len(page)}


def _page_start(token: str | None, stamp: str) -> int:
    if token is None:
        return 0
    try:
        start, found = base64.urlsafe_b64decode(token.removeprefix("next:")).decode().split()
        if found == stamp:
            return int(start)
    except ValueError:
        pass
    raise _invalid("the token belongs to another search")


def _matches(entry: _Entry, body: dict) -> bool:
    if COLLECTION not in body.get("collections", [COLLECTION]):
        return False
    if "ids" in body and entry.name not in body["ids"]:
        return False
    if "bbox" in body and not entry.outline.intersects(box(*body["bbox"])):
        return False
    if "intersects" in body and not entry.outline.intersects(shape(body["intersects"])):
        return False
    if "datetime" in body:
        start, _, end = body["datetime"].partition("/")
        end = end or start
        if start not in ("", "..") and entry.sensing < _instant(start):
            return False
        if end != ".." and entry.sensing > _instant(end):
            return False
    for field, rules in body.get("query", {}).items():
        if not all(_compare(_value(entry, field), name, value) for name, value in rules.items()):
            return False
    return "filter" not in body or bool(_cql(entry, body["filter"]))


def _value(entry: _Entry, field: str):
    """A property as searches see it; times as datetime."""
    if field in ("datetime", "start_datetime", "end_datetime"):
        return entry.sensing
    if field == "id":
        return entry.name
    if field not in entry.properties:
        raise _invalid(f"{field!r} is no queryable property")
    return entry.properties[field]


def _instant(text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(f"not a time: {text!r}") from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _compare(left, name: str, right) -> bool:
    if name == "in":
        return left in right
    if name not in _OPERATORS:
        raise _invalid(f"unknown operator {name!r}")
    if isinstance(left, datetime) and isinstance(right, str):
        right = _instant(right)
    return _OPERATORS[name](left, right)


def _cql(entry: _Entry, term):
    """Value of a CQL2-JSON expression (OGC 21-065, Basic CQL2 with between, in and s_intersects) for one product."""
    if not isinstance(term, dict):
        return term
    if "property" in term:
        return entry.outline if term["property"] == "geometry" else _value(entry, term["property"])
    if "timestamp" in term or "date" in term:
        return _instant(term.get("timestamp") or term["date"])
    if "coordinates" in term:
        return shape(term)
    name, args = term.get("op"), term.get("args", [])
    if name in ("and", "or"):
        return (all if name == "and" else any)(_cql(entry, arg) for arg in args)
    values = [_cql(entry, arg) for arg in args]
    if name == "not":
        return not values[0]
    if name == "s_intersects":
        return values[0].intersects(values[1])
    if name == "between":
        return _compare(values[0], ">=", values[1]) and _compare(values[0], "<=", values[2])
    return _compare(values[0], name, values[1])


# --- OData --------------------------------------------------------------------------------------------------------


def _products(entries: list[_Entry], options: dict[str, list[str]], base: str) -> dict:
    """GET /odata/v1/Products: a page of rows in the catalogue's shape."""
    top = _count(options, "$top", 20, 1000)
    skip = _count(options, "$skip", 0, 10_000)
    matches = _odata_filter(options.get("$filter", [""])[0])
    found = [entry for entry in entries if matches(entry)]
    _order(found, options.get("$orderby", ["ContentDate/Start asc"])[0])
    page = found[skip : skip + top]
    expand = ",".join(options.get("$expand", []))
    wanted = [name for name in ("Attributes", "Assets") if name in expand]
    context = "$metadata#Products" + (f"({','.join(f'{name}()' for name in wanted)})" if wanted else "")
    answer: dict = {"@odata.context": context}
    if options.get("$count") == ["true"]:
        answer["@odata.count"] = len(found)
    answer["value"] = [_row(entry, base, wanted) for entry in page]
    if 0 < top == len(page) and skip + 2 * top <= 10_000:  # left out, without a word, beyond 10,000
        following = {**options, "$top": [str(top)], "$skip": [str(skip + top)]}
        pairs = [f"{quote_plus(key)}={quote_plus(value)}" for key, values in following.items() for value in values]
        answer["@odata.nextLink"] = f"{base}/odata/v1/Products?{'&'.join(pairs)}"
    return answer


def _count(options: dict[str, list[str]], key: str, default: int, highest: int) -> int:
    text = options.get(key, [str(default)])[0]
    if not text.isdigit() or int(text) > highest:
        detail = {"loc": ["query", key], "msg": f"Input should be an integer from 0 to {highest}", "input": text}
        raise _Refusal(422, {"detail": [detail]})
    return int(text)


def _order(found: list[_Entry], text: str) -> None:
    match = re.fullmatch(r"(ContentDate/(?:Start|End)|PublicationDate|ModificationDate)(?: (asc|desc))?", text)
    if not match:
        raise _invalid(f"$orderby={text}: not sortable")
    by_date = match[1].startswith("ContentDate")
    found.sort(key=lambda entry: (entry.sensing if by_date else entry.made, entry.id), reverse=match[2] == "desc")


def _row(entry: _Entry, base: str, wanted: list[str]) -> dict:
    start = {"Start": entry.timestamp(6), "End": entry.timestamp(6)}
    row = {
        "@odata.mediaContentType": "application/octet-stream",
        "Id": entry.id,
        "Name": f"{entry.name}.SAFE",
        "ContentType": "application/octet-stream",
        "ContentLength": entry.size,
        "OriginDate": entry.made,
        "PublicationDate": entry.made,
        "ModificationDate": entry.made,
        "Online": True,
        "EvictionDate": "9999-12-31T23:59:59.999999Z",
        "S3Path": f"/{entry.s3_path}",
        "Checksum": [],
        "ContentDate": start,
        "Footprint": f"geography'SRID=4326;{entry.outline.wkt}'",
        "GeoFootprint": mapping(entry.outline),
    }
    if "Attributes" in wanted:
        row["Attributes"] = [
            {"@odata.type": f"#OData.CSC.{kind}Attribute", "Name": name, "Value": value, "ValueType": kind}
            for name, (kind, value) in _attributes(entry).items()
        ]
    if "Assets" in wanted:
        quicklook = str(uuid5(NAMESPACE_URL, f"{entry.name}-ql.jpg"))
        link = f"{base}/odata/v1/Assets({quicklook})/$value"
        asset = {"Type": "QUICKLOOK", "Id": quicklook, "DownloadLink": link, "S3Path": f"/{entry.s3_path}"}
        row["Assets"] = [asset]
    return row


def _attributes(entry: _Entry) -> dict[str, tuple[str, str | int | float]]:
    name = entry.product.name
    return {
        "origin": ("String", "ESA"),
        "tileId": ("String", name.tile),
        "cloudCover": ("Double", entry.product.percentages["Cloud_Coverage_Assessment"]),
        "datastripId": ("String", entry.properties["eopf:datastrip_id"]),
        "orbitNumber": ("Integer", entry.orbit),
        "processingDate": ("DateTimeOffset", entry.made),
        "productGroupId": ("String", entry.properties["eopf:datatake_id"]),
        "operationalMode": ("String", "INS-NOBS"),
        "processingLevel": ("String", "S2MSI2A"),
        "processorVersion": ("String", entry.product.baseline),
        "platformShortName": ("String", "SENTINEL-2"),
        "instrumentShortName": ("String", "MSI"),
        "relativeOrbitNumber": ("Integer", name.relative_orbit),
        "platformSerialIdentifier": ("String", name.satellite[2]),
        "productType": ("String", "S2MSI2A"),
        "beginningDateTime": ("DateTimeOffset", entry.timestamp(6)),
        "endingDateTime": ("DateTimeOffset", entry.timestamp(6)),
    }


def _odata_filter(text: str) -> Callable[[_Entry], bool]:
    """The $filter's predicate: and, or, not and parentheses over the clauses of `_clause`."""
    text = text.strip()
    if not text:
        return lambda entry: True
    for word, combine in (("or", any), ("and", all)):
        if len(parts := _split(text, word)) > 1:
            parts = [_odata_filter(part) for part in parts]
            return lambda entry, parts=parts, combine=combine: combine(part(entry) for part in parts)
    if text.startswith("not "):
        inner = _odata_filter(text[4:])
        return lambda entry: not inner(entry)
    if text.startswith("(") and text.endswith(")"):
        return _odata_filter(text[1:-1])
    return _clause(text)


def _split(text: str, word: str) -> list[str]:
    """The parts between the word where it stands outside quotes and parentheses; else the whole text alone."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, character in enumerate(text):
        quoted ^= character == "'"
        if not quoted:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0 and text.startswith(f" {word} ", position):
                parts.append(text[start:position])
                start = position + len(word) + 2
    return [*parts, text[start:]]


_ATTRIBUTE = re.compile(
    r"Attributes/OData\.CSC\.\w+Attribute/any\(\s*(\w+)\s*:\s*\1/Name eq '(\w+)' and "
    r"\1/OData\.CSC\.\w+Attribute/Value (\w\w) ([^)]+?)\s*\)"
)
_INTERSECTS = re.compile(r"OData\.CSC\.Intersects\(\s*area\s*=\s*geography'SRID=4326;(.+)'\s*\)")
_DATE = re.compile(r"(ContentDate/Start|ContentDate/End|PublicationDate|ModificationDate) (\w\w) (\S+)")
_TEXT = re.compile(r"(contains|startswith|endswith)\(Name,\s*'([^']*)'\)")
_EQUAL = re.compile(r"(Collection/Name|Name|Online) eq ('[^']*'|true|false)")


def _clause(text: str) -> Callable[[_Entry], bool]:
    if match := _ATTRIBUTE.fullmatch(text):
        name, sign, wanted = match[2], match[3], match[4].strip("'")
        return lambda entry: _compare_attribute(_attributes(entry).get(name), sign, wanted)
    if match := _INTERSECTS.fullmatch(text):
        try:
            area = shapely.from_wkt(match[1])
        except shapely.errors.GEOSException:
            raise _invalid(f"Invalid geometry: {match[1]}") from None
        return lambda entry: entry.outline.intersects(area)
    if match := _DATE.fullmatch(text):
        sign, instant, sensed = match[2], _instant(match[3]), match[1].startswith("ContentDate")
        return lambda entry: _compare(entry.sensing if sensed else _instant(entry.made), sign, instant)
    if match := _TEXT.fullmatch(text):
        test = {"contains": str.__contains__, "startswith": str.startswith, "endswith": str.endswith}[match[1]]
        return lambda entry: test(f"{entry.name}.SAFE", match[2])
    if match := _EQUAL.fullmatch(text):
        wanted = match[2].strip("'")
        return lambda entry: wanted == {"Name": f"{entry.name}.SAFE", "Online": "true"}.get(match[1], "SENTINEL-2")
    raise _invalid(f"Invalid field or clause in $filter: {text}")


def _compare_attribute(attribute: tuple | None, sign: str, wanted: str) -> bool:
    if attribute is None:
        return False
    kind, value = attribute
    if kind == "DateTimeOffset":
        return _compare(_instant(value), sign, wanted)
    try:
        return _compare(value, sign, {"String": str, "Double": float, "Integer": int}[kind](wanted))
    except ValueError:
        raise _invalid(f"Value {wanted} is not of type {kind}") from None


# --- Nodes --------------------------------------------------------------------------------------------------------


def _node_path(entry: _Entry, path: str) -> str:
    nodes = "".join(f"/Nodes({part})" for part in path.split("/") if part)
    return f"/odata/v1/Products({entry.id})/Nodes({entry.name}.SAFE){nodes}"


def _listing(entry: _Entry, paths: list[Path], base: str) -> dict:
    rows = []
    for path in paths:
        inside = path.relative_to(entry.product.folder).as_posix().removeprefix(".")
        children = len(list(path.iterdir())) if path.is_dir() else 0
        rows.append(
            {
                "Id": path.name,
                "Name": path.name,
                "ContentLength": 0 if path.is_dir() else path.stat().st_size,
                "ChildrenNumber": children,
                "Nodes": {"uri": f"{base}{_node_path(entry, inside)}/Nodes"},
            }
        )
    return {"result": rows}


# --- HTTP ---------------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args):
        super().__init__(*args)
        self.lock = threading.Lock()
        self.access: dict[str, tuple[str, float]] = {}  # token -> account, end of its life on the monotonic clock
        self.refresh: dict[str, tuple[str, float]] = {}
        self.transfers: Counter[str] = Counter()
        self.connections: set[socket.socket] = set()

    def get_request(self):
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Kept-alive connections end too, else their threads would go on answering."""
        super().server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        _LOG.debug("connection of %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes
    timeout = 120

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *args) -> None:
        _LOG.debug(*args)

    @property
    def base(self) -> str:
        """Links lead back the way the request came, whatever name the server has from there."""
        return f"http://{self.headers['Host']}"

    def _answer(self, respond: Callable[[], dict | None]) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)  # always, or the next request on this connection would start inside it
        try:
            answer = respond()
        except _Refusal as refusal:
            self._send_json(refusal.status, refusal.body, refusal.headers)
        except (KeyError, TypeError, AttributeError, ValueError, shapely.errors.ShapelyError) as error:
            self._send_json(400, {"detail": {"message": f"not understood: {error!r}"}})
        else:
            if answer is not None:
                self._send_json(200, answer)

    def _send_json(self, status: int, body: dict, headers: dict | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        geojson = body.get("type") in ("Feature", "FeatureCollection")
        self.send_header("Content-Type", "application/geo+json" if geojson else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def _post(self) -> dict:
        path = urlsplit(self.path).path.rstrip("/")
        if path == "/auth/realms/CDSE/protocol/openid-connect/token":
            return self._grant({key: values[0] for key, values in parse_qs(self.body.decode()).items()})
        if path == "/v1/search":
            return _search(self.server.entries, json.loads(self.body or b"{}"), self.base)
        raise _Refusal(404, {"detail": "Not Found"})

    def _get(self) -> dict | None:
        url = urlsplit(self.path)
        path = unquote(url.path).rstrip("/")
        if path == "/odata/v1/Products":
            options = parse_qs(url.query, keep_blank_values=True)
            return _products(self.server.entries, options, self.base)
        if path.startswith("/odata/v1/Products("):
            return self._node(path.removeprefix("/odata/v1/"))
        if path == "/v1":
            return self._catalogue()
        if path == f"/v1/collections/{COLLECTION}":
            return self._collection()
        if path.startswith(f"/v1/collections/{COLLECTION}/items/"):
            wanted = path.rpartition("/")[2]
            for entry in self.server.entries:
                if entry.name == wanted:
                    return _item(entry, self.base)
            raise _Refusal(404, {"code": "NotFoundError", "description": f"Item {wanted} does not exist."})
        raise _Refusal(404, {"detail": "Not Found"})

    def _catalogue(self) -> dict:
        root = f"{self.base}/v1"
        links = [
            {"rel": "self", "type": "application/json", "href": f"{root}/"},
            {"rel": "root", "type": "application/json", "href": f"{root}/"},
            {"rel": "data", "type": "application/json", "href": f"{root}/collections"},
            {"rel": "search", "type": "application/geo+json", "href": f"{root}/search", "method": "POST"},
        ]
        conforms = [
            "http://www.opengis.net/spec/cql2/1.0/conf/basic-cql2",
            "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
            "https://api.stacspec.org/v1.0.0/core",
            "https://api.stacspec.org/v1.0.0/item-search",
            "https://api.stacspec.org/v1.0.0/item-search#filter",
            "https://api.stacspec.org/v1.0.0/item-search#query",
            "https://api.stacspec.org/v1.0.0/item-search#sort",
        ]
        return {
            "type": "Catalog",
            "id": "cdse-stac",
            "title": "Embedded archive",
            "description": "Sentinel-2 Level-2A products made by cloudjob, searched as the Copernicus Data Space is.",
            "stac_version": "1.0.0",
            "conformsTo": conforms,
            "links": links,
            "stac_extensions": [],
        }

    def _collection(self) -> dict:
        href = f"{self.base}/v1/collections/{COLLECTION}"
        entries = self.server.entries
        bounds = [list(shapely.union_all([entry.outline for entry in entries]).bounds)] if entries else []
        times = [[entries[0].timestamp(3), entries[-1].timestamp(3)]] if entries else []
        return {
            "type": "Collection",
            "id": COLLECTION,
            "title": "Sentinel-2 Level-2A",
            "description": "Surface reflectance of the embedded archive.",
            "license": "proprietary",
            "stac_version": "1.1.0",
            "extent": {"spatial": {"bbox": bounds}, "temporal": {"interval": times}},
            "links": [{"rel": "self", "type": "application/json", "href": href}],
        }

    def _grant(self, form: dict[str, str]) -> dict:
        """Password and refresh grants, in the words of the identity server (Keycloak)."""
        now = time.monotonic()
        if form.get("grant_type") == "password":
            account = form.get("username") if form.get("password") else None
            problem = "Invalid user credentials"
        else:
            account, end = self.server.refresh.get(form.get("refresh_token", ""), (None, 0))
            account, problem = account if now < end else None, "Invalid refresh token"
        if not account:
            raise _Refusal(401, {"error": "invalid_grant", "error_description": problem})
        access, refresh = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
        self.server.access[access] = account, now + TOKEN_SECONDS
        self.server.refresh[refresh] = account, now + REFRESH_SECONDS
        return {
            "access_token": access,
            "expires_in": TOKEN_SECONDS,
            "refresh_expires_in": REFRESH_SECONDS,
            "refresh_token": refresh,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "session_state": refresh[:36],
            "scope": "AUDIENCE_PUBLIC openid email profile ondemand_processing user-context",
        }

    def _node(self, path: str) -> dict | None:
        """Products(<uuid>)/Nodes(<name>)/.../Nodes lists a folder, .../$value sends a file."""
        if "'" in path or '"' in path:
            raise _zipper(400, "DAT-ZIP-104", "Malformed OData request path")
        product, *steps = path.split("/")
        entry = self._product(product.removeprefix("Products(").removesuffix(")"))
        last = steps.pop() if steps else ""
        nodes = [re.fullmatch(r"Nodes\(([^()]+)\)", step) for step in steps]
        if last not in ("Nodes", "$value") or not all(nodes):
            raise _zipper(400, "DAT-ZIP-104", "Malformed OData request path")
        names = [node[1] for node in nodes]
        if not names and last == "Nodes":
            return _listing(entry, [entry.product.folder], self.base)
        if not names:
            raise _zipper(400, "DAT-ZIP-104", "Whole products are not served here: ask for their Nodes")
        target = entry.product.folder.joinpath(*names[1:])
        if names[0] != f"{entry.name}.SAFE" or {".", ".."} & set(names) or not target.exists():
            raise _zipper(404, "DAT-ZIP-110", f"Node not found: {'/'.join(names)}")
        if last == "Nodes":
            return _listing(entry, sorted(target.iterdir()) if target.is_dir() else [], self.base)
        if target.is_dir():
            raise _zipper(400, "DAT-ZIP-104", "Folders are not served here: ask for their files")
        self._send_file(target, self._account())
        return None

    def _product(self, text: str) -> _Entry:
        try:
            identifier = str(UUID(text))
        except ValueError:
            raise _zipper(422, "DAT-ZIP-111", f"Malformed product identifier: {text}") from None
        if identifier not in self.server.by_id:
            raise _zipper(404, "DAT-ZIP-110", f"Product not found: {identifier}")
        return self.server.by_id[identifier]

    def _account(self) -> str:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        account, end = self.server.access.get(token, (None, 0))
        if scheme != "Bearer" or account is None:
            raise _zipper(401, "DAT-ZIP-604", "Token not found")
        if time.monotonic() >= end:
            raise _zipper(401, "DAT-ZIP-109", "Token expired")
        return account

    def _send_file(self, path: Path, account: str) -> None:
        size = path.stat().st_size
        first, last = _byte_range(self.headers.get("Range"), size)
        with contextlib.ExitStack() as slot:
            self._take_slot(account)
            slot.callback(self._leave_slot, account)
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            with path.open("rb") as file:
                tail = max(first, last + 1 - _PIECE)
                if tail > first:
                    self.connection.sendfile(file, first, tail - first)
                slot.close()  # before the last piece: who has read it all may start the next transfer at once
                if size:
                    self.connection.sendfile(file, tail, last + 1 - tail)

    def _take_slot(self, account: str) -> None:
        with self.server.lock:
            if self.server.transfers[account] >= MAX_TRANSFERS:
                raise _zipper(429, "DAT-ZIP-100", "Max session number exceeded")
            self.server.transfers[account] += 1

    def _leave_slot(self, account: str) -> None:
        with self.server.lock:
            self.server.transfers[account] -= 1


def _byte_range(header: str | None, size: int) -> tuple[int, int]:
    """First and last byte of one range (RFC 9110, 14.1.2); 416 where it lies outside the file."""
    if header is None:
        return 0, size - 1
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match and match[1]:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
    elif match and match[2]:
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = size, 0
    if first > last:
        raise _Refusal(416, {"detail": f"Range {header} not satisfiable"}, {"Content-Range": f"bytes */{size}"})
    return first, last
