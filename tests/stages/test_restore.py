"""restore: images of one's own, in every form in which people have them, through the front door."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from front_door import call, clean_message, copied, good
from own_images import DEGREES, NAMES, UTM, clouded, ground, netcdf, write
from rasterio.warp import Resampling, reproject
from untrained import untrained

import cloudjob
from cloudjob.config.models import InferConfig
from cloudjob.diffusion import checkpoint
from cloudjob.run.folder import RunFolder
from cloudjob.stages import restore

GROUND = ground()
IMAGE, CLOUD = clouded(GROUND)
DN = np.rint(IMAGE * 10_000).astype(np.uint16) + 1000
MPIEXEC = Path(sys.executable).with_name("mpiexec")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with a mask of the cloud in UTM."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mask.tif", CLOUD[None].astype(np.uint8), names=None, **UTM)
    return tmp_path


@pytest.fixture
def run(trained, here):
    """A function: what `cloudjob restore` does with these arguments."""
    return lambda *arguments, **options: call("restore", *arguments, "--checkpoint", trained, "--out", "out", **options)


def result(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance in DN, and what was reconstructed, of a whole set of files."""
    folder = Path("out") / name
    assert {f"{name}.{ending}" for ending in ("h5", "tif", "json", "png")} <= {path.name for path in folder.iterdir()}
    with h5py.File(folder / f"{name}.h5") as file:
        return file["reflectance"][...], file["reconstructed"][...]


# --- every form --------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("form", ["degrees", "dn", "nowhere", "netcdf"])
def test_an_image_in_any_form_comes_back_without_its_cloud(run, here, form):
    place = {"degrees": DEGREES, "nowhere": {}}.get(form, UTM)
    mask = write(here / "cloud.tif", 255 * CLOUD[None].astype(np.uint8), names=None, **place)
    if form == "netcdf":
        path = netcdf(here / "mine.nc", IMAGE, UTM, packed=True)
    elif form == "dn":
        path = write(here / "mine.tif", DN, nodata=0, scale=1e-4, offset=-0.1, **UTM)
    else:
        path = write(here / "mine.tif", IMAGE, nodata=np.nan, **place)
    done = run(path.name, "--mask", mask.name)
    assert (done.returncode, done.stdout) == (0, "out/mine/mine.tif\n"), done.stderr
    assert "Warning" not in done.stderr
    dn, flags = result("mine")
    seen = flags == 0
    np.testing.assert_array_equal(dn[:, seen], DN[:, seen])
    assert (flags[CLOUD] == 1).all()
    assert (dn[:, CLOUD] != DN[:, CLOUD]).any()
    with rasterio.open("out/mine/mine.tif") as image:
        assert image.crs == place.get("crs")
        assert image.descriptions[:4] == NAMES
        if place:
            assert image.transform.almost_equals(place["transform"], 1e-9)
        np.testing.assert_array_equal(image.read()[:4], dn)
    item = json.loads(Path("out/mine/mine.json").read_text())
    assert (item["geometry"] is None) == (form == "nowhere")
    assert item["properties"]["cloudjob:cloud_mask"] == "cloud.tif, grown"


@pytest.mark.slow
def test_it_is_what_the_function_of_arrays_gives(run, here, trained):
    write(here / "mine.tif", IMAGE, **UTM)
    assert run("mine.tif", "--mask", "mask.tif", "--members", "2").returncode == 0
    found = cloudjob.restore(IMAGE, CLOUD, checkpoint=trained, members=2)
    dn, flags = result("mine")
    np.testing.assert_array_equal(flags, found.reconstructed)
    np.testing.assert_allclose(dn * 1e-4 - 0.1, found.reflectance, atol=1e-6)
    with h5py.File("out/mine/mine.h5") as file:
        np.testing.assert_allclose(file["uncertainty"][...] * 1e-4, found.uncertainty, atol=1e-6)


@pytest.mark.slow
def test_clear_dates_on_other_pixels_are_brought_onto_the_image(run, here):
    """The ground is smooth, and darker on the clear date, which lies in degrees and is larger."""
    row, col = np.mgrid[:60, :70] / 10
    truth = np.stack([0.1 + 0.03 * np.sin(row + band) + 0.03 * np.cos(col) for band in range(4)]).astype(np.float32)
    image, _ = clouded(truth)
    write(here / "mine_2024-05-10.tif", image, **UTM)
    far = {"crs": "EPSG:4326", "transform": DEGREES["transform"] @ DEGREES["transform"].translation(-20, -20)}
    dark = np.full((4, 120, 130), np.nan, np.float32)
    large = np.pad(0.8 * truth, [(0, 0), (60, 60), (60, 60)], mode="edge")
    place = UTM["transform"] @ UTM["transform"].translation(-60, -60)
    options = {"src_crs": UTM["crs"], "dst_crs": "EPSG:4326", "src_transform": place, "dst_nodata": np.nan}
    reproject(large, dark, dst_transform=far["transform"], resampling=Resampling.cubic, **options)
    write(here / "clear_2024-05-05.tif", dark, **far)
    write(here / "later.tif", np.full((4, 6, 7), 0.3, np.float32), crs=UTM["crs"], transform=UTM["transform"])
    clear = ["--clear", "clear_2024-05-05.tif", "--clear", "later.tif"]
    assert run("mine_2024-05-10.tif", "--mask", "mask.tif").returncode == 0
    alone, _ = result("mine_2024-05-10")
    done = run("mine_2024-05-10.tif", "--mask", "mask.tif", *clear)
    assert done.returncode == 0, done.stderr
    assert "mine_2024-05-10 is made again (changed: input clear 1, input clear 2)" in done.stderr
    shown, _ = result("mine_2024-05-10")
    errors = [np.abs(dn[:, CLOUD] * 1e-4 - 0.1 - truth[:, CLOUD]).mean() for dn in (alone, shown)]
    assert errors[1] < errors[0]
    item = json.loads(Path("out/mine_2024-05-10/mine_2024-05-10.json").read_text())
    assert item["properties"]["datetime"] == "2024-05-10T00:00:00Z"
    assert item["properties"]["cloudjob:source_products"] == "mine_2024-05-10 clear_2024-05-05 later"


@pytest.mark.slow
def test_at_most_three_clear_dates_are_shown_and_that_is_said(run, here):
    write(here / "mine.tif", IMAGE, **UTM)
    names = [f"clear{number}_2024-05-{number:02d}.tif" for number in range(1, 5)]
    for name in names:
        write(here / name, ground(), **UTM)
    done = run("mine.tif", "--mask", "mask.tif", *(part for name in names for part in ("--clear", name)))
    assert done.returncode == 0, done.stderr
    said = "at most 3 clear dates are shown to the network; left out: clear4_2024-05-04.tif"
    assert said in done.stderr
    item = json.loads(Path("out/mine/mine.json").read_text())
    assert item["properties"]["cloudjob:source_products"].split()[1:] == [Path(name).stem for name in names[:3]]


# --- products ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_same_pixels_give_the_bytes_of_infer(finished, tmp_path, monkeypatch):
    """A product and its clear dates, with the settings of restore; from a folder and from an archive."""
    space = RunFolder(copied(finished, tmp_path / "run", until="train"))
    shutil.rmtree(space.drifting, ignore_errors=True)
    pair = next(row for row in map(json.loads, space.pairs.read_text().splitlines()) if row["accepted"])
    assert pair["reference"]
    plain = InferConfig()
    settings = ["seed=0", "masks.cloud_m=100", "infer.reference=nearest"]
    settings += [f"infer.{name}={getattr(plain, name)}" for name in ("tile", "overlap", "steps")]
    overrides = [part for each in settings for part in ("--set", each)]
    good("infer", space.root, "--only", pair["cloudy"], *overrides)
    monkeypatch.chdir(tmp_path)
    image, *clear = (space.safe(pair[role]) for role in ("cloudy", "clear", "reference"))
    dates = [part for each in clear for part in ("--clear", each)]
    newest = checkpoint.newest(space.checkpoints)
    done = good("restore", image, *dates, "--checkpoint", newest, "--out", "out")
    assert "cloud by the scene classification of the product" in done.stderr
    with h5py.File(space.output(pair["cloudy"], ".h5")) as file:
        expected = file["reflectance"][...], file["reconstructed"][...]
    for found, told in zip(result(pair["cloudy"]), expected, strict=True):
        np.testing.assert_array_equal(found, told)
    with zipfile.ZipFile("one.zip", "w") as archive:
        for path in image.rglob("*"):
            archive.write(path, path.relative_to(image.parent))
    good("restore", "one.zip", *dates, "--checkpoint", newest, "--out", "out")
    np.testing.assert_array_equal(result("one")[0], expected[0])


# --- once and again ----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_same_command_does_nothing_more_and_another_says_what_is_made_again(run, here):
    write(here / "mine.tif", IMAGE, **UTM)
    write(here / "other.tif", IMAGE, **UTM)
    assert "restore: 2 done, 0 skipped" in run("mine.tif", "other.tif").stderr
    done = run("mine.tif", "other.tif")
    assert "restore: 0 done, 2 skipped" in done.stderr
    assert done.stdout == "out/mine/mine.tif\nout/other/other.tif\n"
    assert not list(Path("out/.cloudjob/tiles").iterdir())
    assert "mine is made again (changed: infer.members 1 -> 2)" in run("mine.tif", "--members", "2").stderr
    write(here / "mine.tif", IMAGE + 1e-3, **UTM)
    assert "mine is made again (changed: input image)" in run("mine.tif", "--members", "2").stderr
    Path("out/mine/mine.png").unlink()
    assert "mine is made again (output mine/mine.png is gone)" in run("mine.tif", "--members", "2").stderr


def test_an_image_is_another_one_where_what_it_refers_to_is(asked, here):
    """A VRT, which GDAL makes of bands in files of their own."""
    from rasterio.shutil import copy

    write(here / "mine.tif", IMAGE, **UTM)
    copy("mine.tif", "mine.vrt", driver="VRT")
    (before, again) = (restore._digest(asked("mine.vrt")["mine"].image) for _ in range(2))
    assert before == again
    (here / "mine.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")  # as a viewer leaves it
    assert restore._digest(asked("mine.vrt")["mine"].image) == before
    write(here / "mine.tif", IMAGE + 1e-3, **UTM)
    assert restore._digest(asked("mine.vrt")["mine"].image) != before


@pytest.mark.slow
def test_what_was_restored_before_a_stop_is_kept(trained, here, monkeypatch):
    from cloudjob.errors import InterruptedJob
    from cloudjob.restoration.restorer import Restorer
    from cloudjob.run.folder import ResultsFolder

    image, _ = clouded(ground(300, 520), rows=slice(20, 280), cols=slice(20, 500))
    write(here / "mine.tif", image, **UTM)
    request = restore.Request(images=[Path("mine.tif")], checkpoint=trained)
    folder = ResultsFolder(Path("out"))
    scenes = restore.look(request, folder)
    folder.stop_requested = lambda: any(Path("out/.cloudjob/tiles").glob("mine@*/tile-*.npy"))
    with pytest.raises(InterruptedJob):
        restore.run(request, scenes, folder)
    kept = list(Path("out/.cloudjob/tiles").glob("mine@*/tile-*.npy"))
    assert kept
    restored, own = [], Restorer.tiles

    def spy(self, batch, places, *rest, **options):
        restored.extend((tile.row, tile.col) for tile in places)
        return own(self, batch, places, *rest, **options)

    monkeypatch.setattr(Restorer, "tiles", spy)
    folder.stop_requested = lambda: False
    assert restore.run(request, scenes, folder).done == ["mine"]
    names = {path.name for path in kept}
    assert restored
    assert not names & {f"tile-{row:05d}-{col:05d}.npy" for row, col in restored}


@pytest.mark.slow
@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python: pip install mpich")
def test_ranks_share_the_tiles_and_give_the_same_bytes(run, here):
    image, _ = clouded(ground(300, 520), rows=slice(20, 280), cols=slice(20, 500))
    write(here / "mine.tif", image, **UTM)
    assert run("mine.tif").returncode == 0
    alone = Path("out/mine/mine.h5").read_bytes()
    shutil.rmtree("out")
    done = run("mine.tif", launcher=[MPIEXEC, "-n", "2"])
    assert done.returncode == 0, done.stderr
    assert "restore: 1 done" in done.stderr
    assert "2 ranks" in done.stderr
    assert done.stdout == "out/mine/mine.tif\n"
    assert Path("out/mine/mine.h5").read_bytes() == alone


# --- mistakes ----------------------------------------------------------------------------------------------------
@pytest.fixture
def asked(trained, here):
    """A function: the scenes that a request comes to, or the mistake in it."""
    from cloudjob.run.folder import ResultsFolder

    def look(*images, **options):
        request = restore.Request(**({"images": [Path(name) for name in images], "checkpoint": trained} | options))
        return restore.look(request, ResultsFolder(Path("out")))

    return look


MISTAKES = {
    "two of one name": (["mine.tif", "sub/mine.tif"], {}, r"mine\.tif and sub/mine\.tif would both become mine"),
    "twice": (["mine.tif", "mine.tif"], {}, "would both become mine"),
    "not there": (["no.tif"], {}, r"no\.tif: no such file or folder"),
    "no product": (["sub"], {}, r"sub/MTD_MSIL2A\.xml: missing; a folder or archive must be"),
    "no image": (["text.tif"], {}, "not readable as an image"),
    "no checkpoint": (["mine.tif"], {"checkpoint": Path("no.pt")}, r"checkpoint no\.pt: no such file"),
    "members": (["mine.tif"], {"members": 65}, "--members 65: 1 to 64"),
    "a band twice": (["mine.tif"], {"bands": "1,2,3,3"}, "one of them twice"),
    "three bands": (["mask.tif"], {}, r"mask\.tif has 1 bands \(1\), and four are needed.*rio stack"),
    "scale": (["mine.tif"], {"scale": 0.0}, "scale 0 and offset 0 give no reflectance"),
    "scale of nothing": (["mine.tif"], {"scale": float("nan")}, "scale nan and offset 0 give no reflectance"),
    "scale of percent": (["mine.tif"], {"scale": 100.0}, "its reflectance is about .*, and should lie between 0 and 1"),
    "offset": (["mine.tif"], {"scale": 1e-4, "offset": -1000.0}, "its reflectance is about -1e.03"),
    "offset without end": (["mine.tif"], {"offset": float("inf")}, "scale 1 and offset inf give no reflectance"),
    "a distant file": (["https:/x.org/a.tif"], {}, "no such file or folder; fetch it first"),
    "a clear date of itself": (["mine.tif"], {"clear": [Path("mine.tif")]}, "is the image itself"),
    "mask of bands": (["mine.tif"], {"mask": Path("bare.tif")}, r"bare\.tif: has 4 bands, and a mask has one"),
    "bands": (["mine.tif"], {"bands": "1,2,3,7"}, r"mine\.tif has no band 7; it has 1 \(B04\)"),
    "nameless": (["bare.tif"], {}, "does not tell which of its bands are which"),
    "mask of several": (["mine.tif", "bare.tif"], {"mask": Path("mask.tif")}, "is the mask of one image"),
    "mask without values": (["mine.tif"], {"mask": Path("three.tif")}, "nobody says what its values 1, 2, 3 mean"),
    "mask elsewhere": (["mine.tif"], {"mask": Path("far.tif")}, "shows other ground"),
    "clear date elsewhere": (["mine.tif"], {"clear": [Path("away.tif")]}, "shows other ground"),
    "clear date of no place": (["mine.tif"], {"clear": [Path("small.tif")]}, "9 x 9 pixels, the image has 60 x 70"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(asked, here, mistake):
    images, options, why = MISTAKES[mistake]
    (here / "sub").mkdir()
    for name in ("mine.tif", "sub/mine.tif"):
        write(here / name, IMAGE, **UTM)
    write(here / "bare.tif", IMAGE, names=None, **UTM)
    write(here / "small.tif", GROUND[:, :9, :9])
    write(here / "three.tif", np.arange(4200, dtype=np.uint8).reshape(1, 60, 70) % 3 + 1, names=None, **UTM)
    write(here / "away.tif", IMAGE, crs="EPSG:32633", transform=UTM["transform"])
    write(here / "far.tif", np.ones((1, 60, 70), np.float32), names=None, crs="EPSG:32633", transform=UTM["transform"])
    (here / "text.tif").write_text("text")
    with pytest.raises(cloudjob.errors.ConfigError, match=why) as caught:
        asked(*images, **options)
    assert caught.value.exit_code == 2
    assert not Path("out").exists()


def test_an_image_is_never_written_over(asked, here):
    (here / "out" / "mine").mkdir(parents=True)
    write(here / "out" / "mine" / "mine.tif", IMAGE, **UTM)
    with pytest.raises(cloudjob.errors.ConfigError, match="is read here, and would be written over"):
        asked("out/mine/mine.tif")


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("a.tif", "a"),
        ("a.b.TIF", "a.b"),
        (
            "x/S2A_MSIL2A_20240301T222541_N0510_R029_T05WPS_20240302T001122.SAFE",
            "S2A_MSIL2A_20240301T222541_N0510_R029_T05WPS_20240302T001122",
        ),
        ("S2A.SAFE.zip", "S2A"),
        ("cube.nc", "cube"),
        ("noending", "noending"),
    ],
)
def test_names_of_results(name, called):
    assert restore.name_of(Path(name)) == called


@pytest.mark.slow
def test_a_mistake_of_the_command_line_ends_with_2_and_one_message(run, here, trained):
    write(here / "mine.tif", IMAGE, **UTM)
    clean_message(run("mine.tif", "--mask-values", "fmask"), 2, "give one with --mask")
    clean_message(
        run("mine.tif", "--mask", "mask.tif", "--mask-values", "fmask5"), 2, "--mask-values fmask5", "omnicloudmask"
    )
    clean_message(run("mine.tif", "--mask", "mask.tif", "--mask-values", "{cloud: [4]}"), 2, "what its value 1 means")
    clean_message(run("mine.tif", "--bands", "4,3"), 2, "2 bands, four are needed")
    assert not Path("out").exists()
    Path("out").write_text("")
    clean_message(run("mine.tif"), 2, "--out out is a file")
    below = call("restore", "mine.tif", "--checkpoint", trained, "--out", "out/below")
    clean_message(below, 2, "out/below cannot be written to (Not a directory)", "with --out")


@pytest.mark.slow
def test_pixels_of_another_size_are_restored_with_a_warning(run, here):
    write(here / "mine.tif", IMAGE, crs=UTM["crs"], transform=UTM["transform"] @ UTM["transform"].scale(6))
    done = run("mine.tif")
    assert done.returncode == 0
    assert "WARNING: mine.tif: its pixels are 60 m wide" in done.stderr
    assert "cloud by a rough test" in done.stderr


@pytest.mark.slow
def test_an_image_that_breaks_fails_alone(run, here):
    """Its head can be read, its pixels cannot."""
    write(here / "good.tif", IMAGE, **UTM)
    write(here / "broken.tif", IMAGE, tiled=True, blockxsize=16, blockysize=16, compress="deflate", **UTM)
    data = bytearray((here / "broken.tif").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = os.urandom(4000)
    (here / "broken.tif").write_bytes(data)
    done = run("good.tif", "broken.tif")
    assert done.returncode in (2, 4), done.stderr
    assert "broken.tif: not readable as an image" in done.stderr
    assert "Traceback" not in done.stderr
