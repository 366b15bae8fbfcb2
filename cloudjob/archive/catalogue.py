"""STAC items and OData rows made from the SAFE folders of an archive.

Their structure follows recorded responses of stac.dataspace.copernicus.eu and catalogue.dataspace.copernicus.eu.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from uuid import NAMESPACE_URL, uuid5

import shapely
from defusedxml.ElementTree import parse, tostring
from shapely.errors import ShapelyError
from shapely.geometry import shape

from cloudjob import footprints
from cloudjob.errors import CorruptFileError, ItemError, SystemTroubleError
from cloudjob.names import stamp
from cloudjob.pixels import BANDS
from cloudjob.sentinel2.product import Product, read_manifest

COLLECTION = "sentinel-2-l2a"
_COLOURS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
_STATISTICS = {
    "nodata": "NODATA_PIXEL",
    "saturated_defective": "SATURATED_DEFECTIVE_PIXEL",
    "dark_area": "DARK_FEATURES",
    **{name: name.upper() for name in ("cloud_shadow", "vegetation", "not_vegetated", "water", "unclassified")},
    **{name: name.upper() for name in ("medium_proba_clouds", "high_proba_clouds", "thin_cirrus")},
}
_SCHEMAS = ("alternate-assets/v1.2", "eo/v2.0", "file/v2.1", "grid/v1.1", "projection/v2.0", "raster/v2.0", "view/v1.0")
_NEEDED = ("SCL_20m", *(f"{band}_10m" for band in BANDS))  # a product that lacks one is left out by who asks for it
_NAMED = 5  # missing files that are named
_CONFORMS = ("core", "item-search", *(f"item-search#{name}" for name in ("fields", "filter", "query", "sort")))


class Entry:
    """One product of the archive, with its catalogue metadata.

    `missing` are files that its manifest lists and that are not there: many delete what they do not use. The manifest
    is served without them, so that nobody asks for them, but for those that a client needs.

    CorruptFileError, ValueError or ShapelyError if one of its XML files is not whole.
    """

    def __init__(self, folder: Path):
        self.product = product = Product.open(folder)
        self.name = product.name.name
        self.id = str(uuid5(NAMESPACE_URL, f"{self.name}.SAFE"))
        self.sensing = product.sensing_time
        self.made = product.name.processed
        self.size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.s3_path = f"eodata/Sentinel-2/MSI/L2A/{self.sensing:%Y/%m/%d}/{self.name}.SAFE"
        positions = list(map(float, _text(folder / "MTD_MSIL2A.xml", "EXT_POS_LIST").split()))
        ring = list(zip(positions[1::2], positions[0::2], strict=True))  # longitude, latitude
        self.footprint = footprints.split({"type": "Polygon", "coordinates": [ring]})
        self.outline = shape(self.footprint)
        files = read_manifest(folder / "manifest.safe")
        there = {file.path for file in files if (folder / file.path).is_file()}
        self.missing = [file.path for file in files if file.path not in there]
        self.granule = "/".join(next(iter(product.files.values())).split("/")[:2])
        self.tile_metadata = f"{self.granule}/MTD_TL.xml"
        self.quicklook = f"{self.name}-ql.jpg"
        self.digests = {file.path: (file.algorithm, file.digest) for file in files if file.path in there}  # by path
        needed = {product.files.get(key) for key in _NEEDED}
        unneeded = {path for path in self.missing if path not in needed}
        self._manifest = _without(folder / "manifest.safe", unneeded) if unneeded else None
        for path in ("manifest.safe", "MTD_MSIL2A.xml", self.tile_metadata, self.quicklook):
            if path not in there and (folder / path).is_file():  # a manifest lists neither itself nor the quick-look
                with self.open(path) as file:
                    self.digests[path] = "MD5", hashlib.md5(file.read()).hexdigest()
        azimuth = float(_text(folder / self.tile_metadata, "AZIMUTH_ANGLE"))
        self.sun_azimuth = azimuth if math.isfinite(azimuth) else None

    def open(self, path: str) -> BinaryIO:
        """A file of the product as it is served."""
        if path == "manifest.safe" and self._manifest is not None:
            return io.BytesIO(self._manifest)
        return (self.product.folder / path).open("rb")

    def length(self, path: str) -> int:
        """The bytes of a file of the product as it is served."""
        if path == "manifest.safe" and self._manifest is not None:
            return len(self._manifest)
        return (self.product.folder / path).stat().st_size

    def node_path(self, path: str) -> str:
        """URL path of a file or folder; "" is the product's own folder."""
        nodes = "".join(f"/Nodes({part})" for part in path.split("/") if part)
        return f"/odata/v1/Products({self.id})/Nodes({self.name}.SAFE){nodes}"

    @cached_property
    def properties(self) -> dict:
        """The properties of the STAC item; the viewing angles are unknown."""
        name, percentages = self.product.name, self.product.percentages
        told = re.search(r"_A(\d{6})_", self.granule)  # GRANULE/L2A_T05WPS_A012345_...
        orbit = int(told[1]) if told else None
        sensed = stamp(self.sensing)
        datastrip = f"{name.satellite}_OPER_MSI_L2A_DS_2APS_{name.discriminator}_S{sensed}_N{name.baseline}"
        made = ("created", "updated", "published", "processing:datetime", "eopf:origin_datetime")
        return {
            **dict.fromkeys(("datetime", "start_datetime", "end_datetime"), _stamp(self.sensing, 3)),
            **dict.fromkeys(made, _stamp(self.made)),
            "gsd": 10,
            "platform": f"sentinel-{name.satellite[1:].lower()}",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "grid:code": f"MGRS-{name.tile}",
            "statistics": {key: percentages.get(f"{element}_PERCENTAGE") for key, element in _STATISTICS.items()},
            "eo:cloud_cover": _rounded(percentages.get("Cloud_Coverage_Assessment")),
            "eo:snow_cover": _rounded(percentages.get("SNOW_ICE_PERCENTAGE")),
            "auth:schemes": {"s3": {"type": "s3"}, "oidc": {"type": "openIdConnect"}},
            "storage:schemes": {"cdse-s3": {"requester_pays": False}, "creodias-s3": {"requester_pays": True}},
            "product:type": "S2MSI2A",
            "product:timeliness": "PT24H",
            "product:timeliness_category": "NRT",
            "processing:level": "L2",
            "processing:version": self.product.baseline,
            "processing:facility": "ESA",
            "sat:orbit_state": "descending",
            "sat:absolute_orbit": orbit,
            "sat:relative_orbit": name.relative_orbit,
            "sat:platform_international_designator": {"A": "2015-028A", "B": "2017-013A"}.get(name.satellite[2]),
            **dict.fromkeys(("view:azimuth", "view:incidence_angle")),
            "view:sun_azimuth": self.sun_azimuth,
            "view:sun_elevation": self.product.sun_elevation,
            "eopf:datatake_id": f"G{name.satellite}_{sensed}_{orbit or 0:06d}_N{name.baseline}",
            "eopf:datastrip_id": datastrip,
            "eopf:instrument_mode": "INS-NOBS",
        }

    @cached_property
    def attributes(self) -> dict[str, str | int | float | datetime | None]:
        """The attributes of the OData row."""
        return {
            "origin": "ESA",
            "tileId": self.product.name.tile,
            "cloudCover": self.product.percentages.get("Cloud_Coverage_Assessment"),
            "datastripId": self.properties["eopf:datastrip_id"],
            "orbitNumber": self.properties["sat:absolute_orbit"],
            "processingDate": self.made,
            "productGroupId": self.properties["eopf:datatake_id"],
            "operationalMode": "INS-NOBS",
            "processingLevel": "S2MSI2A",
            "processorVersion": self.product.baseline,
            "platformShortName": "SENTINEL-2",
            "instrumentShortName": "MSI",
            "relativeOrbitNumber": self.product.name.relative_orbit,
            "platformSerialIdentifier": self.product.name.satellite[2],
            "productType": "S2MSI2A",
            "beginningDateTime": self.sensing,
            "endingDateTime": self.sensing,
        }

    @cached_property
    def queryables(self) -> dict:
        """The values that STAC and OData search and sort by, under the names of both; times as datetime."""
        return {
            **self.properties,
            **dict.fromkeys(("datetime", "start_datetime", "end_datetime"), self.sensing),
            **dict.fromkeys(("ContentDate/Start", "ContentDate/End"), self.sensing),
            **dict.fromkeys(("PublicationDate", "ModificationDate"), self.made),
            "id": self.name,
            "collection": COLLECTION,
            "geometry": self.outline,
            "Collection/Name": "SENTINEL-2",
            "Name": f"{self.name}.SAFE",
            "Online": "true",
        }


def entries(archive: Path, said: Callable[[str], object]) -> list[Entry]:
    """The products in the folders S2*.SAFE of an archive, by time of sensing.

    It is `said` which folders hold no whole Level-2A product and are left out, and which files of the others are
    missing. SystemTroubleError where the system refuses a file.
    """
    found: dict[str, Entry] = {}
    for folder in sorted(Path(archive).glob("S2*.SAFE")):
        try:
            entry = Entry(folder)
        except SystemTroubleError:
            raise
        except (ItemError, ValueError, ShapelyError) as error:
            said(f"archive: left out {folder.name}: {error}")
            continue
        if entry.name in found:
            said(f"archive: left out {folder.name}: the product of {found[entry.name].product.folder.name}")
            continue
        if entry.missing:
            names = ", ".join(entry.missing[:_NAMED]) + (" ..." if len(entry.missing) > _NAMED else "")
            said(f"archive: {entry.name}: {len(entry.missing)} files of its manifest are missing: {names}")
        found[entry.name] = entry
    return sorted(found.values(), key=lambda entry: (entry.sensing, entry.name))


def _without(manifest: Path, missing: set[str]) -> bytes:
    """A manifest that does not list these files."""
    elements = list(parse(manifest).iter())
    for part in elements:
        for stream in part.findall("byteStream"):
            location = stream.find("fileLocation")
            if location is not None and "/".join(PurePosixPath(location.get("href", "")).parts) in missing:
                part.remove(stream)
    return tostring(elements[0])


def _text(path: Path, name: str) -> str:
    for element in parse(path).iter():
        if element.tag.rpartition("}")[2] == name:
            return element.text or ""
    raise CorruptFileError(path, f"no element {name}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _stamp(moment: datetime, digits: int = 6) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}"[: 20 + digits] + "Z"


def stac_catalogue(base: str) -> dict:
    """The landing page, GET /v1; `base` is the server's address."""
    return {
        "type": "Catalog",
        "id": "cdse-stac",
        "title": "Embedded archive",
        "description": "Sentinel-2 Level-2A products made by cloudjob, searched as the Copernicus Data Space is.",
        "stac_version": "1.0.0",
        "conformsTo": [f"https://api.stacspec.org/v1.0.0/{part}" for part in _CONFORMS],
        "links": [
            *(link(rel, f"{base}/v1/") for rel in ("self", "root")),
            link("search", f"{base}/v1/search", "application/geo+json") | {"method": "POST"},
        ],
        "stac_extensions": [],
    }


def stac_collection(entries: list[Entry], base: str) -> dict:
    """The only collection; `entries` are sorted by time."""
    bounds = [shapely.union_all([entry.outline for entry in entries]).bounds] if entries else []
    times = [[_stamp(entries[0].sensing, 3), _stamp(entries[-1].sensing, 3)]] if entries else []
    return {
        "type": "Collection",
        "id": COLLECTION,
        "title": "Sentinel-2 Level-2A",
        "description": "Surface reflectance of the embedded archive.",
        "license": "proprietary",
        "stac_version": "1.1.0",
        "extent": {"spatial": {"bbox": bounds}, "temporal": {"interval": times}},
        "links": [link("self", f"{base}/v1/collections/{COLLECTION}")],
    }


def stac_item(entry: Entry, base: str) -> dict:
    """The STAC item of a product, with the same members as the Data Space's items."""
    collection = f"{base}/v1/collections/{COLLECTION}"
    return {
        "id": entry.name,
        "bbox": [round(value, 6) for value in footprints.bbox(entry.footprint)],
        "type": "Feature",
        "links": [
            *(link(rel, collection) for rel in ("collection", "parent")),
            link("root", f"{base}/v1/"),
            link("self", f"{collection}/items/{entry.name}", "application/geo+json"),
        ],
        "geometry": entry.footprint,
        "collection": COLLECTION,
        "properties": entry.properties,
        "assets": _assets(entry, base),
        "stac_extensions": [f"https://stac-extensions.github.io/{name}.0/schema.json" for name in _SCHEMAS],
        "stac_version": "1.1.0",
    }


def link(rel: str, href: str, media_type: str = "application/json") -> dict:
    return {"rel": rel, "type": media_type, "href": href}


def _assets(entry: Entry, base: str) -> dict:
    """The assets as the Data Space lists them: no masks, and the digests of XML files always marked as MD5."""
    product = entry.product
    metadata = (
        ("safe_manifest", "manifest.safe"),
        ("granule_metadata", entry.tile_metadata),
        ("product_metadata", "MTD_MSIL2A.xml"),
    )
    assets = {key: _asset(entry, base, path, "application/xml", "metadata") for key, path in metadata}
    if entry.quicklook in entry.digests:
        assets["thumbnail"] = _asset(entry, base, entry.quicklook, "image/jpeg", "thumbnail", "overview")
    for key, path in product.files.items():
        if key.startswith("MSK_") or path not in entry.digests:
            continue
        metres = int(key[-3:-1])
        rows, columns = (-(-length * 10 // metres) for length in product.shape)
        left, top = product.transform.c, product.transform.f
        assets[key] = _asset(entry, base, path, "image/jp2", "data") | {
            "gsd": metres,
            "nodata": 0,
            "data_type": "uint16" if key[0] == "B" else "uint8",
            "proj:code": product.crs,
            "proj:shape": [rows, columns],
            "proj:bbox": [left, top - metres * rows, left + metres * columns, top],
            "proj:transform": [float(metres), 0.0, left, 0.0, -float(metres), top],
        }
        if key[:3] in _COLOURS:  # the Data Space gives this offset for every product, right or wrong
            band = {"name": key[:3], "eo:common_name": _COLOURS[key[:3]]}
            assets[key] |= {"bands": [band], "raster:scale": 0.0001, "raster:offset": -0.1}
    return assets


def _asset(entry: Entry, base: str, path: str, media_type: str, *roles: str) -> dict:
    algorithm, digest = entry.digests[path]
    address = f"{base}{entry.node_path(path)}/$value"
    code = "1620" if algorithm == "SHA3-256" and path.endswith(".jp2") else f"d501{len(digest) // 2:02x}"
    return {
        "href": f"s3://{entry.s3_path}/{path}",
        "type": media_type,
        "title": PurePosixPath(path).name,
        "roles": roles,
        "file:size": entry.length(path),
        "file:checksum": code + digest,
        "file:local_path": f"{entry.name}.SAFE/{path}",
        "alternate:name": "S3",
        "auth:refs": ["s3"],
        "storage:refs": ["cdse-s3", "creodias-s3"],
        "alternate": {"https": {"href": address, "alternate:name": "HTTPS", "auth:refs": ["oidc"], "storage:refs": []}},
    }


def odata_row(entry: Entry, base: str, expand: list[str]) -> dict:
    """The row of a product; `expand` has "Attributes", "Assets", both or neither."""
    row = {
        "@odata.mediaContentType": "application/octet-stream",
        "Id": entry.id,
        "Name": f"{entry.name}.SAFE",
        "ContentType": "application/octet-stream",
        "ContentLength": entry.size,
        **dict.fromkeys(("OriginDate", "PublicationDate", "ModificationDate"), _stamp(entry.made)),
        "Online": True,
        "EvictionDate": "9999-12-31T23:59:59.999999Z",
        "S3Path": f"/{entry.s3_path}",
        "Checksum": [],
        "ContentDate": dict.fromkeys(("Start", "End"), _stamp(entry.sensing)),
        "Footprint": f"geography'SRID=4326;{entry.outline.wkt}'",
        "GeoFootprint": entry.footprint,
    }
    if "Attributes" in expand:
        known = {name: value for name, value in entry.attributes.items() if value is not None}
        row["Attributes"] = [_odata_attribute(name, value) for name, value in known.items()]
    if "Assets" in expand:
        row["Assets"] = []
    if "Assets" in expand and entry.quicklook in entry.digests:
        quicklook = uuid5(NAMESPACE_URL, entry.quicklook)
        address = f"{base}/odata/v1/Assets({quicklook})/$value"
        asset = {"Type": "QUICKLOOK", "Id": str(quicklook), "DownloadLink": address, "S3Path": f"/{entry.s3_path}"}
        row["Assets"] = [asset]
    return row


def _odata_attribute(name: str, value: str | int | float | datetime) -> dict:
    kind = {str: "String", int: "Integer", float: "Double", datetime: "DateTimeOffset"}[type(value)]
    value = _stamp(value) if isinstance(value, datetime) else value
    return {"@odata.type": f"#OData.CSC.{kind}Attribute", "Name": name, "Value": value, "ValueType": kind}
