"""What is odd about a catalogue: products that are odd in one way, pages that lie, checksums that are none.

An odd product is a twin of another one, under a name of its own. It comes beside the other, which stays as it is.
"""

import hashlib
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from cloudjob.archive.catalogue import Entry
from cloudjob.archive.faults import TWINS
from cloudjob.names import ProductName, product_name
from cloudjob.sentinel2.product import read_manifest

GONE = ("offline", "withdrawn")  # twins that are listed and not served
_METADATA = "MTD_MSIL2A.xml"


def make_twin(entry: Entry, kind: str, folder: Path) -> Entry:
    """A twin of a product, sensed some minutes later by its name; its files, but for three, are links."""
    name = ProductName.parse(entry.name)
    later = product_name(
        satellite=name.satellite,
        sensing=name.sensing + timedelta(minutes=1 + TWINS.index(kind)),
        baseline=name.baseline,
        relative_orbit=name.relative_orbit,
        tile=name.tile,
        processed=name.processed,
    )
    original, twin = entry.product.folder.resolve(), folder / f"{later}.SAFE"
    twin.mkdir(parents=True)
    for path in original.iterdir():
        (twin / path.name.replace(entry.name, later)).symlink_to(path)
    for own in (_METADATA, "manifest.safe"):
        (twin / own).unlink()
        text = (original / own).read_text(encoding="utf-8").replace(entry.name, later)
        (twin / own).write_text(text, encoding="utf-8")
    (listed,) = (file for file in read_manifest(original / "manifest.safe") if file.path == _METADATA)
    digest = hashlib.new(listed.algorithm.lower().replace("-", "_"), (twin / _METADATA).read_bytes()).hexdigest()
    text = re.sub(listed.digest, digest, (twin / "manifest.safe").read_text(encoding="utf-8"), flags=re.IGNORECASE)
    (twin / "manifest.safe").write_text(text, encoding="utf-8")
    found = Entry(twin)
    found.queryables["Online"] = str(kind != "offline").lower()
    return found


def as_twin(row: dict, kind: str) -> dict:
    """The row or item of a twin: odd in its way, whichever of its members the search has asked for."""
    properties, assets = row.get("properties", {}), row.get("assets", {}).values()
    match kind:
        case "no_cloud_cover":
            properties.pop("eo:cloud_cover", None)
            if "Attributes" in row:
                row["Attributes"] = [each for each in row["Attributes"] if each["Name"] != "cloudCover"]
        case "no_size":
            _drop(assets, "file:size")
            row |= {"ContentLength": 0} if "ContentLength" in row else {}
        case "no_checksum":
            _drop(assets, "file:checksum")
        case "no_geometry":
            row |= {key: None for key in ("geometry", "Footprint", "GeoFootprint") if key in row}
        case "other_name":
            row = json.loads(json.dumps(row).replace("_MSIL2A_", "_USER_MSIL2A_"))
        case "offline":
            row |= {"Online": False} if "Online" in row else {}
    return row


def spoiled_checksums(item: dict, fault: str, number: float) -> dict:
    """The STAC item with a wrong digest of one of its 10 m bands, which `number` in [0, 1) chooses, or with empty or
    unknown ones of all its files."""
    files = {key: asset for key, asset in item.get("assets", {}).items() if asset.get("file:checksum")}
    if fault == "checksum_wrong":
        bands = sorted(key for key in files if key.startswith("B") and key.endswith("_10m"))
        if bands:
            asset = files[bands[int(number * len(bands))]]
            last = asset["file:checksum"][-1]
            asset["file:checksum"] = asset["file:checksum"][:-1] + ("0" if last != "0" else "1")
        return item
    for asset in files.values():
        asset["file:checksum"] = "" if fault == "checksum_empty" else "1e20" + 32 * "5a"  # BLAKE3 of something else
    return item


def rows_of(answer: Any) -> str | None:
    """The key under which a page of a catalogue lists its rows; None for what is no page."""
    keys = [key for key in ("features", "value") if isinstance(answer, dict) and isinstance(answer.get(key), list)]
    return keys[0] if keys else None


def page_faults(page: dict) -> list[str]:
    """The faults that this page can have."""
    many, counted = len(page[str(rows_of(page))]), _count_key(page)
    found = ["page_short"] if many else []
    found += ["page_repeats"] if many > 1 else []
    found += ["page_last", "page_elsewhere"] if _next_url(page) else []
    return found + (["count_wrong"] if counted else [])


def spoiled_page(page: dict, fault: str, elsewhere: str) -> dict:
    """The page without its last row or with the first in its place, without a next page or with one on another server
    (`elsewhere` is its address), or with a count of one more."""
    rows = page[str(rows_of(page))]
    match fault:
        case "page_short":
            del rows[-1]
        case "page_repeats":
            rows[-1] = rows[0]
        case "page_last":
            page.pop("@odata.nextLink", None)
            if "links" in page:
                page["links"] = [link for link in page["links"] if link["rel"] != "next"]
        case "page_elsewhere":
            moved = re.sub(r"^https?://[^/]+", elsewhere, _next_url(page))
            page |= {"@odata.nextLink": moved} if "@odata.nextLink" in page else {}
            page |= (
                {"links": [link | ({"href": moved} if link["rel"] == "next" else {}) for link in page["links"]]}
                if "links" in page
                else {}
            )
        case "count_wrong":
            page[_count_key(page)] += 1
    return page


def _drop(assets: Any, key: str) -> None:
    for asset in assets:
        asset.pop(key, None)


def _next_url(page: dict) -> str:
    links = [link["href"] for link in page.get("links", []) if link["rel"] == "next"]
    return page.get("@odata.nextLink") or (links[0] if links else "")


def _count_key(page: dict) -> str:
    return next((key for key in ("@odata.count", "numberMatched") if key in page), "")
