"""The STAC item beside an image."""

import json
from datetime import UTC, datetime

import pytest

from cloudjob.restoration import sidecar

PROPERTIES = {"datetime": "2024-03-10T23:20:35+01:00", "view:sun_elevation": 31.5}
NEW = {
    "bands": [{"name": "B02", "eo:common_name": "blue", "raster:scale": 1e-4, "raster:offset": -0.1}, {"name": "B8"}]
}
OLD = {"eo:bands": [{"name": "B02", "common_name": "blue"}, {"name": "B8"}], "raster:bands": [{"scale": 2e-4}, {}]}


@pytest.fixture
def read(tmp_path):
    def put(asset: dict, properties=None, href="./x.tif") -> sidecar.Sidecar:
        item = {"assets": {"a": {"href": href} | asset, "b": {"href": "other"}}, "properties": properties or PROPERTIES}
        (tmp_path / "x.json").write_text(json.dumps(item))
        return sidecar.read(tmp_path / "x.tif")

    return put


@pytest.mark.parametrize(
    ("asset", "units"),
    [
        (NEW, [(1e-4, -0.1), (1.0, 0.0)]),
        (OLD, [(2e-4, 0.0), (1.0, 0.0)]),
        (NEW | {"raster:scale": 3e-4}, [(1e-4, -0.1), (3e-4, 0.0)]),
    ],
)
def test_it_says_bands_units_time_and_sun(read, asset, units):
    found = read(asset)
    assert found.bands == ["B02 blue", "B8 "]
    assert found.units == units
    assert found.acquired == datetime(2024, 3, 10, 22, 20, 35, tzinfo=UTC)
    assert found.sun_elevation == 31.5


def test_what_it_does_not_say_is_not_known(read):
    assert read({}, {"datetime": None}) == sidecar.Sidecar()
    assert read(NEW, href="./y.tif") == sidecar.Sidecar()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"assets": 3, "properties": {}}', '{"assets": {"a": {}}}', "\xff"])
def test_another_file_of_that_name_says_nothing(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    assert sidecar.read(tmp_path / "x.tif") == sidecar.Sidecar()
