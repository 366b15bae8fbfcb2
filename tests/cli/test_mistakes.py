"""Mistakes of a user: each gets one message with what is wrong, where, and what to do next; no traceback.

The scripts of slurm/ have theirs in tests/slurm, images of one's own in tests/stages/test_restore.py.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from front_door import CONFIG

from cloudjob.cli.dispatch import main

CONFIGS = CONFIG.parent
DEMO, TEST, REAL = (str(CONFIGS / f"{name}.yaml") for name in ("demo", "test", "north_slope"))
SWAPPED = "[[70.2, -30.0], [70.8, -30.0], [70.8, -29.0], [70.2, -30.0]]"
FILES = {  # name -> content; each but the first is a mistake of its own
    "good.yaml": CONFIG.read_bytes(),
    "tab.yaml": CONFIG.read_bytes().replace(b"  clear:", b"\tclear:", 1),
    "latin1.yaml": "# gewünscht von Jörn\n".encode("latin-1") + CONFIG.read_bytes(),
    "no_day.yaml": CONFIG.read_bytes().replace(b"start: 2024-03-01", b"start: 2024-02-30"),
    "open.yaml": CONFIG.read_bytes().replace(b"[[", b"[[[", 1),
    "twice.yaml": CONFIG.read_bytes() + b"seed: 4\n",
    "empty.yaml": b"",
    "list.yaml": b"- search\n- pair\n",
    "points.json": b'{"type": "Point", "coordinates": [1, 2]}',
    "broken.pt": b"x" * 5000,
    "a_file": b"",
    "latin1.csv": "pair,decision,reason,reviewer,version\na,reject,,Jörn,1\n".encode("latin-1"),
    "runs/north_slope/config.yaml": (CONFIGS / "north_slope.yaml").read_bytes(),
    "an_empty_folder/readme": b"",
}
CHECK = ("config", "check")
RUN = ("--run-dir", "run")
# What was typed, the exit code, the words that say what, where and what next.
MISTAKES = {
    "a tab": ([*CHECK, "tab.yaml"], 2, ["tab.yaml:7", "indent by spaces"]),
    "Latin-1": ([*CHECK, "latin1.yaml"], 2, ["latin1.yaml:1", "0xfc is not UTF-8", "iconv -f LATIN1 -t UTF-8"]),
    "a day that does not exist": ([*CHECK, "no_day.yaml"], 2, ["no_day.yaml:13", "2024-02-30: there is no such day"]),
    "such a day on the command line": (
        [*CHECK, REAL, "--set", "search.clear.end=2024-04-31"],
        2,
        ["--set search.clear.end=2024-04-31", "no such day"],
    ),
    "no day at all": ([*CHECK, REAL, "--set", "search.clear.end=soon"], 2, ["must be a day, as 2024-03-01"]),
    "an unclosed bracket": ([*CHECK, "open.yaml"], 2, ["open.yaml:", "not YAML", "expected ',' or ']'"]),
    "a key given twice": ([*CHECK, "twice.yaml"], 2, ["twice.yaml:34", "seed: given twice"]),
    "an empty file": ([*CHECK, "empty.yaml"], 2, ["empty.yaml:1", "an example is configs/demo.yaml"]),
    "a list": ([*CHECK, "list.yaml"], 2, ["list.yaml:1", "keys and values"]),
    "a key of another section": ([*CHECK, DEMO, "--set", "epochs=3"], 2, ["--set epochs=3", "mean train.epochs?"]),
    "a key of several sections": ([*CHECK, DEMO, "--set", "members=3"], 2, ["infer.members or evaluate.members?"]),
    "a typing mistake in a key": (
        [*CHECK, DEMO, "--set", "train.epoch=3"],
        2,
        ["train.epoch: unknown", "mean epochs?"],
    ),
    "a key like none": ([*CHECK, DEMO, "--set", "xyz=3"], 2, ["xyz: unknown key", "known keys: seed, archive"]),
    "a section for a value": ([*CHECK, DEMO, "--set", "train=3"], 2, ["train = 3", "--set train.preset="]),
    "no value": ([*CHECK, DEMO, "--set", "train.lr"], 2, ["--set train.lr", "write --set section.key=value"]),
    "words for a number": ([*CHECK, DEMO, "--set", "train.lr=low"], 2, ["train.lr = low", "number, as 0.1 or 2e-4"]),
    "half a number": ([*CHECK, DEMO, "--set", "train.batch_size=2.5"], 2, ["train.batch_size = 2.5", "integer"]),
    "percent for a fraction": (
        [*CHECK, DEMO, "--set", "pair.clear_max_cloud=5"],
        2,
        ["pair.clear_max_cloud = 5", "less than or equal to 1"],
    ),
    "a choice that is none": (
        [*CHECK, DEMO, "--set", "train.process=resdiual"],
        2,
        ["train.process = resdiual", "'residual'", "did you mean residual?"],
    ),
    "limits the wrong way round": (
        [*CHECK, DEMO, "--set", "search.clear.cloud=[50, 5]"],
        2,
        ["search.clear.cloud", "write [low, high]"],
    ),
    "a tile with one digit": ([*CHECK, DEMO, "--set", "search.tiles=[5WPS]"], 2, ["tiles.0 = 5WPS", "as 05WPS"]),
    "a tile for a list": ([*CHECK, DEMO, "--set", "search.tiles=05WPS"], 2, ["must be a list: [05WPS]"]),
    "an open polygon": (
        [*CHECK, DEMO, "--set", "search.polygon=[[1, 2], [3, 4], [5, 6]]"],
        2,
        ["search.polygon", "add [1.0, 2.0] at the end"],
    ),
    "a point off the globe": (
        [*CHECK, DEMO, "--set", "search.polygon=[[70, -150], [71, -150], [71, -140], [70, -150]]"],
        2,
        ["outside longitude", "The other way round this area lies at 150 W to 140 W"],
    ),
    "an area without polygons": (
        ["search", REAL, *RUN, "--set", "search.polygon=null", "--set", "search.area=points.json"],
        2,
        ["search.area", "points.json"],
    ),
    "a variable that is not set": ([*CHECK, DEMO, "--set", "archive.path=$NOWHERE/a"], 2, ["$NOWHERE is not set"]),
    "a comparison that is run": (["run", str(CONFIGS / "comparison.yaml")], 2, ["comparison", "cloudjob compare"]),
    "faults that are run": (["run", str(CONFIGS / "faults.yaml")], 2, ["faults", "archive serve FOLDER --faults"]),
    "a configuration that is compared": (["compare", DEMO], 2, ["base: name the configuration", "variants: name"]),
    "a run that does not exist": (["plan", "runs/north_slop"], 2, ["no such file", "did you mean runs/north_slope?"]),
    "a run where nothing is": (["status", "elsewhere/run"], 2, ["elsewhere/run: no such file", "nearest folder"]),
    "a folder that is no run": (["status", "an_empty_folder"], 2, ["no run folder", "Name the YAML file"]),
    "a file for a run folder": (["search", TEST, "--run-dir", "a_file"], 2, ["a_file is a file", "--run-dir"]),
    "a command that is none": (["inferr", TEST], 2, ["there is no inferr; did you mean infer?"]),
    "a stage that is none": (["run", TEST, "--from", "trian"], 2, ["--from", "did you mean train?"]),
    "an option that is none": (["run", TEST, "--rundir", "a"], 2, ["it takes no --rundir", "did you mean --run-dir?"]),
    "stages backwards": (
        ["run", TEST, *RUN, "--from", "train", "--until", "pair"],
        2,
        ["train comes after --until pair"],
    ),
    "a stage too early": (["train", TEST, *RUN], 3, ["shards/index.json", "Run: cloudjob shard run"]),
    "an item that is none": (
        ["search", TEST, *RUN, "--only", "march"],
        2,
        ["--only march", "cloudjob items STAGE run"],
    ),
    "a bad checkpoint": (
        ["infer", TEST, *RUN, "--set", "infer.checkpoint=broken.pt"],
        2,
        ["infer.checkpoint: ", "broken.pt: is no whole checkpoint", "copy it anew"],
    ),
    "a checkpoint that is not there": (
        ["infer", TEST, *RUN, "--set", "infer.checkpoint=no.pt"],
        3,
        ["infer.checkpoint: ", "no.pt does not exist"],
    ),
    "weights that are not there": (
        ["train", TEST, *RUN, "--init-from", "no.pt"],
        2,
        ["--init-from no.pt: no such file", "step-NNNNNNNN.pt"],
    ),
    "decisions that are not there": (
        ["review", TEST, *RUN, "--apply", "no.csv"],
        2,
        ["no.csv", "index.html exports one"],
    ),
    "no credentials": (["run", REAL, *RUN], 2, ["set CDSE_USERNAME and CDSE_PASSWORD", "dataspace.copernicus.eu"]),
    "an archive that is not there": (["archive", "serve", "no"], 2, ["no: no such folder", "cloudjob archive make"]),
    "a network that is none": (["model", "smal"], 2, ["smal: no such preset", "there are tiny, small"]),
    "a scene of an odd size": (["bench", "shard", "--size", "100"], 2, ["--size 100", "multiple of 18"]),
    "a data set that is none": (["import", "sen12ms", "a", "--out", "b"], 2, ["did you mean sen12mscr?"]),
    "which configuration": (["config", "show"], 2, ["which CONFIG?"]),
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder, with the files; nobody is signed in."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in ("CDSE_USERNAME", "CDSE_PASSWORD", "CDSE_TOKEN_FILE", "NOWHERE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *arguments: object) -> tuple[int, str]:
    """The exit code and the messages of a command."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as ended:  # argparse's way
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_its_message(place, capsys, arguments, code, words):
    found, text = said(capsys, *arguments)
    assert found == code, text
    assert [word for word in words if word not in text] == []
    assert "Traceback" not in text
    assert "cloudjob" in text


def test_forty_at_least():
    assert len(MISTAKES) >= 40


def test_what_is_refused_leaves_nothing(place, capsys):
    for name in ("a bad checkpoint", "weights that are not there", "a stage too early", "no credentials"):
        said(capsys, *MISTAKES[name][0])
    assert not [path for path in (place / "run").rglob("*") if path.is_file()]


def test_where_an_area_lies_is_said_and_where_if_it_were_swapped(place, capsys):
    assert main([*CHECK, DEMO, "--set", f"search.polygon={SWAPPED}"]) == 0
    text = capsys.readouterr().out
    assert "70.2 E to 70.8 E, 30 S to 29 S" in text
    assert "were latitude and longitude swapped: 30 W to 29 W, 70.2 N to 70.8 N" in text


def test_a_comparison_can_be_checked(place, capsys):
    assert main([*CHECK, str(CONFIGS / "comparison.yaml")]) == 0
    assert "a good comparison, of " in capsys.readouterr().out
    (place / "c.yaml").write_text(f"base: {DEMO}\nvariants: {{a: {{train.lrr: 1}}}}\n")
    code, text = said(capsys, *CHECK, "c.yaml")
    assert code == 2
    assert "variants.a" in text
    assert "did you mean lr?" in text


def test_without_a_network_it_is_said_within_seconds_and_once(place, capsys, monkeypatch):
    nobody = [f"copernicus.{name}=http://127.0.0.1:9/{name}" for name in ("stac", "catalogue")]
    begun = time.monotonic()
    code, text = said(
        capsys,
        "search",
        REAL,
        *RUN,
        *(word for each in [*nobody, "copernicus.patience=20"] for word in ("--set", each)),
    )
    assert time.monotonic() - begun < 20
    assert code == 4
    assert "  failed clear-2024-03 and 3 more: " in text
    assert text.count("cannot be reached from") == 1
    assert "run this on a login or transfer node" in text


def test_a_raster_of_one_s_own_on_another_tile_is_named_with_where_it_lies(place, capsys):
    profile = {"driver": "GTiff", "count": 4, "height": 64, "width": 64, "dtype": "uint16", "crs": "EPSG:32631"}
    for name in ("cloudy", "clear"):
        with rasterio.open(
            place / f"{name}.tif", "w", transform=Affine(10, 0, 500000, 0, -10, 5600000), **profile
        ) as out:
            out.write(np.full((4, 64, 64), 1500, np.uint16))
    pair = "{tile: 05WPS, cloudy: cloudy.tif, cloudy_date: 2024-03-10, clear: clear.tif, clear_date: 2024-03-20}"
    code, text = said(capsys, "archive", "make", TEST, *RUN, "--set", f"archive={{rasters: [{pair}]}}")
    assert code == 0
    assert "WARNING" in text
    assert "its middle lies at 3.00, 50.55 in EPSG:32631, which is not on tile 05WPS" in text


def test_a_plan_of_what_is_not_made_says_what_comes_first(place, capsys):
    assert main(["plan", DEMO, *RUN]) == 0
    out = capsys.readouterr().out
    assert out.count("there is no run yet; search comes first") == 1
    assert main(["status", DEMO, *RUN]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: cloudjob run {DEMO} --run-dir run"
    assert not (place / "run").exists()


def test_completion_knows_commands_options_and_stages(capsys):
    for shell in ("bash", "zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in ("cloudjob", "download", "run-dir", "sen12mscr"))
