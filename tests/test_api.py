"""What `import cloudjob` offers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray
from front_door import CONFIG
from own_images import clouded, ground
from untrained import untrained

import cloudjob
from cloudjob.errors import ConfigError, CorruptFileError, InputError

PACKAGE = Path(cloudjob.__file__).parent
NOTEBOOK = PACKAGE.parent / "docs" / "python-api.ipynb"
STUBS = re.compile(r" as (\w+)")


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


@pytest.fixture(scope="module")
def demo(finished, tmp_path_factory):
    """A working folder with runs/demo, which is a finished run: to be looked at alone."""
    place = tmp_path_factory.mktemp("demo")
    (place / "runs").mkdir()
    (place / "runs" / "demo").symlink_to(finished)
    return place


@pytest.mark.slow
def test_the_pairs_of_a_run(demo):
    run = cloudjob.open_run(demo / "runs" / "demo")
    pairs = run.pairs()
    assert len(pairs) == 3
    assert {pair["pair"] for pair in pairs} <= {pair["pair"] for pair in run.pairs(accepted=False)}
    assert {"cloudy", "clear", "days", "reasons"} <= set(pairs[0])


@pytest.mark.slow
def test_triplets_are_a_dataset_of_reflectance(demo):
    run = cloudjob.open_run(demo / "runs" / "demo")
    triplets = run.triplets("train")
    assert isinstance(triplets, torch.utils.data.Dataset)
    with h5py.File(next((demo / "runs" / "demo" / "shards").glob("train-*.h5"))) as file:
        dn, mask = file["cloudy"][0], file["mask"][0]
    found = triplets[0]
    torch.testing.assert_close(found["cloudy"], torch.from_numpy(dn.astype(np.float32) * 1e-4 - 0.1))
    np.testing.assert_array_equal(found["mask"].numpy(), mask)
    assert found["cloudy"].dtype == torch.float32
    batches = list(torch.utils.data.DataLoader(triplets, batch_size=4, num_workers=2))
    assert sum(len(batch["clear"]) for batch in batches) == len(triplets) > 0
    torch.testing.assert_close(batches[0]["cloudy"][0], found["cloudy"])
    with pytest.raises(IndexError):
        triplets[len(triplets)]
    with pytest.raises(ConfigError, match="there is no split trian: train, val, test"):
        run.triplets("trian")


@pytest.mark.slow
def test_outputs_open_as_xarray_with_their_place(demo):
    run = cloudjob.open_run(demo / "runs" / "demo")
    names = run.outputs()
    assert names == sorted(pair["cloudy"] for pair in run.pairs())
    with run.output(names[0]) as scene:
        assert scene.reflectance.dims == ("band", "y", "x")
        assert 0 < float(scene.reflectance.mean()) < 2
        assert scene.rio.crs.is_projected
    with pytest.raises(InputError, match=r"is not there yet\. Run: cloudjob infer"):
        run.output("nothing")


@pytest.mark.slow
def test_without_xarray_it_is_said_which_extra_has_it(demo, monkeypatch):
    run = cloudjob.open_run(demo / "runs" / "demo")
    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    with pytest.raises(ConfigError, match=r"h5netcdf is missing: pip install 'cloudjob\[xarray\]'"):
        run.output(run.outputs()[0])


@pytest.mark.slow
def test_the_notebook_runs(demo, monkeypatch, capsys):
    """Its code, cell by cell, without a kernel."""
    monkeypatch.chdir(demo)
    names: dict = {}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            assert cell["outputs"] == [], "clear the outputs before you commit it"
    assert names["batch"]["cloudy"].shape == (2, 4, 32, 32)
    assert names["restored"].uncertainty.max() > 0
    assert "samples seen; ['B04', 'B03', 'B02', 'B08']" in capsys.readouterr().out


@pytest.mark.slow
def test_type_checkers_see_what_it_offers(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import cloudjob\nrun = cloudjob.open_run('a')\nreveal_type(run.triplets('val'))\n"
        "cloudjob.restore(1)\nrun.nothing\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--ignore-missing-imports", str(program)]
    command += ["--cache-dir", str(CONFIG.parents[1] / ".mypy_cache"), "--follow-imports=silent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 'Revealed type is "cloudjob.patches.dataset.Triplets"' in done.stdout, done.stdout
    assert 'Missing positional argument "mask"' in done.stdout
    assert '"Run" has no attribute "nothing"' in done.stdout
    assert set(dir(cloudjob)) >= set(STUBS.findall((PACKAGE / "__init__.pyi").read_text()))
