"""What the models admit: limits at their borders, rules between keys, and paths from where they are written."""

from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError

from cloudjob.config.acquisition import Query
from cloudjob.config.fields import Override
from cloudjob.config.models import PRESETS, Config

QUERY = {"start": "2024-03-01", "end": "2024-03-30", "cloud": [0, 1]}
RING = [[-162.0, 68.5], [-162.0, 71.5], [-140.0, 71.5], [-162.0, 68.5]]
DATE_LINE = [[179, 0], [-179, 0], [-179, 1], [179, 0]]
SEARCH = {"polygon": RING, "clear": QUERY, "cloudy": QUERY}
RASTERS = {"tile": "39UWA", "cloudy_date": "2024-03-01", "clear_date": "2024-03-09", "clear": "b.tif"}
PLACE = {"tile": "33TUG", "dates": {"2018-03-07": "a.tif", "2018-03-22": "/b.tif"}, "cloudy": ["2018-03-22"]}
FOLDERS = {"folder": Path("/of/the/file"), "overrides": Path("/working")}


def config(**sections) -> Config:
    return Config.model_validate({"search": SEARCH} | sections, context=FOLDERS)


def mistake(**sections) -> str:
    """The one thing that is wrong: `key: message`."""
    with pytest.raises(ValidationError) as caught:
        config(**sections)
    (error,) = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"


def test_products_to_exclude_are_names_with_or_without_safe():
    name = "S2A_MSIL2A_20240301T222541_N0510_R029_T05WPS_20240302T001122"
    assert config(search=SEARCH | {"exclude": [name, f"{name}.SAFE"]}).search.exclude == [name, name]
    assert config().search.exclude == []
    assert "expected e.g. S2A_MSIL2A" in mistake(search=SEARCH | {"exclude": ["05WPS"]})


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("infer", "overlap", [0, 128], [-1, 129]),  # at most half of the tile of 256
        ("infer", "tile", [64, 264], [56, 260]),
        ("infer", "steps", [1, 1000], [0, 1001]),
        ("infer", "members", [1, 64], [0, 65]),
        ("train", "betas", [[0, 0], [0.999, 0.9]], [[1, 0.9], [0.9, 1], [-0.1, 0.9], [0.9, -0.1], [0.9]]),
        ("train", "weight_decay", [0], [-1e-9]),
        ("train", "lr", [1e-12], [0]),
        ("train", "warmup", [0], [-1]),
        ("train", "drop_reference", [0, 1], [-0.01, 1.01]),
        ("shard", "window", [32, 40], [24, 36]),
        ("shard", "cloud", [[0, 1], [0.2, 0.2]], [[0.3, 0.2], [-0.1, 0.2], [0.1, 1.1]]),
        ("pair", "cloudy_range", [[0.1, 0.1]], [[0.2, 0.1]]),
        ("pair", "max_days", [1], [0]),
        ("masks", "cloud_m", [0, 2000], [-1, 2001]),
        ("masks", "values", [{"cloud": [0, 255]}, "fmask"], [{"cloud": [256]}, {"cloud": [-1]}, {"fog": [1]}, "fog"]),
        ("masks", "values", [{"clear": [0], "cloud": [1]}], [{"clear": [0, 1], "cloud": [1]}]),
        ("copernicus", "connections", [1, 4], [0, 5]),
        ("copernicus", "retries", [0, 9], [-1]),
        ("copernicus", "patience", [0.5, 86400], [0, -1]),
        ("copernicus", "slowest", [0], [-1]),
        ("copernicus", "longest", [0.1], [0]),
        ("copernicus", "source", ["https", "s3"], ["ftp"]),
        ("evaluate", "steps", [[], [1, 1000]], [[0], [1001]]),
    ],
)
def test_limits_at_their_borders(section, key, good, bad):
    for value in good:
        found = getattr(getattr(config(**{section: {key: value}}), section), key)
        assert found == (tuple(value) if isinstance(found, tuple) else value)
    for value in bad:
        assert mistake(**{section: {key: value}}).startswith(section)


def test_the_optimizer_is_the_one_that_the_readme_was_measured_with():
    train = config().train
    assert (train.betas, train.weight_decay, train.lr) == ((0.9, 0.99), 0.01, 4e-4)


@pytest.mark.parametrize(
    ("ring", "words"),
    [
        (RING[:-1], "not closed"),
        (RING[:2] + RING[:1], "not closed"),  # a line and back
        ([[68.5, -162.0], [71.5, -162.0], [71.5, -140.0], [68.5, -162.0]], "write (longitude, latitude)"),
        ([[361, 0], [0, 1], [1, 1], [361, 0]], "outside"),
        ([[float("nan"), 0], [0, 1], [1, 1], [float("nan"), 0]], "not closed"),
        ([[8, 47], [float("nan"), 48], [9, 47], [8, 47]], "outside"),
        ([], "not closed"),
    ],
)
def test_a_polygon_is_a_closed_ring_on_the_globe(ring, words):
    assert words in mistake(search=SEARCH | {"polygon": ring})
    for fine in ([[180, 90], [-180, -90], [0, 0], [180, 90]], [[179, 0], [181, 0], [181, 1], [179, 0]], DATE_LINE):
        assert config(search=SEARCH | {"polygon": fine})


def test_what_the_other_way_round_would_be_an_area_says_where():
    swapped = [[lat, lon] for lon, lat in RING]
    assert "The other way round this area lies at 162 W to 140 W, 68.5 N to 71.5 N" in mistake(
        search=SEARCH | {"polygon": swapped}
    )


def test_an_area_is_a_polygon_or_a_file_and_may_be_left_out_where_tiles_are_named():
    rest = {"clear": QUERY, "cloudy": QUERY}
    found = config(search=rest | {"area": "place.geojson", "tiles": ["T05WPS", "04WFD"]}).search
    assert (found.area, found.tiles) == (Path("/of/the/file/place.geojson"), ["05WPS", "04WFD"])
    assert config(search=rest | {"tiles": ["05WPS"]}).search.polygon is None
    assert "Give polygon, area or tiles" in mistake(search=rest)
    assert "leave one out" in mistake(search=SEARCH | {"area": "place.geojson"})
    assert "search.tiles.0" in mistake(search=SEARCH | {"tiles": ["Alaska"]})


def test_an_open_polygon_says_which_point_is_missing():
    assert "add [-162.0, 68.5] at the end" in mistake(search=SEARCH | {"polygon": RING[:-1]})


def test_a_query_is_cut_into_calendar_months_that_cover_each_day_once():
    query = Query(start=date(2023, 12, 31), end=date(2024, 3, 1), cloud=(0, 1))
    assert query.months() == [
        (date(2023, 12, 31), date(2023, 12, 31)),
        (date(2024, 1, 1), date(2024, 1, 31)),
        (date(2024, 2, 1), date(2024, 2, 29)),
        (date(2024, 3, 1), date(2024, 3, 1)),
    ]
    one = QUERY | {"start": "2024-03-30"}
    assert config(search=SEARCH | {"clear": one}).search.clear.months() == [(date(2024, 3, 30), date(2024, 3, 30))]
    assert "is after end" in mistake(search=SEARCH | {"clear": QUERY | {"start": "2024-03-31"}})


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"by": "pair", "held_out": "05WPS_1_2", "test_tiles": ["05WPS"]}, "leave test_tiles out"),
        ({"by": "pair"}, "set both or neither"),
        ({"by": "tile", "held_out": "05WPS_1_2"}, "set both or neither"),
        ({"by": "fold", "folds": 3, "fold": 3}, "there are the folds 0 to 2"),
        ({"test_tiles": ["Alaska"]}, "shard.split.test_tiles.0"),
    ],
)
def test_splits_that_cannot_be_made(split, words):
    assert words in mistake(shard={"split": split})


def test_splits_that_can_be_made():
    for split in ({"by": "pair", "held_out": "05WPS_1_2"}, {"by": "fold", "folds": 3, "fold": 2}):
        assert config(shard={"split": split}).shard.split.by == split["by"]


def test_settings_of_one_process_are_refused_with_another():
    drawn = {"process": "residual", "alpha": 1}
    assert config(train=drawn).train.options() == {"first_guess": "similar", "alpha": 1}
    learned = {"process": "ddpm", "prediction": "v", "schedule": "cosine", "zero_terminal_snr": True}
    assert config(train=learned).train.options() == {"first_guess": "similar"} | {
        key: learned[key] for key in list(learned)[1:]
    }
    assert config(train=learned | {"process": "ddpm-residual"}).train.options() == config(train=learned).train.options()
    assert config(train={"first_guess": "surroundings"}).train.options() == {
        "first_guess": "surroundings",
        "deviation": True,
    }
    assert mistake(train={"process": "ddpm", "alpha": 1}) == "train: alpha belongs to process residual"
    assert "belong to process ddpm" in mistake(train={"schedule": "cosine"})
    assert "belong to process ddpm" in mistake(train={"prediction": "x0"})
    assert "needs process ddpm with" in mistake(train={"process": "ddpm", "zero_terminal_snr": True})
    assert "needs process ddpm with" in mistake(train={"zero_terminal_snr": True})
    assert "needs process ddpm" in mistake(train={"preset": "notebook-2025", "process": "ddpm-residual"})
    assert mistake(train={"preset": "notebook-2025"}) == "train: preset notebook-2025 needs process ddpm"


@pytest.mark.parametrize(("given", "found"), [(0.1, "0.10"), ("0.10", "0.10"), (0.05, "0.05"), (0.9999, "0.9999")])
def test_an_average_may_be_written_as_a_number(given, found):
    assert config(train={"average": given}).train.average == found
    assert "Input should be" in mistake(train={"average": 0.5})


def test_noise_that_is_drawn_towards_the_cloudy_image_cannot_be_sampled_ancestrally():
    drawn, infer = {"process": "residual", "alpha": 1}, {"sampler": "ancestral"}
    said = mistake(train=drawn, infer=infer)
    assert said == "infer: sampler ancestral draws noise alone: it needs train.alpha 0"
    assert config(train=drawn, infer=infer | {"checkpoint": "a.pt"})  # of another training, which may have none
    assert config(train={"process": "residual"}, infer=infer)


def test_presets_are_those_of_the_networks():
    from cloudjob.diffusion import networks

    assert set(PRESETS) == set(networks.PRESETS)  # named twice, as the configuration must load without torch


def test_a_path_of_the_file_counts_from_the_file_and_one_of_the_command_line_from_the_working_folder():
    archive = {"rasters": [RASTERS | {"cloudy": Override("../a.tif")}], "places": [PLACE], "path": Override("/abs")}
    found = config(archive=archive, infer={"checkpoint": "a.pt"}, train={"init_from": Override("runs/a.pt")})
    (raster,), (place,) = found.archive.rasters, found.archive.places
    assert (raster.cloudy, raster.clear, raster.mask) == (Path("/a.tif"), Path("/of/the/file/b.tif"), None)
    assert place.dates == {date(2018, 3, 7): Path("/of/the/file/a.tif"), date(2018, 3, 22): Path("/b.tif")}
    assert found.archive.path == Path("/abs")
    assert found.infer.checkpoint == Path("/of/the/file/a.pt")
    assert found.train.init_from == Path("/working/runs/a.pt")


def test_a_place_has_clouds_on_dates_alone_that_it_has_a_file_for():
    wrong = PLACE | {"cloudy": ["2018-03-23"]}
    assert mistake(archive={"places": [wrong]}) == (
        "archive.places.0: cloudy names 2018-03-23, for which dates has no file"
    )


def test_a_raster_as_mask_needs_its_folder_and_the_other_way_round():
    assert config(masks={"source": "raster", "folder": "masks"}).masks.folder == Path("/of/the/file/masks")
    for masks in ({"source": "raster"}, {"folder": "masks"}):
        assert "set both or neither" in mistake(masks=masks)


def test_a_folder_as_source_needs_its_path_and_the_other_way_round():
    assert config(copernicus={"source": "path", "folder": "/data"}).copernicus.folder == Path("/data")
    for settings in ({"source": "path"}, {"folder": "/data"}, {"source": "s3", "folder": "/data"}):
        assert "source path and folder belong together" in mistake(copernicus=settings)


def test_a_section_is_plain_and_holds_the_seed():
    found = config(seed=7, infer={"checkpoint": Override("a.pt")}).section("infer", "search")
    assert set(found) == {"seed", "infer", "search"}
    assert found["seed"] == 7
    assert found["infer"]["checkpoint"] == "/working/a.pt"
    assert found["search"]["clear"]["start"] == "2024-03-01"


def test_a_tile_has_one_weather():
    dates = {"clear": ["2024-03-01"], "cloudy": ["2024-03-09"]}
    scenes = {"tiles": ["05WPS", "05WMT"], **dates}
    found = config(archive={"synthetic": scenes | {"other_weather": {"tiles": ["05WMS"], **dates}}})
    assert found.archive.synthetic.other_weather.cloud == (0.10, 0.35)
    said = mistake(archive={"synthetic": scenes | {"other_weather": {"tiles": ["05WMT"], **dates}}})
    assert said == "archive.synthetic: tiles and other_weather.tiles both name 05WMT: a tile has one weather"
