"""Configuration: every mistake is named with file, line, key and what to do."""

from datetime import date
from pathlib import Path

import pytest
import yaml

from cloudjob.config import source
from cloudjob.config.models import Config
from cloudjob.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GOOD = """search:
  polygon: [[-162.0, 68.5], [-162.0, 71.5], [-140.0, 71.5], [-162.0, 68.5]]
  clear: {start: 2024-03-01, end: 2024-03-30, cloud: [0, 1]}
  cloudy: {start: 2024-02-01, end: 2024-04-30, cloud: [5, 50]}
"""


def load(tmp_path, text, *overrides):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return source.load(path, list(overrides))


def mistakes(tmp_path, text, *overrides) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


FAULTS = CONFIGS / "faults.yaml"
COMPARISONS = {path for path in CONFIGS.glob("*.yaml") if "\nvariants:" in path.read_text()}


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - COMPARISONS - {FAULTS}), ids=lambda path: path.name)
def test_shipped_configurations_are_good(path, monkeypatch):
    monkeypatch.setenv("CLOUDJOB_REAL", "/series")
    loaded, _ = source.load(path)
    assert Config.model_validate(loaded.model_dump()) == loaded


def test_the_real_job_is_the_one_of_2025():
    loaded, _ = source.load(CONFIGS / "north_slope.yaml")
    assert loaded.search.clear.cloud == (0, 1)
    assert loaded.search.cloudy.cloud == (5, 50)
    assert (loaded.shard.window, loaded.shard.stride, loaded.shard.cloud) == (256, 64, (0.05, 0.30))
    assert loaded.search.cloudy.months()[0] == (date(2024, 2, 1), date(2024, 2, 29))


def test_all_mistakes_are_told_at_once_with_line_and_nearest_key(tmp_path):
    lines = mistakes(tmp_path, GOOD + "train:\n  lrr: 1\n  batch_size: -3\ninfer:\n  overlap: 300\n")
    text = "\n".join(lines)
    assert len(lines) == 3
    assert "a.yaml:6  train.lrr: unknown key; did you mean lr?" in text
    assert "a.yaml:7  train.batch_size = -3" in text
    assert "a.yaml:8  infer: overlap 300 is more than half of tile 256" in text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "keys and values"),
        ("search: [", "not YAML"),
        (GOOD + "seed: 1\nseed: 2\n", "given twice"),
        (GOOD.replace("end: 2024-03-30", "end: 2024-02-30"), "search.clear.end"),
        (GOOD.replace("[5, 50]", "[50, 5]"), "must not be above"),
        ("search: {}\n", "is missing and has no default"),
        ("seed: 1\n", "search: is missing and has no default"),
        ("public: {kind: allclear, folder: .}\n", "set evaluate.of to triplets"),
        (GOOD + "evaluate: {protocol: sen12mscr}\n", "it needs of triplets"),
    ],
)
def test_broken_files(tmp_path, text, word):
    assert any(word in line and "a.yaml" in line for line in mistakes(tmp_path, text))


def test_overrides_and_their_mistakes(tmp_path):
    loaded, source = load(tmp_path, GOOD, "train.lr=2e-4", "shard.cloud=[0.1, 0.2]")
    assert loaded.train.lr == 2e-4
    assert loaded.shard.cloud == (0.1, 0.2)
    assert source.where(("train", "lr")) == "--set train.lr=2e-4"
    (line,) = mistakes(tmp_path, GOOD, "train.lrate=1")
    assert line.startswith("--set train.lrate=1")
    for bad in ("train.lr", "=3", "seed.x=1", "train.lr=[", "train..lr=1"):
        mistakes(tmp_path, GOOD + "seed: 1\n", bad)


def test_an_override_of_nothing_makes_the_section_and_null_takes_the_value_away(tmp_path):
    text = GOOD + "archive:\ntrain:\n  init_from: a.pt\n"
    loaded, source = load(tmp_path, text, "archive.path=/abs", "train.init_from=null", "shard.split.by=fold")
    assert (loaded.archive.path, loaded.train.init_from, loaded.shard.split.by) == (Path("/abs"), None, "fold")
    assert source.where(("shard", "split", "fold")) == f"{tmp_path / 'a.yaml'}:1"
    assert source.where(("train", "init_from")) == "--set train.init_from=null"


def test_paths_count_from_the_file_and_in_overrides_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pair = "{tile: 39UWA, cloudy: a.tif, cloudy_date: 2024-03-01, clear: ../b.tif, clear_date: 2024-03-09}"
    text = GOOD + f"archive:\n  rasters: [{pair}]\ninfer:\n  checkpoint: of/file.pt\n"
    assert load(tmp_path, text)[0].infer.checkpoint == tmp_path / "of/file.pt"
    assert load(tmp_path, text)[0].archive.rasters[0].cloudy == tmp_path / "a.tif"
    given = ("infer.checkpoint=given.pt", f"archive.rasters=[{pair}]", "train.init_from=/abs.pt")
    loaded, _ = load(tmp_path, text, *given)
    assert loaded.infer.checkpoint == tmp_path / "here/given.pt"
    assert loaded.archive.rasters[0].cloudy == tmp_path / "here/a.tif"
    assert loaded.archive.rasters[0].clear == tmp_path / "b.tif"
    assert loaded.train.init_from == Path("/abs.pt")
    elsewhere, _ = source.load(tmp_path / "a.yaml", given, folder=tmp_path / "there")
    assert elsewhere.infer.checkpoint == tmp_path / "there/given.pt"


def test_resolved_configuration_loads_to_the_same_and_holds_plain_text_alone(tmp_path):
    given = ("infer.checkpoint=a.pt", "train.local_dir=$TMPDIR", "train.process=ddpm", "shard.split.test_tiles=[05WPS]")
    loaded, _ = load(tmp_path, GOOD, *given)
    assert type(loaded.train.local_dir) is str
    assert type(loaded.shard.split.test_tiles[0]) is str
    text = source.dump(loaded)
    assert "!!" not in text
    assert yaml.safe_load(text)["infer"]["checkpoint"] == str(Path.cwd() / "a.pt")
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "config.yaml"
    path.write_text(text)
    assert source.load(path)[0] == loaded


def test_a_null_is_kept_where_it_is_not_the_default(tmp_path):
    loaded, _ = load(tmp_path, GOOD, "shard.min_correlation=null", "shard.min_r2=null")
    text = source.dump(loaded)
    assert load(tmp_path, text)[0] == loaded
    assert text.count("null") == 2
