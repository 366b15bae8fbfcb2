"""Configuration: every mistake is named with file, line, key and what to do."""

from datetime import date
from pathlib import Path

import pytest

from cloudjob.config import source
from cloudjob.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
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


COMPARISONS = {*CONFIGS.glob("comparison*.yaml"), CONFIGS / "ablation.yaml"}


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - COMPARISONS), ids=lambda path: path.name)
def test_shipped_configurations_are_good(path):
    loaded, _ = source.load(path)
    again = source.Config.model_validate(loaded.model_dump())
    assert again == loaded


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


def test_open_polygon_says_which_point_is_missing(tmp_path):
    (line,) = mistakes(tmp_path, GOOD.replace(", [-162.0, 68.5]]", "]"))
    assert "a.yaml:2  search.polygon" in line
    assert "not closed" in line
    assert "add [-162.0, 68.5] at the end" in line


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "keys and values"),
        ("search: [", "not YAML"),
        (GOOD + "seed: 1\nseed: 2\n", "given twice"),
        (GOOD.replace("end: 2024-03-30", "end: 2024-02-30"), "search.clear.end"),
        (GOOD.replace("[5, 50]", "[50, 5]"), "must not be above"),
        ("search: {}\n", "is missing and has no default"),
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


def test_resolved_configuration_loads_to_the_same(tmp_path):
    loaded, _ = load(tmp_path, GOOD)
    path = tmp_path / "config.yaml"
    path.write_text(source.dump(loaded))
    assert source.load(path)[0] == loaded


@pytest.mark.parametrize(
    ("split", "word"),
    [
        ("{by: pair, held_out: 05WPS_1_2, test_tiles: [05WPS]}", "leave test_tiles out"),
        ("{test_tiles: [Alaska]}", "test_tiles.0 = Alaska"),
    ],
)
def test_tiles_that_cannot_be_kept_for_testing(tmp_path, split, word):
    (line,) = mistakes(tmp_path, GOOD + f"shard:\n  split: {split}\n")
    assert "a.yaml:6  shard.split" in line
    assert word in line


def test_raster_paths_are_meant_from_the_file(tmp_path):
    pair = "{tile: 39UWA, cloudy: a.tif, cloudy_date: 2024-03-01, clear: b.tif, clear_date: 2024-03-09}"
    loaded, _ = load(tmp_path, GOOD + f"archive:\n  rasters: [{pair}]\n")
    assert loaded.archive.rasters[0].cloudy == tmp_path / "a.tif"


def test_places_have_their_files_and_cloud_only_dates_that_they_have(tmp_path):
    place = "{tile: 33TUG, dates: {2018-03-07: a.tif, 2018-03-22: /b.tif}, cloudy: [%s]}"
    loaded, _ = load(tmp_path, GOOD + f"archive:\n  places:\n  - {place % '2018-03-22'}\n")
    assert loaded.archive.places[0].dates == {date(2018, 3, 7): tmp_path / "a.tif", date(2018, 3, 22): Path("/b.tif")}
    (line,) = mistakes(tmp_path, GOOD + f"archive:\n  places:\n  - {place % '2018-03-23'}\n")
    assert "a.yaml:7  archive.places.0: cloudy names 2018-03-23, for which dates has no file" in line


def test_settings_of_a_process_with_another_one(tmp_path):
    drawn = ("train.process=residual", "train.alpha=1")
    assert load(tmp_path, GOOD, *drawn)[0].train.options() == {"alpha": 1}
    (line,) = mistakes(tmp_path, GOOD, "train.process=ddpm", "train.alpha=1")
    assert line.endswith("alpha belongs to process residual")
    (line,) = mistakes(tmp_path, GOOD, *drawn, "infer.sampler=ancestral")
    assert line.endswith("infer: sampler ancestral draws noise alone: it needs train.alpha 0")
    for allowed in (("infer.checkpoint=a.pt", *drawn), ("train.process=residual",), ()):
        load(tmp_path, GOOD, "infer.sampler=ancestral", *allowed)


def test_presets_are_those_of_the_networks():
    from cloudjob.diffusion import networks

    assert set(config.PRESETS) == set(networks.PRESETS)  # named twice, as the configuration must load without torch
