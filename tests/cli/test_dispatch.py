"""The front door, in this process: help, configuration, networks, arrays."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.cli import dispatch

DEMO = str(Path(__file__).resolve().parents[1] / "configs" / "demo.yaml")


def test_help_names_every_stage_and_ends_with_how_to_resume(capsys):
    with pytest.raises(SystemExit) as caught:
        dispatch.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {stage} " in text for stage in dispatch.STAGES)
    assert text.rstrip().endswith("To resume, run the same command again: only what is missing is made.")


@pytest.mark.parametrize("arguments", [["fly"], ["run"], ["train", DEMO, "--index", "x"], ["run", DEMO, "--from", "x"]])
def test_usage_mistakes_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        dispatch.main(arguments)
    assert caught.value.code == 2


def test_notebook_has_exactly_its_parameters(capsys):
    assert dispatch.main(["model", "notebook-2025", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 3_452_868
    assert facts["macs"] == pytest.approx(30.38e9, rel=0.001)


def test_presets_keep_their_budgets(capsys):
    for preset, parameters, macs in [("tiny", 0.6e6, 3e9), ("small", 4e6, 30e9), ("base", 25e6, 60e9)]:
        dispatch.main(["model", preset, "--json"])
        facts = json.loads(capsys.readouterr().out)
        assert facts["parameters"] <= parameters
        assert facts["macs"] <= macs
    assert dispatch.main(["model", "huge"]) == 2
    assert "there are tiny, small, base, base-attention, notebook-2025" in capsys.readouterr().err


def test_config_show_says_where_each_value_came_from(capsys):
    assert dispatch.main(["config", "show", DEMO, "--set", "train.lr=0.5"]) == 0
    text = capsys.readouterr().out
    lr, batch, decay = (
        next(line for line in text.splitlines() if f"  {key}:" in line) for key in ("lr", "batch_size", "decay")
    )
    assert "0.5" in lr
    assert "--set train.lr=0.5" in lr
    assert "demo.yaml:" in batch
    assert "# default" in decay
    assert dispatch.main(["config", "check", DEMO]) == 0
    assert dispatch.main(["config", "check", "nowhere.yaml"]) == 2


def test_config_schema_is_one_json_document(capsys):
    assert dispatch.main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) >= {"search", "pair", "shard", "train", "infer"}


def test_plan_before_anything_says_what_comes_first(tmp_path, capsys):
    assert dispatch.main(["plan", DEMO, "--run-dir", str(tmp_path / "run"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert [item["why"] for item in rows[0]["items"]] == ["missing"] * 4
    assert "cloudjob search" in rows[1]["waits"]
    assert not (tmp_path / "run").exists()  # it touches nothing
    assert dispatch.main(["run", DEMO, "--run-dir", str(tmp_path / "run"), "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()


@given(st.sets(st.integers(0, 60)))
def test_array_indices_as_slurm_takes_them(indices):
    text = dispatch._as_array(sorted(indices))
    found = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == indices
