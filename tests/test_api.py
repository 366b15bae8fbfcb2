"""What `import cloudjob` offers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray
from front_door import CONFIG
from own_images import clouded, ground
from untrained import untrained

import cloudjob
from cloudjob.errors import ConfigError, CorruptFileError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.slow
def test_importing_it_imports_nothing_heavy():
    program = (
        "import sys, cloudjob; print([m for m in ('numpy', 'torch', 'rasterio', 'cloudjob.api') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_there_is_and_what_is_not():
    assert {"restore", "open_run", "load_checkpoint"} <= set(dir(cloudjob))
    assert cloudjob.restore.__module__ == "cloudjob.api"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cloudjob.nothing


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_an_image_is_restored_and_clear_pixels_come_back_as_they_were(trained, members):
    image, where = clouded(ground())
    threads = torch.get_num_threads()
    found = cloudjob.restore(image, where, checkpoint=trained, members=members)
    assert torch.get_num_threads() == threads
    assert (found.reflectance.shape, found.reflectance.dtype) == (image.shape, np.float32)
    seen = found.reconstructed == 0
    assert 0 < np.count_nonzero(where) < np.count_nonzero(~seen) < where.size
    np.testing.assert_array_equal(found.reflectance[:, seen], image[:, seen])
    assert (found.reconstructed[where] == 1).all()
    assert (found.reflectance[:, where] != image[:, where]).any()
    assert (found.uncertainty is None) == (members == 1)
    if members > 1:
        assert found.uncertainty[:, where].max() > 0
        assert not found.uncertainty[:, seen].any()
    again = cloudjob.restore(image, where, checkpoint=trained, members=members)
    np.testing.assert_array_equal(again.reflectance, found.reflectance)
    other = cloudjob.restore(image, where, checkpoint=trained, members=members, seed=1)
    assert (other.reflectance != found.reflectance).any()


@pytest.mark.slow
def test_a_clear_date_is_what_lies_below(trained):
    truth = ground()
    image, where = clouded(truth)
    bare, shown = (cloudjob.restore(image, where, checkpoint=trained, clear=clear) for clear in ((), truth))
    errors = [np.abs(found.reflectance - truth)[:, where].mean() for found in (bare, shown)]
    assert errors[1] < errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("first_guess", ["similar", "surroundings"])
def test_of_several_clear_dates_each_shows_what_others_do_not(tmp_path, first_guess):
    """Every date has half of what is hidden; the fourth of four is too many."""
    network = untrained(tmp_path, "tiny", process="regression", first_guess=first_guess)
    truth = ground()
    image, where = clouded(truth)
    left, right = truth.copy(), 0.8 * truth
    left[:, :, 32:], right[:, :, :32] = np.nan, np.nan
    nothing = np.full_like(truth, np.nan)

    def error(clear, **options) -> float:
        found = cloudjob.restore(image, where, checkpoint=network, clear=clear, **options)
        return np.abs(found.reflectance - truth)[:, where].mean()

    both = error([left, right], days=[-3, 5])
    assert both < 0.5 * min(error([left], days=-3), error([right]))
    assert error([nothing, left, right]) == pytest.approx(both, rel=0.2)
    with pytest.warns(UserWarning, match="4 clear dates; the first 3 are taken"):
        assert error([nothing, nothing, left, right]) == pytest.approx(error([left]), rel=0.2)


@pytest.mark.slow
def test_xarray_comes_back_as_xarray(trained):
    image, where = clouded(ground())
    coords = {"band": ["red", "green", "blue", "nir"], "y": np.arange(60)[::-1], "x": np.arange(70)}
    given = xarray.DataArray(image, dims=("band", "y", "x"), coords=coords)
    found = cloudjob.restore(given, xarray.DataArray(where, dims=("y", "x")), checkpoint=trained, members=2)
    plain = cloudjob.restore(image, where, checkpoint=trained, members=2)
    for name, dims in (("reflectance", given.dims), ("reconstructed", ("y", "x")), ("uncertainty", given.dims)):
        assert getattr(found, name).dims == dims
        np.testing.assert_array_equal(getattr(found, name).values, getattr(plain, name))


def test_mistakes_are_named(trained, tmp_path):
    image, where = clouded(ground())
    for options, why in (
        ({"members": 0}, "members = 0: 1 to 64"),
        ({"checkpoint": tmp_path / "no.pt"}, "no such file"),
    ):
        with pytest.raises(ConfigError, match=why):
            cloudjob.restore(image, where, **({"checkpoint": trained} | options))
    other = untrained(tmp_path, bands=("B04", "B03", "B02", "B8A"))
    with pytest.raises(ConfigError, match="a checkpoint for the bands B04, B03, B02, B8A; here they are B04"):
        cloudjob.restore(image, where, checkpoint=other)
    (tmp_path / "a.pt").write_bytes(trained.read_bytes()[:-9])
    with pytest.raises(CorruptFileError):
        cloudjob.load_checkpoint(tmp_path / "a.pt")


def test_a_run_and_a_checkpoint_can_be_looked_at(trained, tmp_path):
    assert cloudjob.load_checkpoint(trained).seen == 8
    run = cloudjob.open_run(CONFIG, run_dir=tmp_path / "run", overrides=["infer.members=3"])
    assert (run.config.infer.members, run.folder.root) == (3, tmp_path / "run")
    assert not run.folder.root.exists()
    with pytest.raises(ConfigError, match="no such file or run folder"):
        cloudjob.open_run(tmp_path / "no.yaml")
