"""cloudjob import from the front door, and the run that it makes."""

import json
from typing import get_args

import public_files
import pytest
from front_door import good
from public_files import SIZE

from cloudjob.cli import parser
from cloudjob.cli.dispatch import main
from cloudjob.config import source
from cloudjob.config.acquisition import PublicConfig
from cloudjob.patches.public import imports

SMALL = ["--set", f"shard.window={SIZE}"]


@pytest.fixture
def data(tmp_path):
    public_files.pair(tmp_path / "data", "ROIs1158_spring", "1", 30)
    public_files.pair(tmp_path / "data", "ROIs1158_spring", "106", 31)
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path):
    assert main(["import", "sen12mscr", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    return tmp_path / "run"


def test_a_data_set_becomes_a_run_and_a_second_import_makes_nothing(run, data, capsys):
    index = json.loads((run / "shards" / "index.json").read_text())
    assert index["counts"] == {"train": 1, "val": 0, "test": 1}
    assert index["split"]["by"] == "published"
    assert {entry["level"] for entry in index["files"]} == {"L1C"}
    config, _ = source.load(run / "config.yaml")
    assert (config.public.kind, config.public.folder) == ("sen12mscr", data)
    assert (config.evaluate.of, config.evaluate.protocol) == ("triplets", "sen12mscr")
    capsys.readouterr()
    assert main(["import", "sen12mscr", str(data), "--out", str(run)]) == 0
    assert "0 done, 2 skipped" in capsys.readouterr().err
    assert main(["plan", str(run)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "] == [
        *("shard", "train", "evaluate", "report")
    ]


def test_without_the_data_set_the_shards_still_serve(run, data, capsys):
    data.rename(data.with_name("elsewhere"))
    assert main(["plan", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "no such folder" in shown
    assert "train     1 missing" in shown
    assert main(["shard", str(run)]) == 3


def test_levels_are_not_trained_on_together(run, capsys):
    path = run / "shards" / "index.json"
    index = json.loads(path.read_text())
    del index["files"][0]["level"]
    path.write_text(json.dumps(index))
    assert main(["train", str(run)]) == 2
    assert "several levels (L1C, L2A)" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["search", "infer"])
def test_what_such_a_run_does_not_have_is_said(run, stage, capsys):
    assert main([stage, str(run)]) == 2
    assert "the stages shard, train, evaluate, report alone" in capsys.readouterr().err


def test_mistakes_leave_nothing(data, tmp_path, capsys):
    out = tmp_path / "none"
    for arguments in (["sen2mtc", str(data)], ["sen12mscr", str(data), "--set", "shard.windoww=3"]):
        assert main(["import", *arguments, "--out", str(out)]) == 2
    assert not out.exists()
    assert "expected {train,val,test}.txt" in capsys.readouterr().err


def test_the_run_of_something_else_is_left_alone(run, data, capsys):
    before = (run / "config.yaml").read_bytes()
    assert main(["import", "allclear", str(data), "--out", str(run)]) == 2
    assert "is the run of sen12mscr in" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_a_broken_image_fails_its_region_alone(data, tmp_path, capsys):
    broken = next(data.glob("*_s2/s2_1/*.tif"))
    broken.write_bytes(broken.read_bytes()[:1000])
    assert main(["import", "sen12mscr", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 4
    assert f"failed ROIs1158_1: {broken}" in capsys.readouterr().err
    assert broken.exists()


@pytest.mark.slow
def test_held_out_triplets_are_scored_in_the_published_protocol(run, capsys):
    assert main(["evaluate", str(run), "--set", "evaluate.members=0"]) == 0
    assert "protocol sen12mscr" in capsys.readouterr().out
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["headline_split"] == "test"
    assert summary["published"]["mean_fill"]["psnr"] > summary["published"]["cloudy"]["psnr"]
    row = json.loads((run / "evaluation" / "scores.jsonl").read_text().splitlines()[0])
    assert row["place"] == "ROIs1158_106"


@pytest.mark.slow
def test_a_network_is_trained_on_one_data_set_and_goes_on_with_another(data, tmp_path):
    """The first has no other date, the second two references."""
    for patch in range(3):
        public_files.sen2mtc(tmp_path / "mtc", "train", "T09WWP_R071", patch)
    public_files.sen2mtc(tmp_path / "mtc", "test", "T12TUR_R027", 12)
    small = [*SMALL, "--set", "train.preset=tiny", "--set", "train.process=regression"]
    small += ["--set", "train.samples=4", "--set", "train.batch_size=2", "--set", "evaluate.triplets=1"]
    start, on = tmp_path / "start", tmp_path / "on"
    good("import", "sen12mscr", data, "--out", start, *small)
    good("train", start)
    assert "ours" in good("evaluate", start).stdout.partition("protocol sen12mscr")[2]
    weights = max((start / "train" / "checkpoints").glob("step-*.pt"))
    good("import", "sen2mtc", tmp_path / "mtc", "--out", on, *small)
    good("train", on, "--init-from", weights)
    assert "similar_2_dates" in good("evaluate", on).stdout
    good("report", on)


def test_the_command_line_and_the_configuration_know_the_data_sets_that_there_are():
    assert parser.PUBLIC == get_args(PublicConfig.model_fields["kind"].annotation) == tuple(imports.KINDS)
