"""What each accepted pair is made of: its split, what it leaves to other splits, its target and its inputs."""

from pathlib import Path

import pytest

from cloudjob import files
from cloudjob.config import source
from cloudjob.errors import ConfigError, CorruptFileError, InputError, ItemError, LeftOutError, RejectedError
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2.corrected import exported
from cloudjob.stages import download, shard

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
TILES = ("04WFD", "05WMU", "05WPS", "06WVC")


def product(tile, day, satellite="S2A"):
    return f"{satellite}_MSIL2A_202403{day:02d}T22254{TILES.index(tile)}_N0510_R029_T{tile}_202403{day:02d}T235959"


def pair(tile, **changes):
    """A shown and accepted row of pairs.jsonl."""
    row = {"pair": f"{tile}_20240310T222541_20240304T222541", "version": f"version-{tile}", "accepted": True}
    row |= {"shown": True, "cloudy": product(tile, 10), "clear": product(tile, 4), "reference": product(tile, 20)}
    return row | {"days": -6, "reference_days": 10} | changes


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(tmp_path)
    files.write_text(found.decisions, "pair,decision,reason,reviewer,version\n")
    return found


def items(folder, rows, *overrides):
    files.write_jsonl(folder.pairs, rows)
    config = source.load(CONFIG, ["shard.split.val_share=0.25", "shard.split.test_share=0.25", *overrides])[0]
    return {item.name.split("_")[0]: item for item in shard.items(config, folder)}


def test_a_split_keeps_off_the_ground_of_those_above_it(folder):
    found = items(folder, [pair(tile) for tile in TILES])
    of = {split: sorted(t for t, item in found.items() if item.config["split"] == split) for split in ("val", "test")}
    assert (len(of["val"]), len(of["test"])) == (1, 1)
    for item in found.values():
        above = {"train": sorted(of["val"] + of["test"]), "val": of["test"], "test": []}[item.config["split"]]
        assert item.config["taken_tiles"] == above


def test_an_acquisition_that_two_tiles_share_is_of_one_split_alone(folder):
    rows = [pair(tile) for tile in TILES]
    tests = [tile for tile, item in items(folder, rows).items() if item.config["split"] == "test"]
    other = next(tile for tile in TILES if tile not in tests)
    datatake = product(tests[0], 20).split("_")[2]
    for role in ("reference", "clear", "cloudy"):
        shared = product(other, 20).replace(product(other, 20).split("_")[2], datatake)
        changed = [row | ({role: shared} if row["pair"].startswith(other) else {}) for row in rows]
        config = items(folder, changed)[other].config
        if role == "reference":
            assert (config["drop"], config["without"]) == (None, ["reference"])
        else:
            assert f"its {role} acquisition S2A_{datatake} is used by {tests[0]}" in config["drop"]
        twin = [row | ({role: shared.replace("S2A", "S2B")} if row["pair"].startswith(other) else {}) for row in rows]
        config = items(folder, twin)[other].config
        assert (config["drop"], config["without"]) == (None, [])


FURTHER = {
    "further": [{"product": product("05WPS", 1), "days": -9}, {"product": product("05WPS", 24), "days": 14}],
    "further_of_ground": [{"product": product("05WPS", 27), "days": 17}, {"product": product("05WPS", 20), "days": 10}],
}


def shown(row, target, without=()):
    return {role: int(name[17:19]) for role, (name, _) in shard._shown(row, target, list(without)).items()}


def test_a_reference_that_is_left_out_is_followed_by_the_next():
    row = pair("05WPS", **FURTHER)
    dates = {"cloudy": 10, "clear": 4}
    assert shown(row, "clear date") == dates | {"reference": 20, "reference2": 1, "reference3": 24}
    assert shown(row, "clear date", ["reference"]) == dates | {"reference": 1, "reference2": 24}
    assert shown(row, "clear date", ["reference2"]) == dates | {"reference": 20, "reference2": 24}
    assert shown(row, "clear date", ["reference", "reference2", "reference3"]) == dates
    assert shown(row, "ground") == dates | {"reference2": 27, "reference3": 20}
    assert shown(row, "ground", ["reference", "reference2"]) == dates | {"reference2": 20}
    assert shown(pair("05WPS"), "clear date") == dates | {"reference": 20}
    assert shown(pair("05WPS"), "ground") == shown(pair("05WPS", reference=None), "clear date") == dates


def test_further_references_are_fetched_and_belong_to_one_split(folder):
    rows = [pair(tile) | (FURTHER if tile == "05WPS" else {}) for tile in TILES]
    found = items(folder, rows)
    names = {product("05WPS", day) for day in (10, 4, 20, 1, 24)}
    assert set(found["05WPS"].inputs) == names | {"pair"}
    cut = {name for item in found.values() for name in item.inputs if name != "pair"}
    fetched = {item.name for item in download.items(source.load(CONFIG, [])[0], folder)}
    assert fetched == cut | {product("05WPS", 27)}  # which target a pair has is not known yet
    ranks = {tile: ("test", "val", "train").index(item.config["split"]) for tile, item in found.items()}
    first, last = min(ranks, key=ranks.get), max(ranks, key=ranks.get)
    shared = product(last, 2).replace(product(last, 2).split("_")[2], product(first, 20).split("_")[2])
    further = {"further": [{"product": shared, "days": -8}, {"product": product(last, 24), "days": 14}]}
    config = items(folder, [pair(tile) | (further if tile == last else {}) for tile in TILES])[last].config
    assert (config["drop"], config["without"]) == (None, ["reference2"])


def test_the_ground_of_the_day_is_the_target_where_it_is_known_of_what_is_held_out(folder):
    rows = [pair(tile) for tile in TILES]
    for tile in TILES[:3]:
        files.write_text(folder.truth(product(tile, 10)), tile)
        files.write_text(folder.truth(product(tile, 4)), "of the clear date: nobody asks for it")
    for truth in ("true", "false", "everywhere"):
        found = items(folder, rows, f"shard.truth={truth}")
        for tile, item in found.items():
            asked = truth == "everywhere" or (truth == "true" and item.config["split"] != "train")
            known = asked and tile in TILES[:3]
            assert item.config["target"] == ("ground" if known else "clear date")
            assert item.inputs.get("truth") == (files.file_sha256(folder.truth(product(tile, 10))) if known else None)
    assert any(item.config["split"] != "train" for tile, item in found.items() if tile in TILES[:3])


def test_a_pair_is_made_of_its_own_products_and_of_what_was_decided(folder):
    (item,) = items(folder, [pair("05WPS", reference=None)]).values()
    assert item.inputs == {product("05WPS", 10): "", product("05WPS", 4): "", "pair": "version-05WPS"}
    assert item.name == "05WPS_20240310T222541_20240304T222541"
    assert item.config["number"] == 0


def test_where_the_ground_of_its_tile_drifts_is_an_input(folder):
    rows = [pair(tile) for tile in TILES]
    before = items(folder, rows)
    path = folder.drifting / "05WMU.tif"
    path.parent.mkdir()
    path.write_text("drifts")
    after = items(folder, rows)
    assert after["05WMU"].inputs == before["05WMU"].inputs | {"drifting/05WMU.tif": files.file_sha256(path)}
    assert all(after[tile] == before[tile] for tile in TILES if tile != "05WMU")


def test_a_mask_that_a_person_changed_is_an_input_and_one_that_nobody_did_is_none(folder):
    rows = [pair(tile) for tile in TILES]
    before = items(folder, rows)
    for tile, day in (("05WMU", 4), ("05WPS", 10)):
        files.write_text(exported(folder.labels, product(tile, day)), tile)
        files.write_text(folder.labels / f"{product(tile, day)}.tif", tile)
    assert items(folder, rows) == before
    path = folder.labels / f"{product('05WMU', 4)}.tif"
    files.write_text(path, "mended")
    after = items(folder, rows)
    mended = {f"review/masks/{path.name}": files.file_sha256(path)}
    assert after["05WMU"].inputs == before["05WMU"].inputs | mended
    assert all(after[tile] == before[tile] for tile in TILES if tile != "05WMU")
    assert records.why(folder, after["05WMU"]) == "missing"
    records.work(folder, "shard", [before["05WMU"]], lambda _: ([], {"count": 1}))
    assert records.why(folder, after["05WMU"]) == f"changed: input review/masks/{path.name}"


# --- the index of what is made -----------------------------------------------------------------------------------
@pytest.fixture
def cutting(folder, monkeypatch):
    """A folder with all downloads, and of each tile what its pair comes to: a shard, or an error."""
    folder.outcome = {}

    def make(config, folder, item, pair):
        outcome = folder.outcome.get(item.name.split("_")[0])
        if outcome:
            raise outcome
        path = folder.shard(item.config["split"], item.config["number"])
        files.write_text(path, item.name)
        return [path], {"count": 3}

    monkeypatch.setattr(shard, "_make", make)
    monkeypatch.setattr("cloudjob.patches.shard_writer.normalisation", lambda parts: len(parts))
    files.write_jsonl(folder.scenes, [{"product": product(tile, 10), "roles": ["cloudy"]} for tile in TILES])
    for tile in TILES:
        records.work(folder, "pair", [Item("pair", product(tile, 10), {}, {})], lambda item: ([], []))
    return folder


def cut_all(folder) -> dict:
    files.write_jsonl(folder.pairs, [pair(tile) for tile in TILES])
    folder.summary = shard.run(source.load(CONFIG, [])[0], folder)
    return files.read_json(folder.shard_index)


def test_the_index_holds_the_shards_that_are_made_and_names_the_products_without_one(cutting):
    cutting.outcome = {TILES[0]: ItemError("broken"), TILES[1]: RejectedError("dark"), TILES[2]: LeftOutError("gone")}
    found = cut_all(cutting)
    assert [entry["pair"].split("_")[0] for entry in found["files"]] == [TILES[3]]
    assert found["lacking"] == [product(TILES[0], 10)]
    assert len(found["split"]["pairs"]) == 4
    stray = cutting.shards / "train-00099.h5"
    stray.write_text("of another task, which has not written its record yet")
    cutting.outcome = {}
    cut_all(cutting)
    assert not stray.exists()  # all are made
    cutting.outcome = {TILES[0]: ItemError("broken")}
    cutting.force = True
    stray.write_text("of another task")
    assert len(cut_all(cutting)["files"]) == 3
    assert stray.exists()


def test_products_whose_pairing_failed_lack_a_shard_too(cutting):
    def fails(item):
        raise errors[item.name]

    whole = cut_all(cutting)
    assert "lacking" not in whole
    errors = {product(TILES[0], 10): ItemError("broken"), product(TILES[1], 10): RejectedError("dark")}
    errors |= {product(TILES[2], 10): LeftOutError("gone")}
    records.work(cutting, "pair", [Item("pair", name, {"again": True}, {}) for name in errors], fails)
    records.path(cutting, "pair", product(TILES[3], 10)).unlink()
    assert cut_all(cutting) == whole | {"lacking": sorted(product(tile, 10) for tile in (TILES[0], *TILES[2:]))}


def test_without_any_shard_no_earlier_index_stays(cutting):
    cut_all(cutting)
    cutting.outcome, cutting.force = {tile: ItemError("broken") for tile in TILES}, True
    with pytest.raises(CorruptFileError, match="missing"):
        cut_all(cutting)
    assert len(cutting.summary.failed) == 4
    cutting.outcome = {tile: InputError("download first") for tile in TILES}
    with pytest.raises(InputError, match="4 items lack their input"):
        cut_all(cutting)
    cutting.outcome = {tile: RejectedError("dark") for tile in TILES}
    with pytest.raises(ConfigError, match="no pair gives a triplet"):
        cut_all(cutting)
