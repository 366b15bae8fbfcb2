"""The examples of docs/outputs.md do what they say."""

from pathlib import Path

import numpy as np
import pytest
import scene_files
from doc_pages import Reader
from scene_files import PRODUCT, pixels

from cloudjob.restoration import output

LIBRARIES = ("xarray", "h5netcdf", "rioxarray", "odc.stac", "pystac", "stackstac")
DAYS = (PRODUCT, PRODUCT.replace("20240310T", "20240327T"), PRODUCT.replace("20240310T", "20240406T"))
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries among themselves


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    for library in LIBRARIES:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/north_slope/outputs")
    scenes = [pixels(70, 60, uncertainty=False, seed=seed) for seed in range(len(DAYS))]
    for name, scene in zip(DAYS, scenes, strict=True):
        scene.reflectance[:] = np.where(scene.reflectance, scene.reflectance // 8 + 1000, 0)
        date = name.split("_")[2]
        sensed = f"{date[:4]}-{date[4:6]}-{date[6:8]}T22:20:35Z"
        scene_files.write(folder, scene, name=name, sensing_time=sensed)
    other = PRODUCT.replace("T05WPS", "T06WVC")
    scene_files.write(folder, scenes[0], name=other, crs="EPSG:32606")
    output.write_collection(folder)

    reader = Reader(tmp_path)
    said, space = reader.follow("outputs.md"), reader.names
    first = scenes[0]
    dn = np.where(first.reflectance, first.reflectance, np.nan) * 1e-4 - 0.1
    np.testing.assert_allclose(space["red"].values[0], dn[0], atol=1e-6)
    np.testing.assert_allclose(space["observed"].values, np.where(first.reconstructed == 0, dn[3], np.nan), atol=1e-6)
    np.testing.assert_allclose(space["image"].values[0], dn[3], atol=1e-6)
    np.testing.assert_array_equal(space["flags"], first.reconstructed)
    assert space["overview"].shape == (3, 64, 64)
    assert len(space["items"]) == len(DAYS)
    assert dict(space["cube"].sizes) == {"time": 3, "y": 70, "x": 60}
    for number, scene in enumerate(scenes):
        np.testing.assert_array_equal(space["cube"].B04.values[number], scene.reflectance[0])
        np.testing.assert_array_equal(space["cube"].reconstructed.values[number], scene.reconstructed)
        shown = space["stack"].isel(time=number).values
        expected = np.where(scene.reflectance, scene.reflectance, np.nan)[[0, 3]]
        np.testing.assert_array_equal(shown, expected)
        red, nir = (np.where(scene.reflectance[band], scene.reflectance[band] * 1e-4 - 0.1, np.nan) for band in (0, 3))
        known = (nir - red) / (nir + red)
        np.testing.assert_allclose(space["ndvi"].values[number], known, rtol=1e-5, atol=1e-5)
        assert float(space["one_place"][number]) == pytest.approx(known[10, 12], rel=1e-4)
    assert space["stack"].shape == (3, 2, 70, 60)
    assert [line.split()[0] for line in said["NDVI of a tile over dates, without gaps"].splitlines()] == [
        "2024-03-10",
        "2024-03-27",
        "2024-04-06",
    ]
    assert "of the pixels were reconstructed by abababab" in said["h5py"]
    assert "EPSG:32605" in said["xarray"]


@pytest.mark.slow
def test_all_layers_come_without_naming_them(tmp_path):
    """As odc-stac loads an item by default, of several members; and one by one."""
    pytest.importorskip("odc.stac")
    import odc.stac
    import pystac

    scene = pixels(40, 30)
    stem = scene_files.write(tmp_path, scene, collection=None)
    item = pystac.Item.from_file(f"{stem}.json")
    cube = odc.stac.load([item])
    names = [layer.name for layer in scene_files.header(scene).layers]
    assert list(cube.data_vars) == names
    for name, expected in zip(names, scene.layers, strict=True):
        np.testing.assert_array_equal(cube[name].values[0], expected)
        assert cube[name].dtype == ("uint8" if name == "reconstructed" else "uint16")
    assert list(odc.stac.load([item], bands=["uncertainty_B08"]).data_vars) == ["uncertainty_B08"]
