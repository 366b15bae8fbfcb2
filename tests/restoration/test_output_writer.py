"""Rows in, whole files out: however they come, and whatever goes wrong between."""

import errno
import io
import os

import numpy as np
import pytest
import scene_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scene_files import PRODUCT, file, header, pixels

from cloudjob.errors import DiskFullError
from cloudjob.files import file_sha256
from cloudjob.restoration import output
from cloudjob.restoration.output import tiff
from cloudjob.sentinel2.render import true_colour


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_data_are_credited_to_the_year_of_sensing():
    assert header(pixels(8, 9)).attribution == "Contains modified Copernicus Sentinel data 2024"


def test_the_files_and_their_digests(tmp_path):
    scene = pixels(8, 9)
    with output.Writer(tmp_path / PRODUCT / PRODUCT, header(scene)) as writer:
        writer.rows(0, scene.reflectance, scene.reconstructed, scene.uncertainty)
    found = {path.name: digest for path, digest in writer.files.items()}
    names = [
        "B04",
        "B03",
        "B02",
        "B08",
        "reconstructed",
        *(f"uncertainty_{each}" for each in ("B04", "B03", "B02", "B08")),
    ]
    suffixes = [".tif", ".h5", *(f"_{name}.vrt" for name in names), ".h5.aux.xml", ".png", ".json"]
    assert list(found) == [f"{PRODUCT}{suffix}" for suffix in suffixes]
    assert {path.name for path in (tmp_path / PRODUCT).iterdir()} == set(found)
    assert all(file_sha256(tmp_path / PRODUCT / name) == digest for name, digest in found.items())


@pytest.mark.slow
@settings(max_examples=10)
@given(st.lists(st.integers(1, 600), min_size=1), st.integers(1, 3))
def test_bytes_depend_on_the_pixels_alone(tmp_path_factory, stripes, threads):
    """Not on how they come, nor on who compresses them."""
    scene = pixels(700, 40)
    folder = tmp_path_factory.mktemp("bytes")
    once = scene_files.write(folder / "once", scene)
    with output.Writer(folder / "again" / PRODUCT, header(scene), threads=threads) as writer:
        top = 0
        for rows in [*stripes, 700]:
            here = np.s_[..., top : top + rows, :]
            if top < 700:
                shown = [layer[here].copy() for layer in (scene.reflectance, scene.reconstructed, scene.uncertainty)]
                writer.rows(top, *shown)
                for layer in shown:
                    layer[:] = 7  # the caller's own again
            top += rows
    assert contents(folder / "again") == contents(once.parent)


@pytest.mark.parametrize(("top", "rows", "columns", "layers"), [(1, 4, 9, 3), (0, 9, 9, 3), (0, 4, 8, 3), (0, 4, 9, 2)])
def test_rows_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, top, rows, columns, layers):
    scene = pixels(8, 9)
    given = [layer[..., :rows, :columns] for layer in (scene.reflectance, scene.reconstructed, scene.uncertainty)]
    given = [np.resize(layer, (*layer.shape[:-2], rows, columns)) for layer in given]
    with (
        pytest.raises(ValueError, match=r"expected|do not fit"),
        output.Writer(tmp_path / "a", header(scene)) as writer,
    ):
        writer.rows(top, *given[:layers])
    assert not list(tmp_path.iterdir())


def test_a_scene_that_ends_early_has_no_files(tmp_path):
    scene = pixels(8, 9)
    with pytest.raises(ValueError, match="7 rows of 8"), output.Writer(tmp_path / "a", header(scene)) as writer:
        writer.rows(0, *(layer[..., :7, :] for layer in (scene.reflectance, scene.reconstructed, scene.uncertainty)))
    assert not list(tmp_path.iterdir())


def test_an_error_between_leaves_the_earlier_files_as_they_were(tmp_path):
    scene = pixels(600, 9)
    stem = scene_files.write(tmp_path, scene)
    before = contents(stem.parent)

    def interrupted():
        with output.Writer(stem, header(scene)) as writer:
            here = np.s_[..., :520, :]
            writer.rows(0, scene.reflectance[here], scene.reconstructed[here], scene.uncertainty[here])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(stem.parent) == before


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    scene, real = pixels(8, 9), tiff.tiff_block

    def full(image):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tiff, "tiff_block", full)
    with pytest.raises(DiskFullError, match="no space left"):
        scene_files.write(tmp_path, scene)
    assert not list((tmp_path / PRODUCT).iterdir())
    monkeypatch.setattr(tiff, "tiff_block", real)
    scene_files.write(tmp_path, scene)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 6, 10, 14, 16])
def test_wherever_a_real_disk_is_full_it_is_said_and_nothing_stays(disk, size):
    scene, folder = pixels(900, 700, uncertainty=False), disk(size)
    with pytest.raises(DiskFullError, match=PRODUCT):
        scene_files.write(folder, scene)
    assert not list((folder / PRODUCT).iterdir())
    assert len(list(scene_files.write(disk(40), scene).parent.iterdir())) == 10


def test_views_of_members_that_are_no_more_go(tmp_path):
    scene_files.write(tmp_path, pixels(8, 9))
    stem = scene_files.write(tmp_path, pixels(8, 9, uncertainty=False))
    assert len(list(stem.parent.glob("*.vrt"))) == 5


@pytest.mark.parametrize(
    ("shape", "step"), [((30, 20), 1), ((1024, 64), 1), ((64, 1025), 2), ((2049, 16), 3), ((16, 3072), 3)]
)
def test_the_preview_is_true_colour_of_at_most_1024_pixels_a_side(tmp_path, shape, step):
    scene = pixels(*shape, uncertainty=False)
    scene.reflectance //= 4
    with output.Writer(tmp_path / "a", header(scene), gain=1.5) as writer:
        for top in range(0, shape[0], 100):
            writer.rows(top, scene.reflectance[:, top : top + 100], scene.reconstructed[top : top + 100])
    shown = np.asarray(Image.open(io.BytesIO(file(tmp_path / "a", ".png").read_bytes())))
    np.testing.assert_array_equal(shown, true_colour(scene.reflectance, gain=1.5)[::step, ::step])


def test_stripes_give_the_bytes_of_the_whole(tmp_path):
    scene = pixels(530, 16)
    once, again = (scene_files.write(tmp_path / str(rows), scene, rows=rows) for rows in (530, 100))
    assert contents(once.parent) == contents(again.parent)
