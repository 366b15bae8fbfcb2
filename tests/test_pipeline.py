"""The whole pipeline through the front door: one small run, then everything that can happen to it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import shapely
from forked import Forked
from front_door import CLOUDJOB, CONFIG, STAGES, call, clean_message, copied, forget, good, same
from rasterio.warp import transform_geom
from scipy import ndimage

from cloudjob.restoration.output import read_h5
from cloudjob.sentinel2.product import Product, read_bands, read_scl

pytestmark = pytest.mark.slow

SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
MPIEXEC = Path(sys.executable).with_name("mpiexec")
needs_mpiexec = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python: pip install mpich")


def products(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "outputs").glob("*/"))


@pytest.fixture(scope="session")
def run(finished) -> Path:
    return finished


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """A copy of the finished run elsewhere: what a moved run folder is."""
    return copied(run, tmp_path / "moved")


# --- what comes out --------------------------------------------------------------------------------------------
def test_the_report_is_named_and_the_scores_are_said(run):
    said = run.with_suffix(".txt").read_text()
    assert "report: " in said
    assert "nearest_clear" in said
    assert "PSNR dB" in said


def test_output_opens_everywhere_with_the_same_pixels(run):
    xarray = pytest.importorskip("xarray")
    for name in products(run):
        base = run / "outputs" / name / name
        product = Product.open(run / "scenes" / f"{name}.SAFE")
        with h5py.File(f"{base}.h5") as file:
            dn = file["reflectance"][:]
            flags = file["reconstructed"][:]
            assert "Contains modified Copernicus Sentinel data 2024" in file.attrs["references"]
            assert name in file.attrs["source_products"]
        with xarray.open_dataset(f"{base}.h5", engine="h5netcdf") as data:
            values = data["reflectance"].values
            np.testing.assert_allclose(values, np.where(dn == 0, np.nan, dn * 1e-4 - 0.1), atol=1e-6)
            assert list(data["band"].values) == ["B04", "B03", "B02", "B08"]
            assert data["x"].values[0] == product.transform.c + 5
            assert data["y"].values[0] == product.transform.f - 5
        with rasterio.open(f"{base}.tif") as tif, rasterio.open(f"HDF5:{base}.h5://reflectance") as hdf5:
            for source in (tif, hdf5):
                assert source.crs.to_epsg() == rasterio.CRS.from_string(product.crs).to_epsg()
                assert source.transform == product.transform
                np.testing.assert_array_equal(source.read([1, 2, 3, 4]), dn)
                assert source.descriptions[:4] == ("B04", "B03", "B02", "B08")
            assert tif.descriptions[4:] == ("reconstructed",)
            np.testing.assert_array_equal(tif.read(5), flags)
        item = json.loads(Path(f"{base}.json").read_text())
        assert item["stac_version"] == "1.1.0"
        assert item["assets"]["tif"]["file:size"] == Path(f"{base}.tif").stat().st_size
        assert set(np.unique(flags)) <= {0, 1, 2, 255}
        assert (flags == 1).any()
    collection = json.loads((run / "outputs" / "collection.json").read_text())
    hrefs = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    assert hrefs == [f"./{name}/{name}.json" for name in products(run)]


def test_observed_clear_pixels_are_the_input_bit_for_bit(run):
    for name in products(run):
        product = Product.open(run / "scenes" / f"{name}.SAFE")
        source = read_bands(product)
        with h5py.File(run / "outputs" / name / f"{name}.h5") as file:
            dn, made = file["reflectance"][:], file["reconstructed"][:] > 0
        np.testing.assert_array_equal(dn[:, ~made], source[:, ~made])
        hidden = np.isin(read_scl(product), (3, 8, 9, 10)).repeat(2, 0).repeat(2, 1)
        assert made[hidden].mean() > 0.9
        assert (dn[:, hidden & made] != source[:, hidden & made]).mean() > 0.9
        far = ~ndimage.binary_dilation(hidden, np.ones((3, 3)), iterations=13)  # grown by 100 m at most
        assert made[far].mean() < 0.02


def test_scores_hold_every_method_on_every_kind_of_pixel(run):
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["changed_clear_pixels"] == 0
    seams = summary["seam_index"]
    assert seams["ours"] == pytest.approx(seams["truth"], abs=0.5)
    scores = summary["scores"]["all"]
    methods = ("ours", "cloudy", "mean_fill", "nearest_clear", "nearest_matched", "first_guess", "poisson")
    assert set(scores) == {*methods, "other_matched"}
    assert all(set(on) == {"thick", "veil", "shadow", "rim", "cloud", "clear", "all"} for on in scores.values())
    assert len({on["cloud"]["pixels"] for on in scores.values()}) == 1
    assert scores["ours"]["cloud"]["psnr"] > scores["cloudy"]["cloud"]["psnr"] + 5


def test_report_and_review_are_pages_that_need_nothing_else(run):
    report = (run / "report" / "index.html").read_text()
    assert report.count("data:image/webp;base64,") >= len(products(run))
    page = report.split("<summary>Configuration")[0].replace("http://www.w3.org", "")
    assert "http:" not in page  # a picture's base64 may hold the letters, but no colon
    assert "https:" not in page
    review = (run / "review" / "index.html").read_text()
    for image in (run / "review" / "images").iterdir():
        assert image.name in review


def test_splits_share_no_ground_and_no_acquisition(run):
    index = json.loads((run / "shards" / "index.json").read_text())
    assert set(index["split"]["pairs"].values()) == {"train", "val", "test"}
    ground, acquisitions = {}, {}
    for entry in index["files"]:
        split = entry["split"]
        assert index["split"]["pairs"][entry["pair"]] == split
        with h5py.File(run / "shards" / entry["file"]) as file:
            (pair,) = json.loads(file.attrs["pairs"])
            rows, cols, window = file["row"][:], file["col"][:], file["mask"].shape[-1]
        product = Product.open(run / "scenes" / f"{pair['products']['cloudy']}.SAFE")
        for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
            left, top = product.transform.c, product.transform.f
            corners = [(left + 10 * (col + x * window), top - 10 * (row + y * window)) for x, y in SQUARE]
            ring = transform_geom(product.crs, "EPSG:4326", {"type": "Polygon", "coordinates": [corners]})
            ground.setdefault(split, []).append(shapely.geometry.shape(ring))
        names = pair["products"].values()
        acquisitions.setdefault(split, set()).update(tuple(name.split("_")[0:3:2]) for name in names)
    for one, other in combinations(ground, 2):
        assert shapely.union_all(ground[one]).intersection(shapely.union_all(ground[other])).area == 0
        assert not acquisitions[one] & acquisitions[other]


def test_members_leave_their_spread_beside_the_reflectance_and_bands_are_written_as_the_source_has_them(copy):
    name = products(copy)[0]
    options = ("--set", "infer.members=3", "--set", "infer.like_source=true")
    good("infer", copy, "--only", name, *options)
    with h5py.File(copy / "outputs" / name / f"{name}.h5") as file:
        spread, flags = file["uncertainty"][:], file["reconstructed"][:]
        assert file.attrs["members"] == 3
    assert (spread[:, flags == 1] > 0).mean() > 0.9
    assert (spread[:, flags == 0] == 0).all()
    like = copy / "outputs" / name / f"{name}.SAFE"
    np.testing.assert_array_equal(read_bands(Product.open(like)), read_h5(like.with_suffix(".h5"))[0])
    next(like.rglob("*_B08_10m.jp2")).write_bytes(b"")
    assert "_B08_10m.jp2" in good("plan", copy).stdout  # what it put out is not whole


# --- what it says ----------------------------------------------------------------------------------------------
def test_again_there_is_nothing_to_do_wherever_the_folder_lies(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("records/*/*.json")}
    done = good("run", copy)
    assert "0 done" in done.stderr
    assert all(f"{stage}: 0 done" in done.stderr for stage in STAGES)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("records/*/*.json")}


def test_plan_status_and_items(copy):
    plan = json.loads(good("plan", copy, "--json").stdout)
    assert [row["stage"] for row in plan["stages"]] == list(STAGES)
    assert all(item["why"] is None for row in plan["stages"] for item in row["items"])
    text = good("plan", copy, "--set", "train.lr=0.5").stdout
    assert "train.lr 0.001 -> 0.5" in text
    status = json.loads(good("status", copy, "--json").stdout)
    assert status["training"]["seen"] == status["training"]["of"]
    number = len(products(copy))
    assert good("items", "infer", copy, "--as-array").stdout.strip() == f"0-{number - 1}"
    assert good("items", "infer", copy, "--missing").stdout == ""
    shutil.rmtree(copy / "outputs" / products(copy)[1])
    assert good("items", "infer", copy, "--missing", "--as-array").stdout.strip() == "1"
    good("infer", copy, "--index", 1)
    assert good("items", "infer", copy, "--missing").stdout == ""
    clean_message(call("infer", copy, "--index", 99), 2, "0 to")


def test_answers_come_without_the_heavy_libraries(run):
    code = (
        "import sys; from cloudjob.cli.dispatch import main; "
        f"main(['plan', {str(run)!r}]); main(['status', {str(run)!r}]); "
        "print([m for m in ('torch', 'rasterio', 'numpy', 'requests', 'shapely') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_rejected_pair_is_neither_fetched_nor_used_and_the_others_stay(run, copy):
    decisions = copy / "review" / "decisions.csv"
    header, *rows = decisions.read_text().splitlines()
    assert all(",accept,,rule," in row for row in rows)
    decisions.write_text(
        "\n".join([header, rows[0].replace(",accept,,rule,", ',reject,"haze, all over",me,'), *rows[1:]])
    )
    pair = rows[0].split(",")[0]
    done = call("run", copy)
    assert done.returncode == 2
    assert "review: 0 done" in done.stderr
    assert "2 accepted, 1 rejected" in done.stderr
    assert "shards: others than it was trained on" in done.stderr  # it is not thrown away unasked
    good("train", copy, "--set", "train.epochs=0.2", "--force")
    good("run", copy)
    index = json.loads((copy / "shards" / "index.json").read_text())
    assert pair not in {entry["pair"] for entry in index["files"]}
    assert ',reject,"haze, all over",me,' in decisions.read_text()
    assert len(json.loads((copy / "evaluation" / "summary.json").read_text())["scenes"]) <= 2


# --- more ranks ------------------------------------------------------------------------------------------------
@needs_mpiexec
def test_three_mpi_ranks_give_the_bytes_of_one_process(run, copy):
    """One rank alone: tests/hpc/test_mpi.py; two: below, and on a cluster."""
    forget(copy, "infer")
    good("infer", copy, launcher=(MPIEXEC, "-n", "3"))
    for name in products(run):
        for suffix in ("h5", "tif", "json", "png"):
            file = Path("outputs") / name / f"{name}.{suffix}"
            assert (run / file).read_bytes() == (copy / file).read_bytes()


@needs_mpiexec
def test_two_ranks_stop_together_and_fail_together(copy):
    forget(copy, "infer")
    launcher = (MPIEXEC, "-n", "2")
    command = [*map(str, launcher), *CLOUDJOB, "infer", str(copy), "--set", "infer.steps=100"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(copy.rglob(".work-*/tile-*.npy")), process)
    (copy / "STOP").touch()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "finished tiles are kept" in said
    (copy / "STOP").unlink()
    band = next((copy / "scenes" / f"{last_product(copy)}.SAFE").rglob("*_B03_10m.jp2"))
    band.write_bytes(bytes(len(band.read_bytes())))
    done = call("infer", copy, "--set", "infer.steps=1", launcher=launcher)
    clean_message(done, 4, band.name)


@needs_mpiexec
def test_ranks_killed_twice_leave_what_others_go_on_from_to_the_same_bytes(run, copy):
    """Three ranks while they decode and match, two while they restore tiles; one process alone ends it."""
    forget(copy, "infer")
    for ranks, mark in ((3, ".work-*/done/decoding-cloudy-B02-*"), (2, ".work-*/tile-*.npy")):
        command = [str(MPIEXEC), "-n", str(ranks), *CLOUDJOB, "infer", str(copy)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda mark=mark: list(copy.rglob(mark)), process)
        for pid in reversed(tree(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    kept = list(copy.rglob(".work-*/done/*"))
    assert kept
    good("infer", copy)
    for name in products(run):
        for suffix in ("h5", "tif", "json", "png"):
            file = Path("outputs") / name / f"{name}.{suffix}"
            assert (run / file).read_bytes() == (copy / file).read_bytes()


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        tasks = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [pid, *(below for children in tasks for child in children for below in tree(int(child)))]


def last_product(run: Path) -> str:
    """The last cloudy product of the run."""
    return json.loads(good("plan", run, "--json").stdout)["stages"][STAGES.index("infer")]["items"][-1]["item"]


# --- kills and stops -------------------------------------------------------------------------------------------
def start(*arguments) -> tuple[subprocess.Popen, list[str]]:
    """The command in the background, and the lines that it says, as they come."""
    process = Forked([*CLOUDJOB, *map(str, arguments)], stderr=subprocess.PIPE, text=True, bufsize=1)
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True).start()
    return process, lines


def wait_for(condition, process, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)


def finished(run: Path) -> dict[Path, int]:
    done = {}
    for path in run.rglob("records/*/*.json"):
        if not path.name.startswith("."):
            done[path] = path.stat().st_mtime_ns
    return done


def test_killed_in_every_stage_it_ends_as_if_nothing_had_happened(run, tmp_path):
    """SIGKILL once in each stage, at a random moment: no finished item is made twice, and all bytes are the same."""
    again, chance = tmp_path / "killed", random.Random(0)
    process, _ = start("run", CONFIG, "--run-dir", again)
    wait_for(lambda: (again / "archive").exists(), process)
    time.sleep(chance.uniform(0, 1))
    process.kill()  # in the midst of making the archive
    process.wait()
    for stage, before in zip(STAGES, ("archive", *STAGES[:-1]), strict=True):
        process, lines = start("run", CONFIG, "--run-dir", again)
        wait_for(lambda lines=lines, before=before: any(line.startswith(f"{before}: ") for line in lines), process)
        records = [json.loads(path.read_text()) for path in (run / "records" / stage).iterdir()]
        time.sleep(chance.uniform(0.1, 0.9) * min(sum(record["seconds"] for record in records) + 0.02, 20))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = finished(again)
        following, seen = start("run", CONFIG, "--run-dir", again)
        with contextlib.suppress(AssertionError):
            wait_for(lambda seen=seen, stage=stage: any(line.startswith(f"{stage}: ") for line in seen), following)
        following.kill()
        following.wait()
        now = finished(again)
        twice = [str(path) for path, moment in done.items() if now.get(path) != moment]
        assert twice == [], f"made again after a kill in {stage}"
    good("run", CONFIG, "--run-dir", again)
    same(run, again)
    assert [path.name for path in again.rglob(".tmp-*")] == []


# --- what users do wrong, and what happens to disks ------------------------------------------------------------
def test_a_truncated_band_is_named_and_fetched_again(run, copy):
    name = products(copy)[0]
    band = next((copy / "scenes" / f"{name}.SAFE").rglob("*_B03_10m.jp2"))
    band.write_bytes(band.read_bytes()[:-100])
    assert "3 skipped" in good("shard", copy).stderr  # what is made does not need it
    forget(copy, "shard")
    clean_message(call("shard", copy), 4, band.name, "cloudjob download", "2 done, 0 skipped, 0 rejected, 1 failed")
    index = good("items", "shard", copy, "--missing", "--as-array").stdout.strip()
    clean_message(call("shard", copy, "--index", index), 3, band.name, "cloudjob download")
    done = good("run", copy)
    assert "download: 1 done" in done.stderr
    same(run, copy)


@pytest.mark.parametrize(("stage", "file"), [("shard", "B03_10m"), ("infer", "B03_10m"), ("evaluate", "SCL_20m")])
def test_a_file_with_a_changed_byte_is_set_aside_named_and_fetched_again(run, copy, stage, file):
    """It is as long as before, and can still be decoded: to another picture."""
    name = products(copy)[0]
    path = next((copy / "scenes" / f"{name}.SAFE").rglob(f"*_{file}.jp2"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    forget(copy, stage)
    clean_message(call(stage, copy), 4, path.name, "set aside")
    assert not path.exists()
    fetches = "preview" if file == "SCL_20m" else "download"
    assert path.name in call("plan", copy).stdout
    assert f"{fetches}: 1 done" in good("run", copy).stderr
    same(run, copy)


def test_an_empty_search_says_what_to_widen(tmp_path):
    query = "search.clear={start: 2019-03-01, end: 2019-03-30, cloud: [0, 1]}"
    done = call("search", CONFIG, "--run-dir", tmp_path / "run", "--set", query)
    clean_message(done, 2, "search.clear", "widen")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "train.presset=tiny"], 2, ["did you mean preset"]),
        (["--set", "search.polygon=[[-162, 68], [-160, 70], [-150, 70], [-150, 68]]"], 2, ["not closed"]),
        (["--set", "search.polygon=[[-162, 68], [-150, 70], [-150, 68], [-162, 70], [-162, 68]]"], 2, ["Self-inters"]),
        (["--from", "train", "--until", "shard"], 2, ["comes after"]),
        (["--from", "train"], 3, ["cloudjob shard"]),
    ],
)
def test_mistakes_get_one_clear_message(tmp_path, arguments, code, words):
    clean_message(call("run", CONFIG, "--run-dir", tmp_path / "run", *arguments), code, *words)


def test_missing_configuration_and_missing_raster(tmp_path):
    clean_message(call("run", tmp_path / "no.yaml"), 2, "no.yaml", "no such file")
    pair = "{tile: 05WPS, cloudy: a.tif, cloudy_date: 2024-03-10, clear: b.tif, clear_date: 2024-03-20}"
    done = call("search", CONFIG, "--run-dir", tmp_path, "--set", f"archive={{rasters: [{pair}]}}")
    clean_message(done, 2, "a.tif")


def test_without_credentials_the_variables_are_named(copy):
    forget(copy, "download")
    next((copy / "scenes").rglob("*_B03_10m.jp2")).unlink()
    env = {"CDSE_USERNAME": "", "CDSE_PASSWORD": "", "CDSE_TOKEN_FILE": ""}
    clean_message(call("download", copy, "--set", "archive=null", env=env), 2, "CDSE_USERNAME")


def test_a_full_disk_costs_nothing_that_was_finished(run, disk):
    own = ("run", CONFIG, "--run-dir", disk(6) / "run", "--set", f"archive.path={run / 'archive'}")
    clean_message(call(*own), 4, "no space left", "run the same command again")
    done = finished(disk(200) / "run")
    assert done
    good(*own)
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())
    same(run, disk(200) / "run")
