"""download takes over from an embedded archive what is known of the ground, and how much of it is seen."""

import pytest
from front_door import call, copied
from small_runs import settings

from cloudjob.copernicus.sources import Remote
from cloudjob.files import write_jsonl, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.stages import download

PRODUCT = "S2A_MSIL2A_20240303T222035_N0510_R122_T05WPS_20240304T012735"


@pytest.mark.parametrize("endings", [(".tif", "_seen.tif", "_sensed.tif"), (".tif", "_seen.tif"), (".tif",), ()])
def test_what_the_archive_knows_of_a_product_comes_into_the_run(tmp_path, endings):
    files = [PRODUCT + ending for ending in endings]
    archive, folder = tmp_path / "archive", RunFolder(tmp_path / "run")
    (archive / "truth").mkdir(parents=True)
    for name in (*files, "Q.tif", "Q_seen.tif", "Q_sensed.tif"):
        (archive / "truth" / name).write_text(name)
    taken = download._truth(archive, folder, PRODUCT)
    assert [(path, path.read_text()) for path in taken] == [(folder.root / "truth" / name, name) for name in files]
    assert sorted(path.name for path in folder.root.rglob("*.tif")) == sorted(files)


def test_where_the_ground_of_the_tile_drifts_comes_too(tmp_path):
    archive, folder = tmp_path / "archive", RunFolder(tmp_path / "run")
    (archive / "drifting").mkdir(parents=True)
    for tile in ("05WMS", "05WMT"):
        (archive / "drifting" / f"{tile}.tif").write_text(tile)
    name = "S2A_MSIL2A_20240303T222035_N0510_R122_T05WMS_20240304T012735"
    assert [path.read_text() for path in download._truth(archive, folder, name)] == ["05WMS"]
    assert (folder.root / "drifting" / "05WMS.tif").exists()


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((9_000_000, 5_000_000, 4_000_000), "saved 5.0 MB by previews and 7.0 MB by fetching four bands alone"),
        ((9_000_000, 5_000_000, None), "saved 5.0 MB by previews and 6.0 MB by fetching four bands alone"),
        ((2_000_000, None, None), ""),  # nobody knows the size, or all of it was fetched
        ((None, 5_000_000, None), "saved 5.0 MB by previews"),
        ((9_000_000, None, None), "saved 6.0 MB by fetching four bands alone"),
    ],
)
def test_what_need_not_be_fetched_is_told(tmp_path, sizes, line):
    """Of three products the second is in no pair; of the others 1 MB was fetched by preview, 2 MB by download."""
    folder, names = RunFolder(tmp_path), [PRODUCT.replace("N0510", f"N051{number}") for number in range(3)]
    for stage, size in (("preview", 1_000_000), (download.STAGE, 2_000_000)):

        def make(item, size=size):
            path = folder.safe(item.name) / f"{size}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
            return [path], None

        records.work(folder, stage, [Item(stage, names[number], {}, {}) for number in (0, 2)], make)
    products = {name: Remote(name, size=size) for name, size in zip(names, sizes, strict=True)}
    assert download._saved(products, [Item(download.STAGE, names[number], {}, {}) for number in (0, 2)], folder) == line


@pytest.mark.slow
def test_how_much_is_seen_is_an_output_that_is_fetched_again(finished, tmp_path):
    run = copied(finished, tmp_path / "run", until="download")
    seen = sorted((run / "truth").glob("*_seen.tif"))
    assert seen
    for path in seen:
        assert path.read_bytes() == (finished / "archive" / "truth" / path.name).read_bytes()
        assert path.with_name(path.name.replace("_seen", "")).exists()
    seen[0].unlink()
    done = call("download", run)
    assert done.returncode == 0, done.stderr
    assert "download: 1 done" in done.stderr
    assert seen[0].exists()


def test_bands_come_of_a_product_that_is_restored_from_itself_alone(tmp_path):
    folder = RunFolder(tmp_path)
    names = {role: PRODUCT.replace("20240303", f"202404{day}") for role, day in (("cloudy", "01"), ("clear", "09"))}
    row = {"pair": "a", "shown": True, "accepted": False, "version": "v", "reference": None, "reasons": ["hazy"]}
    write_jsonl(folder.pairs, [row | names | {"cloudy_cloud": 0.3, "sun_elevation": [20.0, 20.0]}])
    write_text(folder.decisions, "pair,decision,reason,reviewer,version\n")
    assert [item.name for item in download.items(settings(), folder)] == [names["cloudy"]]
    assert download.items(settings("infer.unpaired=false"), folder) == []
