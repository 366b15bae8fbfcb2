"""Answers of several queries become one row per product."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.config import source
from cloudjob.copernicus import catalogue
from cloudjob.copernicus.catalogue import Scene
from cloudjob.errors import ConfigError, ItemError, LeftOutError
from cloudjob.files import read_jsonl
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.stages import preview, search

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
NAME = "S2A_MSIL2A_20240301T222541_N0400_R029_T05WPS_20240302T001122"


def scene(name, **facts):
    satellite, _, _, baseline, _, tile, _ = name.split("_")
    baseline = f"{baseline[1:3]}.{baseline[3:]}"
    return {"id": name, "product": name, "satellite": satellite, "baseline": baseline, "tile": tile[1:]} | facts


def merged(*answers, gone=()):
    """Of (role, names) each."""
    items = [Item("search", f"{role}-{number}", {"role": role}, {}) for number, (role, _) in enumerate(answers)]
    return search._merge(items, [[scene(name) for name in names] for _, names in answers], gone)


def test_a_product_of_both_roles_has_one_row():
    other = NAME.replace("20240301T", "20240305T")
    found = merged(("clear", [other, NAME]), ("cloudy", [NAME]), ("clear", [NAME]))
    assert [(row["product"], row["roles"]) for row in found] == [(NAME, ["clear", "cloudy"]), (other, ["clear"])]


def test_of_one_datatake_and_tile_the_newest_baseline_is_kept():
    newer = NAME.replace("N0400", "N0510").replace("20240302T001122", "20240402T001122")
    later = newer.replace("20240402T", "20240403T")
    assert [row["product"] for row in merged(("clear", [newer, NAME, later]))] == [later]


def test_other_tiles_satellites_and_times_are_other_products():
    others = [NAME.replace(*change) for change in (("05WPS", "05WPT"), ("S2A", "S2B"), ("T222541", "T222542"))]
    assert len(merged(("clear", [NAME, *others]))) == 4


def test_where_the_newest_is_gone_the_next_one_takes_its_place_and_it_stays_to_be_named():
    newer = NAME.replace("N0400", "N0510").replace("20240302T001122", "20240402T001122")
    newest = newer.replace("20240402T", "20240403T")

    def kept(*gone):
        return [row["product"] for row in merged(("clear", [newest, NAME, newer]), gone=gone)]

    assert kept() == kept(NAME) == kept(newer) == [newest]
    assert kept(newest) == [newer, newest]
    assert kept(newest, newer) == [NAME, newer, newest]


class Catalogue:
    """Stands in for the Data Space: month -> names that it lists, or an error."""

    def __init__(self):
        self.months, self.asked, self.offline, self.footprints = {}, [], set(), {}

    def search(self, session, endpoints, *, start, cloud, **arguments):
        self.arguments = arguments
        role = "clear" if cloud[1] == 1 else "cloudy"
        self.asked.append(f"{role}-{start:%Y-%m}")
        found = self.months.get(self.asked[-1], [])
        if isinstance(found, Exception):
            raise found
        facts = dict.fromkeys(("snow_cover", "sun_elevation", "no_data", "size"))
        fields = ("product", "satellite", "baseline", "tile")
        return [
            Scene(
                **{key: scene(name)[key] for key in fields},
                **facts,
                id=identity,
                datetime="2024",
                relative_orbit=1,
                cloud_cover=1.0,
                footprint=self.footprints.get(identity, {"type": "Polygon", "coordinates": []}),
                online=identity not in self.offline,
            )
            for name, identity in found
        ]


CLOUDY = NAME.replace("20240301T", "20240310T")
OTHER = NAME.replace("20240301T", "20240320T")


@pytest.fixture
def data_space(monkeypatch) -> Catalogue:
    found = Catalogue()
    found.months = {"clear-2024-03": [(NAME, "1"), (OTHER, "2")], "cloudy-2024-03": [(CLOUDY, "3")]}
    monkeypatch.setattr(catalogue, "search_stac", found.search)
    return found


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.said = []
    made.say = made.said.append
    return made


def found(folder: RunFolder, *overrides: str) -> tuple[records.Summary, set[str]]:
    summary = search.run(source.load(CONFIG, list(overrides))[0], folder)
    return summary, {row["product"] for row in read_jsonl(folder.scenes)}


def leave_out(folder: RunFolder, product: str, stage: str = "preview") -> None:
    def gone(item):
        raise LeftOutError("HTTP 404")

    records.work(folder, stage, [Item(stage, product, {}, {})], gone)


def test_a_month_without_an_answer_costs_no_other_month(data_space, folder):
    answer, data_space.months["cloudy-2024-03"] = data_space.months["cloudy-2024-03"], ItemError("HTTP 500")
    summary, products = found(folder)  # no cloudy product at all, but that may change
    assert (list(summary.failed), products) == (["cloudy-2024-03"], {NAME, OTHER})
    data_space.asked.clear()
    data_space.months["cloudy-2024-03"] = answer
    summary, products = found(folder)
    assert (data_space.asked, products) == (["cloudy-2024-03"], {NAME, OTHER, CLOUDY})
    data_space.months = {}
    folder.force = True
    with pytest.raises(ConfigError, match=r"search\.clear"):
        found(folder)


def test_without_any_answer_no_earlier_list_stays(data_space, folder):
    found(folder)
    data_space.months = dict.fromkeys([*data_space.months, "cloudy-2024-02", "cloudy-2024-04"], ItemError("HTTP 500"))
    folder.force = True
    summary = search.run(source.load(CONFIG, [])[0], folder)
    assert (len(summary.failed), folder.scenes.exists()) == (4, False)


@pytest.mark.parametrize("stage", ["preview", "download"])
def test_what_is_gone_is_asked_for_again_and_nothing_else_is_taken_up(data_space, folder, stage):
    found(folder)
    leave_out(folder, OTHER, stage)
    newcomer = NAME.replace("20240301T", "20240322T")
    data_space.months["clear-2024-03"] = [(newcomer, "4")]
    data_space.asked.clear()
    assert found(folder)[1] == {NAME, OTHER, CLOUDY}  # it is still not served, and still named
    assert data_space.asked == ["clear-2024-03"]
    assert records.left_out(folder, stage, OTHER)
    data_space.months["clear-2024-03"] = ItemError("no answer")
    summary, products = found(folder)
    assert (summary.failed, products) == ({}, {NAME, OTHER, CLOUDY})
    assert "no answer" in folder.said[-1]
    data_space.months["clear-2024-03"] = [(newcomer, "4"), (OTHER, "5")]
    summary, products = found(folder)
    assert products == {NAME, OTHER, CLOUDY}
    assert records.record(folder, stage, OTHER) is None  # the next stages look anew
    assert {row["product"]: row["id"] for row in read_jsonl(folder.scenes)} == {NAME: "1", OTHER: "5", CLOUDY: "3"}
    data_space.asked.clear()
    found(folder)
    assert data_space.asked == []


def test_a_reprocessed_product_takes_the_place_of_one_that_is_gone(data_space, folder):
    found(folder)
    leave_out(folder, OTHER)
    again = OTHER.replace("N0400", "N0511").replace("20240302T001122", "20240602T001122")
    data_space.months["clear-2024-03"] = [(again, "6")]
    assert found(folder)[1] == {NAME, again, CLOUDY}


def test_excluded_products_are_listed_and_not_asked_for_again(data_space, folder):
    newer = NAME.replace("N0400", "N0510").replace("20240302T001122", "20240402T001122")
    data_space.months["clear-2024-03"].append((newer, "7"))
    assert found(folder)[1] == {OTHER, CLOUDY, newer}
    exclude = f"search.exclude=[{newer}, {NAME.replace('05WPS', '05WPT')}]"
    leave_out(folder, newer)
    data_space.asked.clear()
    summary, products = found(folder, exclude)
    assert (data_space.asked, products) == ([], {OTHER, CLOUDY, newer, NAME})  # the older one is taken instead
    assert summary.note == "4 products on 1 tiles, 1 of them left out"
    assert "T05WPT_20240302T001122 is not among the products that were found" in folder.said[-1]


GONE = {"left_out": "no longer in the catalogue"}


def said_of(folder: RunFolder, start: str) -> list[str]:
    return [line for line in folder.said if line.startswith(start)]


def rows(folder: RunFolder) -> dict[str, dict]:
    return {row["product"]: row for row in read_jsonl(folder.scenes)}


def test_force_says_what_is_new_and_what_is_gone_and_leaves_that_out(data_space, folder):
    found(folder)
    assert said_of(folder, "search clear") == []
    newcomer = NAME.replace("20240301T", "20240322T")
    data_space.months["clear-2024-03"] = [(newcomer, "4"), (OTHER, "2")]
    folder.force = True
    summary, products = found(folder)
    assert said_of(folder, "search clear-2024-03") == [f"search clear-2024-03: 1 new: {newcomer}; 1 gone: {NAME}"]
    assert "search cloudy-2024-03: nothing new, nothing gone" in folder.said
    assert products == {NAME, OTHER, CLOUDY, newcomer}
    assert {name for name, row in rows(folder).items() if row.items() >= GONE.items()} == {NAME}
    assert summary.note == "4 products on 1 tiles, 1 of them left out"
    left_out = {item.name: item.config for item in preview.items(source.load(CONFIG, [])[0], folder) if item.config}
    assert left_out == {NAME: GONE}
    folder.said.clear()
    data_space.months["clear-2024-03"] = [(newcomer, "4"), (OTHER, "2"), (NAME, "1")]
    found(folder)
    assert said_of(folder, "search clear-2024-03") == [f"search clear-2024-03: 1 new: {NAME}"]
    assert "left_out" not in rows(folder)[NAME]


def test_what_is_gone_stays_gone_without_being_said_again(data_space, folder):
    found(folder)
    data_space.months["clear-2024-03"] = [(OTHER, "2")]
    folder.force = True
    for told in (f"1 gone: {NAME}", "nothing new, nothing gone"):
        folder.said.clear()
        found(folder)
        assert said_of(folder, "search clear-2024-03") == [f"search clear-2024-03: {told}"]
        assert rows(folder)[NAME].items() >= GONE.items()


def test_another_question_knows_of_nothing_that_is_gone(data_space, folder):
    found(folder)
    data_space.months["clear-2024-03"] = [(OTHER, "2")]
    assert found(folder, "search.tiles=[05WPS]")[1] == {OTHER, CLOUDY}
    assert said_of(folder, "search clear") == []


def test_a_product_that_left_one_query_for_the_other_is_not_left_out(data_space, folder):
    found(folder)
    data_space.months = {"clear-2024-03": [(OTHER, "2")], "cloudy-2024-03": [(CLOUDY, "3"), (NAME, "1")]}
    folder.force = True
    found(folder)
    assert "left_out" not in rows(folder)[NAME]


def test_offline_products_are_left_out_with_their_number(data_space, folder):
    older = OTHER.replace("N0400", "N0300")
    data_space.months["clear-2024-03"].append((older, "8"))
    data_space.offline = {"2"}
    summary, products = found(folder)
    assert products == {NAME, OTHER, CLOUDY, older}  # the older copy takes its place
    assert summary.note == "4 products on 1 tiles, 1 of them left out (1 offline)"
    assert said_of(folder, "search: left out") == [f"search: left out, {search.OFFLINE}: {OTHER}"]
    leave_out(folder, OTHER)  # as preview does
    data_space.asked.clear()
    found(folder)
    assert (data_space.asked, rows(folder)[OTHER]["left_out"]) == (["clear-2024-03"], search.OFFLINE)
    data_space.offline = set()
    found(folder)
    assert "left_out" not in rows(folder)[OTHER]
    assert records.record(folder, "preview", OTHER) is None  # it is looked at anew


def test_a_role_of_which_all_is_offline_has_nothing(data_space, folder):
    data_space.offline = {"3"}
    with pytest.raises(ConfigError, match=r"search\.cloudy: no product \(1 that are left out\)"):
        found(folder)


def test_where_the_area_lies_is_said_and_a_ring_across_180_degrees_asked_for_in_two_parts(data_space, folder):
    ring = "search.polygon=[[178, 65], [-178, 65], [-178, 67], [178, 67], [178, 65]]"
    found(folder, ring)
    assert "search.polygon: 178 E to 178 W, 65 N to 67 N (about 181 km by 222 km)" in folder.said
    assert data_space.asked.count("clear-2024-03") == 2


def test_an_area_of_a_file_and_tiles_are_asked_for_and_a_changed_file_is_asked_again(data_space, folder, tmp_path):
    config = yaml.safe_load(CONFIG.read_text())
    config["search"].pop("polygon")
    config["search"] |= {"area": "place.geojson", "tiles": ["T05WPS"]}
    written, place = tmp_path / "config.yaml", tmp_path / "place.geojson"
    written.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"search\.area: .*place\.geojson is no file"):
        search.items(source.load(written)[0], folder)
    for north in (71, 72):
        ring = [[-162, 68], [-140, 68], [-140, north], [-162, 68]]
        place.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
        data_space.asked.clear()
        search.run(source.load(written)[0], folder)
        assert len(data_space.asked) == 4
        assert data_space.arguments["polygon"] == [tuple(point) for point in ring]
        assert data_space.arguments["tiles"] == ["05WPS"]
    assert search.run(source.load(written)[0], folder).done == []


def test_a_tile_that_is_none_is_a_mistake(data_space, folder):
    with pytest.raises(ConfigError, match=r"search\.tiles: no such Sentinel-2 tile: '61WPS'"):
        found(folder, "search.tiles=[61WPS]")


def test_records_of_earlier_versions_are_still_valid(folder):
    """What is asked for of an area and nothing else is written down as before."""
    item = search.items(source.load(CONFIG, ["archive=null"])[0], folder)[0]
    assert set(item.config) == {"role", "first", "last", "cloud", "polygon", "catalogue"}
    assert item.inputs == {}


def leave_out_at_preview(folder: RunFolder) -> list[str]:
    every = preview.items(source.load(CONFIG, [])[0], folder)

    def make(item):
        if item.config:
            raise LeftOutError(item.config["left_out"])
        return [], None

    return list(records.work(folder, "preview", every, make).left_out)


def test_the_smaller_half_is_left_out_by_name_until_the_larger_is_gone(data_space, folder):
    half = NAME.replace("20240302T", "20240303T")
    data_space.months["clear-2024-03"].append((half, "9"))
    data_space.footprints = {"1": on(69.0, 69.6)["footprint"], "9": on(69.55, 70.0)["footprint"]}
    reason = f"{search.HALF} {NAME}"
    for _ in range(2):
        summary, products = found(folder)
        assert summary.note == "4 products on 1 tiles, 1 of them left out"
        assert f"search: {half} is left out: {reason}" in folder.said
        assert {name: row["left_out"] for name, row in rows(folder).items() if "left_out" in row} == {half: reason}
        assert leave_out_at_preview(folder) == [half]
        data_space.asked.clear()
    assert (found(folder)[1], data_space.asked) == (products, [])  # it is not gone: nobody asks for it again
    records.path(folder, "preview", NAME).unlink()
    leave_out(folder, NAME)
    data_space.months["clear-2024-03"].remove((NAME, "1"))
    found(folder)
    assert not any("left_out" in row for row in rows(folder).values())
    assert leave_out_at_preview(folder) == []


def test_of_equal_names_that_with_less_no_data_is_taken():
    more, less, unknown = (scene(NAME, id=str(share), no_data=share) for share in (3.0, 1.0, None))
    for answers in itertools.permutations([more, less, unknown]):
        items = [Item("search", f"clear-{number}", {"role": "clear"}, {}) for number in range(3)]
        (row,) = search._merge(items, [[answer] for answer in answers])
        assert row["id"] == "1.0"


def on(south: float, north: float) -> dict:
    ring = [[-150, north], [-149, north], [-149, south], [-150, south], [-150, north]]
    return {"footprint": {"type": "Polygon", "coordinates": [ring]}}


def copies(*facts: dict, baseline: str = "N0510") -> list[dict]:
    """Products of one datatake and tile, each processed a day after the one before."""
    name = NAME.replace("N0400", baseline).replace("20240302T", "202404{:02d}T")
    return [scene(name.format(day), **fact) for day, fact in enumerate(facts, 1)]


def kept(rows: list[dict]) -> list[str]:
    found = search._merge([Item("search", "a", {"role": "clear"}, {})], [rows])
    return [row["product"] + row.get("left_out", "").replace(search.HALF, " for") for row in found]


@pytest.mark.parametrize("own", ["N9999", "N9933"])
def test_a_product_of_somebodys_own_is_taken_only_where_esa_has_none(own):
    mine, esa = copies({}, baseline=own)[0], scene(NAME)
    for rows in itertools.permutations([mine, esa]):
        assert kept(list(rows)) == [NAME]
    assert kept([mine]) == [mine["product"]]


@given(st.permutations(range(4)))
def test_of_two_halves_the_larger_is_taken_each_in_its_newest_copy(order):
    """Two ground stations received a part each; the parts overlap a little, and one was processed again."""
    rows = [*copies(on(69.0, 69.5), on(69.45, 70.0), on(69.01, 69.5)), scene(NAME, **on(69.0, 70.0))]
    larger, smaller = rows[1]["product"], rows[2]["product"]
    assert kept([rows[index] for index in order]) == [larger, f"{smaller} for {larger}"]


@given(st.permutations(range(2)))
def test_an_older_whole_is_taken_before_a_newer_part(order):
    rows = [*copies(on(69.0, 69.3)), scene(NAME, **on(69.0, 70.0))]
    assert kept([rows[index] for index in order]) == [NAME, f"{rows[0]['product']} for {NAME}"]


def test_copies_and_parts_of_one_datatake(shared_data):
    """Without footprints: the part of a datatake with hardly any data is not kept alone."""
    rows = read_jsonl(shared_data / "real_cases" / "same_datatake.jsonl")
    right = {row["product"]: row["right"] for row in rows}
    for order in itertools.permutations(rows):
        assert [right[name] for name in kept([scene(**row, name=row["product"]) for row in order])] == [
            "kept",
            "kept (or both)",
        ]


def test_halves_are_told_apart_at_180_degrees_in_lists_of_before_it_was_cut_too():
    """The ring of the one jumps from 179.9 to -179.9; the other lies beside it, not in the globe between."""
    across = [[179.5, 69], [-179.5, 69], [-179.5, 70], [179.5, 70], [179.5, 69]]
    beside = [[-179.5, 69], [-178, 69], [-178, 70], [-179.5, 70], [-179.5, 69]]
    facts = [{"footprint": {"type": "Polygon", "coordinates": [ring]}} for ring in (beside, across)]
    assert len(kept(copies(*facts))) == 2
    assert len(kept(copies(facts[0], facts[0]))) == 1


def test_a_copy_whose_footprint_is_not_known_is_no_half():
    rows = copies(on(69.0, 69.5), {})
    assert kept(rows) == [rows[1]["product"]]
