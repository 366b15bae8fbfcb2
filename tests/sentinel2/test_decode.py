import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.sentinel2 import decode

RNG = np.random.default_rng(3)


def write(path: Path, pixels: np.ndarray, tile: int) -> decode.Band:
    """ESA's layout: lossless, 15 bits, five resolutions. An offset of 0 gives DN that are 1000 higher."""
    size = {"height": pixels.shape[0], "width": pixels.shape[1], "BLOCKXSIZE": tile, "BLOCKYSIZE": tile}
    layout = {"QUALITY": 100, "REVERSIBLE": "YES", "NBITS": 15, "RESOLUTIONS": 5, "PROGRESSION": "LRCP"}
    with rasterio.open(path, "w", driver="JP2OpenJPEG", dtype="uint16", count=1, **size, **layout) as image:
        image.write(pixels, 1)
    return decode.Band(path, pixels.shape, offset=0, quantification=10000)


@pytest.fixture(params=[(301, 206)])
def small(request, tmp_path, monkeypatch) -> tuple[list[decode.Band], np.ndarray]:
    """Three bands in tiles of 64, which processes decode although they are small, and what they hold."""
    monkeypatch.setattr(decode, "_SMALL", 0)
    pixels = RNG.integers(1, 30000, (3, *request.param), dtype=np.uint16)
    return [write(tmp_path / f"{i}.jp2", band, tile=64) for i, band in enumerate(pixels)], pixels + 1000


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[decode.Band, np.ndarray]:
    """A band of 3 x 3 tiles of 1024, the last ones narrow."""
    pixels = RNG.integers(1000, 1128, (2100, 2050), dtype=np.uint16)
    return write(tmp_path_factory.mktemp("large") / "band.jp2", pixels, tile=1024), pixels + 1000


def exhaust(reading) -> None:
    """To the end, keeping nothing."""
    deque(reading, maxlen=0)


def children() -> list[int]:
    """The processes that decode; other tests may have started one that serves them all."""
    every = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in every if "decode" in Path(f"/proc/{pid}/cmdline").read_text()]


def held() -> tuple:
    """What must not be left behind: processes, threads, open files, shared memory (which never has a name)."""
    maps = Path("/proc/self/maps").read_text().count("memfd:")
    return children(), threading.active_count(), sorted(os.listdir("/proc/self/fd")), maps


@pytest.mark.slow
@pytest.mark.parametrize("small", [(301, 206), (64, 65), (193, 40)], indirect=True)
@pytest.mark.parametrize("processes", [1, 2, 7])
def test_pixels_are_the_same_whoever_decodes(small, processes):
    bands, expected = small
    before = held()
    tops, copies = [], []
    for top, pixels in decode.stripes(bands, rows=64, processes=processes):
        assert len(children()) == (0 if processes == 1 else min(processes, 3))
        tops.append(top)
        copies.append(pixels.copy())
    assert tops == list(range(0, expected.shape[1], 64))
    assert np.array_equal(np.concatenate(copies, axis=1), expected)
    del pixels
    assert held() == before


@pytest.mark.slow
def test_processes_decode_a_large_band_as_we_do(large):
    band, expected = large
    for top, pixels in decode.stripes([band, band], rows=1024, processes=2):
        assert len(children()) == 2
        assert np.array_equal(pixels, [expected[top : top + 1024]] * 2)


def test_a_small_scene_starts_no_process(large):
    band, _ = large
    small = decode.Band(band.path, (2000, 2048), 0, 10000)
    with pytest.raises(CorruptFileError, match="the metadata say"):  # by this process, which has not a child
        next(decode.stripes([small], rows=1024, processes=2))


@pytest.mark.slow
def test_a_pass_over_the_stripes_reads_the_file_once(large):
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    band, _ = large
    next(decode.stripes([band], rows=1024, processes=1))
    before = bytes_read()
    exhaust(decode.stripes([band], rows=1024, processes=1))
    assert band.path.stat().st_size <= bytes_read() - before < 1.2 * band.path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_truncated_file_is_named_and_nothing_is_left(large, tmp_path, processes):
    band, _ = large
    cut = tmp_path / "cut.jp2"
    cut.write_bytes(band.path.read_bytes()[:-100])
    before = held()
    with pytest.raises(CorruptFileError, match=rf"^{cut}: cannot be decoded \(.*\)") as error:
        exhaust(decode.stripes([band, decode.Band(cut, band.shape, 0, 10000)], rows=1024, processes=processes))
    assert error.value.path == cut
    assert held() == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "interrupt", "forget"])
def test_stopping_in_the_middle_leaves_nothing(small, how):
    before = held()
    reading = decode.stripes(small[0], rows=32, processes=2)
    next(reading)
    assert children()
    if how == "close":
        reading.close()
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            reading.throw(KeyboardInterrupt)
    del reading
    assert held() == before


@pytest.mark.slow
def test_the_pixels_outlive_the_processes(small):
    bands, expected = small
    reading = decode.stripes(bands, rows=32, processes=2)
    _, pixels = next(reading)
    reading.close()
    assert np.array_equal(pixels, expected[:, :32])


@pytest.mark.slow
def test_the_processes_leave_stopping_to_their_parent(small):
    bands, expected = small
    for top, pixels in decode.stripes(bands, rows=64, processes=2):
        for child in children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                os.kill(child, number)
        assert np.array_equal(pixels, expected[:, top : top + 64])


@pytest.mark.slow
def test_a_process_that_was_killed_is_an_error_with_the_file(small):
    bands, _ = small
    before = held()
    reading = decode.stripes(bands, rows=16, processes=2)
    next(reading)
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(ItemError, match=r"\d\.jp2: the process that decoded it ended with -9"):
        exhaust(reading)
    del reading
    assert held() == before


SCRIPT = """  # without a guard: the processes must not import it
import os, signal, sys
from pathlib import Path
from cloudjob.sentinel2 import decode
band = decode.Band(Path(sys.argv[1]), (2100, 2050), 0, 10000)
for _ in decode.stripes([band, band], rows=1024, processes=2):
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["whole", "killed"])
def test_a_script_of_any_kind_and_end_leaves_no_process(large, tmp_path, end):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = {**os.environ, "PYTHONPATH": str(Path(decode.__file__).parents[2])}
    command = [sys.executable, "script.py", str(large[0].path), end]
    done = subprocess.run(command, cwd=tmp_path, env=path, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == (-9 if end == "killed" else 0)
    pids = set(done.stdout.split())
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def alive(pid: str) -> bool:
    try:
        return "decode" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_without_memfd_a_file_without_a_name_does(small, tmp_path, monkeypatch):
    bands, expected = small
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for top, pixels in decode.stripes(bands, rows=64, processes=2):
        assert np.array_equal(pixels, expected[:, top : top + 64])
        assert not os.listdir(folder)


@pytest.mark.slow
def test_a_process_imports_little():
    """Besides what rasterio does."""
    code = "import sys, rasterio; own = {*sys.modules}; import cloudjob.sentinel2.decode as decode; "
    code += "print(decode.__name__, *{name.split('.')[0] for name in {*sys.modules} - own})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cloudjob" in loaded
    assert not {"torch", "scipy", "pydantic", "multiprocessing", "mpi4py", "shapely", "h5py"} & set(loaded)


def test_threads_and_cache_of_gdal_are_ours(large, monkeypatch):
    monkeypatch.setenv("GDAL_NUM_THREADS", "7")
    monkeypatch.setenv("GDAL_CACHEMAX", "1000")
    with decode._open(large[0].path, (1, 2100, 2050), "uint16"):
        assert rasterio.env.getenv()["GDAL_NUM_THREADS"] == "1"
        assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == 16 << 20


@pytest.mark.parametrize("step", [2, 4, 8, 16])
def test_a_reduced_band_is_the_resolution_level_of_the_file(large, step):
    band, _ = large
    with rasterio.open(band.path, overview_level=[2, 4, 8, 16].index(step)) as level:
        assert np.array_equal(band.reduced(step), level.read(1) + 1000)


@pytest.mark.parametrize("step", [2, 4, 8, 16])
def test_a_reduced_band_shows_no_pixel_that_is_mixed_with_no_data(tmp_path, step):
    rows, columns = np.ogrid[:1100, :1030]
    valid = columns + 0.3 * rows > 450
    band = write(tmp_path / "edge.jp2", np.where(valid, 3000, 0).astype(np.uint16), tile=1024)
    reduced = band.reduced(step)
    seen = reduced[reduced > 0]
    assert abs(seen.astype(int) - 4000).max() <= 20
    assert abs(seen.size * step**2 - valid.sum()) < 5 * step * 1100


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 12])
def test_what_no_level_has_is_made_of_the_coarsest_that_divides_it(tmp_path, step):
    pixels = np.random.default_rng(0).integers(1, 9000, (120, 96)).astype(np.uint16)
    path = tmp_path / "B04.tif"
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": 120, "width": 96, "tiled": True}
    with rasterio.open(path, "w", **profile, blockxsize=16, blockysize=16) as image:
        image.write(pixels, 1)
        image.build_overviews([2, 4], Resampling.average)
    found = decode.Band(path, pixels.shape, 0, 10000).reduced(step)
    cells = pixels.reshape(120 // step, step, 96 // step, step).mean((1, 3)) + 1000
    assert found.shape == cells.shape
    assert np.abs(found - cells).max() <= 1
