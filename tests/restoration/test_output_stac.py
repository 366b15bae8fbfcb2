"""The STAC item and collection: what they say, and what STAC's own validator says of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import scene_files
import stac_extensions
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from rasterio.warp import transform as warp
from scene_files import ATTRIBUTES, NORTH, PRODUCT, REFERENCE, WEST, file, pixels
from shapely.geometry import Polygon, shape

from cloudjob.restoration import output
from cloudjob.restoration.output import stac

HEIGHT, WIDTH = 30, 20
OTHER = PRODUCT.replace("20240310T", "20240402T")


def strict(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n "type"')
    assert text.endswith("\n}\n")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))


@pytest.fixture(scope="module")
def stem(tmp_path_factory):
    return scene_files.write(tmp_path_factory.mktemp("stac"), pixels(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def item(stem) -> dict:
    return strict(file(stem, ".json"))


def test_the_item_says_what_it_is_and_where(item):
    assert (item["type"], item["stac_version"]) == ("Feature", "1.1.0")
    assert item["id"] == f"{PRODUCT}_cloudjob"  # not that of the product, which is another item
    assert item["collection"] == "cloudjob"
    corners = [(WEST, NORTH - 300), (WEST + 200, NORTH - 300), (WEST + 200, NORTH), (WEST, NORTH)]
    lons, lats = warp("EPSG:32605", "EPSG:4326", *map(list, zip(*corners, strict=True)))
    assert item["geometry"]["type"] == "Polygon"
    (ring,) = item["geometry"]["coordinates"]
    expected = list(zip([*lons, lons[0]], [*lats, lats[0]], strict=True))
    np.testing.assert_allclose(ring, expected, atol=6e-8, rtol=0)  # 7 digits are a centimetre
    assert ring == [[round(value, 7) for value in corner] for corner in ring]
    np.testing.assert_allclose(item["bbox"], [min(lons), min(lats), max(lons), max(lats)], atol=6e-8, rtol=0)


@given(st.sampled_from([1, 60]), st.floats(-78, 78), st.floats(-0.4, 1.4))
def test_across_180_degrees_the_item_has_two_parts_and_a_box_that_does_not_span_the_globe(zone, latitude, east):
    """A tile, of which the part `east` lies west of 180 degrees; against its corners in longitudes from 0 to 360."""
    crs, width = f"EPSG:{326 if latitude > 0 else 327}{zone:02d}", 109800
    (at,), (south,) = warp("EPSG:4326", crs, [180], [latitude])
    left = at - east * width
    ring = [[left, south], [left + width, south], [left + width, south + width], [left, south + width], [left, south]]
    geometry, bbox = stac._footprint(crs, ring)
    lons = [lon % 360 for lon in warp(crs, "EPSG:4326", *zip(*ring, strict=True))[0]]
    across = min(lons) < 180 < max(lons)
    assume(min(abs(lon - 180) for lon in lons) > 1e-5)
    assert shape(geometry).is_valid
    assert (bbox[0] % 360, bbox[2] % 360) == pytest.approx((min(lons), max(lons)), abs=1e-6)
    assert (geometry["type"] == "MultiPolygon", bbox[0] > bbox[2]) == (across, across)
    parts = geometry["coordinates"] if across else [geometry["coordinates"]]
    assert max(east - west for west, _, east, _ in (Polygon(*part).bounds for part in parts)) < 15


def test_the_properties_tell_how_it_was_made(item):
    properties = item["properties"]
    assert properties["datetime"] == "2024-03-10T22:20:35.024Z"
    assert (properties["platform"], properties["constellation"], properties["instruments"]) == (
        "sentinel-2b",
        "sentinel-2",
        ["msi"],
    )
    assert properties["gsd"] == 10
    assert (properties["proj:code"], properties["proj:epsg"]) == ("EPSG:32605", 32605)
    assert properties["processing:software"] == {"cloudjob": "0.1.0"}
    assert properties["processing:level"] == "L3"
    for name in (PRODUCT, REFERENCE):
        assert name in properties["processing:lineage"]
    assert properties["attribution"] == "Contains modified Copernicus Sentinel data 2024"
    assert {name: properties[f"cloudjob:{name}"] for name in ATTRIBUTES} == ATTRIBUTES
    place = "https://stac.dataspace.copernicus.eu/v1/collections/sentinel-2-l2a/items"
    assert [(link["rel"], link["href"]) for link in item["links"]] == [
        ("derived_from", f"{place}/{PRODUCT}"),
        ("derived_from", f"{place}/{REFERENCE}"),
        *((rel, "../collection.json") for rel in ("collection", "parent", "root")),
    ]


def test_the_assets_have_sizes_and_multihashes_of_files_that_lie_there(item, stem):
    bands = ["B04", "B03", "B02", "B08"]
    names = [*bands, "reconstructed", *(f"uncertainty_{band}" for band in bands)]
    assert list(item["assets"]) == [*names, "h5", "tif", "png"]
    for asset in item["assets"].values():
        content = (stem.parent / asset["href"]).read_bytes()
        assert asset["href"].startswith("./")
        assert asset["file:size"] == len(content)
        # 0x12 is SHA-256, 0x20 its 32 bytes
        assert bytes.fromhex(asset["file:checksum"]) == b"\x12\x20" + hashlib.sha256(content).digest()
    first, flag = item["assets"]["B04"], item["assets"]["reconstructed"]
    assert (first["data_type"], first["nodata"], first["eo:common_name"]) == ("uint16", 0, "red")
    assert (first["raster:scale"], first["raster:offset"]) == (1e-4, -0.1)
    assert (flag["data_type"], flag["nodata"]) == ("uint8", 255)
    assert [band["name"] for band in item["assets"]["tif"]["bands"]] == names
    for key in (*names, "tif"):
        assert item["assets"][key]["proj:shape"] == [HEIGHT, WIDTH]
        assert item["assets"][key]["proj:transform"] == [10, 0, WEST, 0, -10, NORTH]
    assert "proj:shape" not in item["assets"]["h5"]  # which clients would take for one band


def test_a_scene_of_unknown_place_or_without_code_is_an_item_too(tmp_path):
    scene = pixels(8, 9, uncertainty=False)
    known = {"name": "mine", "sources": {}, "collection": None, "origin": "data of my own"}
    found = strict(file(scene_files.write(tmp_path / "none", scene, crs=None, **known), ".json"))
    assert (found["geometry"], found["properties"]["proj:code"]) == (None, None)
    assert not {"bbox", "collection"} & set(found)
    assert not {"platform", "gsd"} & set(found["properties"])
    assert (found["links"], found["properties"]["attribution"]) == ([], "Contains modified data of my own 2024")
    crs = "+proj=tmerc +lat_0=10 +lon_0=20 +k=0.9 +x_0=600000 +y_0=7900000 +ellps=GRS80 +units=m"
    found = strict(file(scene_files.write(tmp_path / "own", scene, crs=crs, **known), ".json"))
    assert found["properties"]["proj:code"] is None
    assert "Transverse" in found["properties"]["proj:wkt2"]
    assert found["geometry"]["type"] == "Polygon"


# --- the collection ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    output.write_collection(folder)
    assert not (folder / "collection.json").exists()  # of nothing
    scene = pixels(8, 9, uncertainty=False)
    scene_files.write(folder, scene)
    later = {"name": OTHER, "sensing_time": "2024-04-02T22:20:35.024Z"}
    scene_files.write(folder, scene, **later, transform=Affine(10, 0, WEST + 5000, 0, -10, NORTH))
    (folder / OTHER / "notes.json").write_text("{}")
    output.write_collection(folder)
    return folder / "collection.json"


def test_the_collection_has_all_items_and_what_they_cover(collection):
    found = strict(collection)
    items = [strict(collection.parent / name / f"{name}.json") for name in sorted([PRODUCT, OTHER])]
    hrefs = [link["href"] for link in found["links"] if link["rel"] == "item"]
    assert hrefs == [f"./{name}/{name}.json" for name in sorted([PRODUCT, OTHER])]
    assert {each["collection"] for each in items} == {found["id"]}
    boxes = np.array([each["bbox"] for each in items])
    assert found["extent"]["spatial"]["bbox"] == [[*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]]
    assert found["extent"]["temporal"]["interval"] == [["2024-03-10T22:20:35.024Z", "2024-04-02T22:20:35.024Z"]]
    assert found["summaries"]["platform"] == ["sentinel-2b"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"properties": {}}'])
def test_an_item_that_cannot_be_read_is_left_out_and_told(tmp_path, content):
    scene = pixels(8, 9, uncertainty=False)
    stem = scene_files.write(tmp_path, scene)
    broken = tmp_path / OTHER / f"{OTHER}.json"
    broken.parent.mkdir()
    broken.write_text(content)
    assert output.write_collection(tmp_path) == [broken]
    links = strict(tmp_path / "collection.json")["links"]
    assert [link["href"] for link in links if link["rel"] == "item"] == [f"./{PRODUCT}/{stem.name}.json"]


@given(st.lists(st.tuples(st.floats(-180, 179.9), st.floats(0.1, 30)), min_size=1, max_size=5))
def test_the_box_of_all_holds_each_and_is_the_narrowest(spans):
    boxes = [[west, 0.0, west + wide - 360 * (west + wide > 180), 1.0] for west, wide in spans]
    west, south, east, north = stac._around(boxes)
    assert -180 <= west <= 180
    assert -180 <= east <= 180
    assert (south, north) == (0, 1)
    width = (east - west) % 360 or 360
    for left, _, right, _ in boxes:
        start = (left - west) % 360
        start -= 360 * (start > 359.999999)
        assert start + (right - left) % 360 <= width + 1e-6
    degrees = np.arange(0, 360, 0.05)
    covered = np.any([((degrees - left) % 360) <= wide for left, wide in spans], axis=0)
    free = np.flatnonzero(np.r_[covered, covered])
    widest = np.diff(free).max(initial=0) * 0.05 if free.size else 360
    assert width <= 360 - widest + 0.2


# --- what STAC says of them --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def validator():
    pytest.importorskip("pystac")
    pytest.importorskip("jsonschema")
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    found = JsonSchemaSTACValidator()
    found.schema_cache |= stac_extensions.schemas()
    return found


@pytest.mark.slow
def test_items_and_collection_are_valid(stem, collection, validator, tmp_path):
    import pystac
    from pystac.validation import validate_dict

    own = {"name": "mine", "sources": {}, "collection": None, "crs": None}
    unknown = file(scene_files.write(tmp_path, pixels(8, 9), **own), ".json")
    paths = [collection, *collection.parent.glob("S2*/S2*.json"), file(stem, ".json"), unknown]
    for path in paths:
        validate_dict(json.loads(path.read_text()), href=str(path), validator=validator)
    found = pystac.Collection.from_file(str(collection))
    assert [item.id for item in found.get_items()] == [f"{name}_cloudjob" for name in sorted([PRODUCT, OTHER])]
    for item in found.get_items():
        assert item.get_collection().id == found.id
        assert all(Path(asset.get_absolute_href()).is_file() for asset in item.assets.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("properties", "proj:code", 32605),
        ("properties", "proj:name", "UTM"),
        ("properties", "processing:software", {"cloudjob": 1}),
        ("properties", "datetime", "yesterday"),
        ("B04", "eo:common_name", "crimson"),
        ("B04", "file:checksum", "SHA256"),
        ("B04", "raster:scale", "1e-4"),
        ("B04", "href", None),
    ],
)
def test_a_wrong_item_is_not_valid(item, validator, where, name, value):
    from pystac.errors import STACValidationError
    from pystac.validation import validate_dict

    wrong = json.loads(json.dumps(item))
    (wrong["properties"] if where == "properties" else wrong["assets"][where])[name] = value
    with pytest.raises(STACValidationError):
        validate_dict(wrong, validator=validator)
