"""config, model, bench and compare through the front door, in this process."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from cloudjob.cli.dispatch import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEMO = str(CONFIGS / "demo.yaml")


@pytest.mark.slow
def test_notebook_has_exactly_its_parameters(capsys):
    assert main(["model", "notebook-2025", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 3_452_868
    assert facts["macs"] == pytest.approx(30.38e9, rel=0.001)


@pytest.mark.slow
def test_presets_keep_their_budgets(capsys):
    for preset, parameters, macs in [("tiny", 0.6e6, 3e9), ("small", 4e6, 30e9), ("base", 25e6, 60e9)]:
        main(["model", preset, "--json"])
        facts = json.loads(capsys.readouterr().out)
        assert facts["parameters"] <= parameters
        assert facts["macs"] <= macs
    main(["model", "tiny"])
    assert any(line.split()[:1] == ["parameters"] and "," in line for line in capsys.readouterr().out.splitlines())
    assert main(["model", "huge"]) == 2
    assert "there are tiny, small, base, base-attention, diffcr, diffcr-32, notebook-2025" in capsys.readouterr().err


def test_config_show_says_where_each_value_came_from(capsys):
    assert main(["config", "show", DEMO, "--set", "train.lr=0.5"]) == 0
    text = capsys.readouterr().out
    lr, batch, decay = (
        next(line for line in text.splitlines() if f"  {key}:" in line) for key in ("lr", "batch_size", "decay")
    )
    assert "0.5" in lr
    assert "--set train.lr=0.5" in lr
    assert "demo.yaml:" in batch
    assert "# default" in decay
    assert main(["config", "check", DEMO]) == 0
    good, where = capsys.readouterr().out.splitlines()
    assert good == f"{DEMO}: good"
    assert where == "search.polygon: 162 W to 140 W, 68.5 N to 71.5 N (about 838 km by 334 km)"
    assert main(["config", "check", "nowhere.yaml"]) == 2
    assert main(["config", "show"]) == 2
    assert "which CONFIG?" in capsys.readouterr().err


def test_config_schema_is_one_json_document(capsys):
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) >= {"search", "pair", "shard", "train", "infer"}


def test_figures_of_a_bench_as_text_as_its_own_table_and_as_json(tmp_path, monkeypatch, capsys):
    real, fake = importlib.import_module, ModuleType("fake")
    fake.run = lambda folder, say: {"speed": {"ratio": 1.23456, "samples": 7}}
    monkeypatch.setattr(
        importlib, "import_module", lambda name: fake if name == "cloudjob.benches.read" else real(name)
    )
    assert main(["bench", "read", "--dir", str(tmp_path)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["speed:"],
        ["ratio", "1.2346"],
        ["samples", "7"],
    ]
    fake.table = lambda found: f"ratio {found['speed']['ratio']}"
    assert main(["bench", "read", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "ratio 1.23456\n"
    assert main(["bench", "read", "--dir", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fake.run(None, None)
    assert main(["bench", "read", "--dir", str(tmp_path / "none")]) == 2


def test_the_size_of_a_scene_is_for_benches_that_have_one(tmp_path, monkeypatch, capsys):
    real, fake = importlib.import_module, ModuleType("fake")
    fake.run = lambda folder, say, size=1: {"figures": {"size": size}}
    monkeypatch.setattr(
        importlib, "import_module", lambda name: fake if name.startswith("cloudjob.benches.") else real(name)
    )
    assert main(["bench", "infer", "--dir", str(tmp_path), "--size", "1440"]) == 0
    assert capsys.readouterr().out.split() == ["figures:", "size", "1440"]
    for arguments, said in (
        (["read", "--size", "1440"], "--size: bench read has no scene"),
        (["infer", "--size", "1000"], "--size 1000: a multiple of 18"),
        (["shard", "--size", "360"], "--size 360: a multiple of 18, from 720 on"),
    ):
        assert main(["bench", *arguments, "--dir", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


def test_a_comparison_without_its_data_waits_for_them_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(CONFIGS / "comparison.yaml"), "--dry-run"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=1) == ["base", "would run: missing"]
    assert {line.split(maxsplit=1)[1] for line in rest} == {"would run: waits for base"}
    assert main(["compare", str(CONFIGS / "comparison.yaml"), "--only", "nobody"]) == 2
    assert not list(tmp_path.iterdir())
