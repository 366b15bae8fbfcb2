"""infer in this process: its inputs, the dates that are shown, what ranks answer each other, what is written."""

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from affine import Affine
from front_door import CONFIG, call, clean_message, copied, good
from small_runs import settings
from untrained import untrained
from worlds import together

from cloudjob import __version__
from cloudjob.config.models import Config
from cloudjob.diffusion import checkpoint, networks
from cloudjob.errors import ConfigError, InputError, InterruptedJob, ItemError
from cloudjob.files import digest, file_sha256, write_jsonl
from cloudjob.hpc import mpi
from cloudjob.pixels import BANDS, CLEAR, CLOUD
from cloudjob.restoration import dates
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.dates import Dates
from cloudjob.restoration.restorer import Restorer
from cloudjob.restoration.team import Unit
from cloudjob.restoration.tiles import Tile
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2 import product as products
from cloudjob.stages import infer

FIRST = "S2B_MSIL2A_20240310T222035_N0510_R122_T05WPS_20240311T012735"
SECOND = "S2B_MSIL2A_20240311T222035_N0510_R122_T05WPS_20240312T012735"
NEAR = "S2A_MSIL2A_20240304T222541_N0510_R029_T05WPS_20240305T001122"
OLD = "S2A_MSIL2A_20240130T222541_N0510_R029_T05WPS_20240131T001122"
FAR = "S2A_MSIL2A_20240320T222541_N0510_R029_T05WPS_20240321T001122"
HEIGHT, WIDTH = 40, 56


@pytest.fixture(autouse=True)
def small(monkeypatch, torch_threads):
    """A network that is smaller than any that is worth training."""
    monkeypatch.setitem(networks.SIZES, "speck", networks.Size(widths=(8, 8), blocks=1))
    monkeypatch.setattr(networks, "PRESETS", (*networks.PRESETS, "speck"))


def row(cloudy: str, *, reference: str | None = FAR, further: dict[str, float] | None = None) -> dict:
    name = f"pair of {cloudy}"
    days = {"days": -6.0, "reference_days": None if reference is None else 10.0}
    shown = {"shown": True, "accepted": True, "version": f"v {cloudy[-6:]}"}
    more = {} if further is None else {"further": [{"product": name, "days": days} for name, days in further.items()]}
    return {"pair": name, "cloudy": cloudy, "clear": NEAR, "reference": reference} | days | shown | more


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run folder in which two pairs are accepted and their products downloaded."""
    made = RunFolder(tmp_path / "run")
    write_jsonl(made.pairs, [row(FIRST), row(SECOND)])
    made.decisions.parent.mkdir()
    made.decisions.write_text("pair,decision,reason,reviewer,version\n")

    def download(item: Item):
        path = made.safe(item.name) / "bands"
        path.parent.mkdir(parents=True)
        path.write_text(item.name)
        return [path], None

    records.work(made, "download", [Item("download", name, {}, {}) for name in (FIRST, SECOND, NEAR, FAR)], download)
    made.said = []
    made.say = made.said.append
    return made


@pytest.fixture
def trained(tmp_path) -> Path:
    """A checkpoint whose ensembles are calibrated for 2 steps."""
    return untrained(tmp_path / "elsewhere", "speck", steps=2)


def chosen(trained: Path, *overrides: str) -> Config:
    return settings(f"infer.checkpoint={trained}", "infer.tile=32", "infer.overlap=8", *overrides)


# --- items -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reference", "pair", "roles"),
    [
        ("other", row(FIRST), ["reference"]),  # the pair's own clear date is what it is scored against
        ("other", row(FIRST, reference=None), []),
        ("nearest", row(FIRST), ["clear", "reference"]),
        ("nearest", row(FIRST, reference=None), ["clear"]),
        ("none", row(FIRST), []),
        ("other", row(FIRST, further={"A": -16.0}), ["reference", "reference2"]),
        ("other", row(FIRST, further={"A": -16.0, "B": 20.0}), ["reference", "reference2", "reference3"]),
        ("nearest", row(FIRST, further={"A": -16.0}), ["clear", "reference", "reference2"]),
        ("nearest", row(FIRST, further={"A": 8.0, "B": -5.0}), ["reference3", "clear", "reference2"]),  # nearest first
        ("nearest", row(FIRST, reference=None, further={}), ["clear"]),
    ],
)
def test_which_clear_dates_the_model_is_shown(reference, pair, roles):
    assert infer._references(settings(f"infer.reference={reference}"), pair) == roles


def test_further_dates_are_inputs_whose_masks_are_read(folder, trained):
    """Of two further dates of the first pair, the second is too far to be shown, but has a say in the masks."""
    write_jsonl(folder.pairs, [row(FIRST, further={SECOND: 1.0, OLD: -40.0}), row(SECOND)])
    records.work(folder, "download", [Item("download", OLD, {}, {})], lambda item: ([folder.pairs], None))
    folder.labels.mkdir(parents=True)
    (folder.labels / f"{OLD}.tif").write_text("a mask by hand")
    config = chosen(trained, "infer.reference=nearest")
    item, _ = infer.items(config, folder)
    assert {FIRST, NEAR, FAR, SECOND} < set(item.inputs)
    assert OLD not in item.inputs
    assert f"review/masks/{OLD}.tif" in item.inputs


def test_an_item_is_made_of_its_products_its_network_and_its_pair(folder, trained):
    config = chosen(trained, "infer.reference=nearest")
    one, two = infer.items(config, folder)
    assert (one.stage, one.name, two.name) == ("infer", FIRST, SECOND)
    downloaded = {name: records.output_digest(folder, "download", name) for name in (FIRST, NEAR, FAR)}
    assert one.inputs == downloaded | {"checkpoint": file_sha256(trained), "pair": row(FIRST)["version"]}
    assert set(one.config) == {"seed", "infer", "masks"}
    assert set(infer.items(chosen(trained, "infer.reference=none"), folder)[0].inputs) == {FIRST, "checkpoint", "pair"}
    folder.drifting.mkdir()
    (folder.drifting / "05WPS.tif").write_text("drifts")
    drifting = {"drifting/05WPS.tif": file_sha256(folder.drifting / "05WPS.tif")}
    assert infer.items(config, folder)[0].inputs == one.inputs | drifting


def test_without_a_network_it_says_which_stage_makes_one(folder):
    with pytest.raises(InputError, match="infer reads what train makes"):
        infer.run(settings(), folder)


def test_what_is_not_downloaded_is_named(folder, trained):
    (folder.safe(NEAR) / "bands").unlink()
    with pytest.raises(InputError, match=f"infer: 2 items lack their input, {FIRST}: download of {NEAR}: .* is gone"):
        infer.run(chosen(trained, "infer.reference=nearest"), folder)
    folder.only = [SECOND]
    with pytest.raises(InputError, match=f"^download of {NEAR}: .*Run: cloudjob download"):
        infer.run(chosen(trained, "infer.reference=nearest"), folder)


# --- the network -------------------------------------------------------------------------------------------------
def test_the_network_is_that_of_the_checkpoint(folder, trained):
    model = infer._open_model(chosen(trained), folder, 0, 0)
    assert model.sha256 == file_sha256(trained)
    restorer = model.restorer
    assert (restorer.seed, restorer.sampler, restorer.steps, restorer.low_precision) == (3, "auto", 2, False)
    assert folder.said == []
    kept = checkpoint.load(trained)
    _, newer = (checkpoint.save(folder.checkpoints, replace(kept, seen=seen)) for seen in (8, 16))
    assert infer._open_model(settings(), folder, 0, 0).sha256 == file_sha256(newer)  # the newest of this run


@pytest.mark.parametrize(("members", "rank", "warns"), [(3, 0, True), (1, 0, False), (3, 1, False)])
def test_factors_that_do_not_hold_for_these_steps_are_said(folder, trained, members, rank, warns):
    infer._open_model(chosen(trained, "infer.steps=3", f"infer.members={members}"), folder, rank, 0)
    assert [line[:43] for line in folder.said] == ["infer: WARNING: /uncertainty is the members"] * warns


# --- a scene -----------------------------------------------------------------------------------------------------
class Bands:
    """Conditions in place of those of products on the disk, left by one rank; what was asked for, in order."""

    def __init__(self):
        self.asked: list[Dates] = []

    def __call__(self, team, dates):
        team.do("decoding", lambda: [Unit("all", lambda: self.save(team.folder, dates()))])

    def save(self, folder: Path, dates: Dates) -> None:
        self.asked.append(dates)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[5:25, 5:30] = CLOUD
        cloudy = np.full((4, HEIGHT, WIDTH), 9000, np.uint16)
        cloudy[:, mask == CLEAR] = 3000
        references = tuple(np.full_like(cloudy, 4000 + 500 * number) for number in range(len(dates.shown)))
        SceneConditions(cloudy, mask, mask, references, 25.0, dates.days).save(folder)


@pytest.fixture
def bands(monkeypatch) -> Bands:
    sensed = SimpleNamespace(
        crs="EPSG:32605",
        transform=Affine(10, 0, 600000, 0, -10, 7900020),
        sensing_time=datetime(2024, 3, 10, 22, 20, 35, tzinfo=UTC),
    )
    monkeypatch.setattr(products.Product, "open", lambda path: SimpleNamespace(folder=path, **vars(sensed)))
    made = Bands()
    monkeypatch.setattr(dates, "make_conditions", made)
    return made


@pytest.mark.parametrize(
    ("reference", "pair", "shown", "days"),
    [
        ("nearest", row(FIRST), ("clear", "reference"), (-6.0, 10.0)),
        ("nearest", row(FIRST, further={SECOND: 1.0}), ("reference2", "clear", "reference"), (1.0, -6.0, 10.0)),
        ("other", row(FIRST), ("reference",), (10.0,)),
        ("none", row(FIRST), (), ()),
        ("other", row(FIRST, reference=None), (), ()),
    ],
)
def test_all_dates_of_a_pair_vote_on_masks_and_some_are_shown(folder, trained, bands, reference, pair, shown, days):
    found = infer._dates(chosen(trained, f"infer.reference={reference}", "masks.cloud_m=70"), folder, pair)
    named = {"cloudy": FIRST, "clear": NEAR} | ({"reference": FAR} if pair["reference"] else {})
    named |= {"reference2": SECOND} if "further" in pair else {}
    assert {role: product.folder for role, product in found.products.items()} == {
        role: folder.safe(name) for role, name in named.items()
    }
    assert (found.shown, found.days) == (shown, days)
    assert found.masks.cloud_m == 70
    assert (found.labels, found.drifting) == (folder.labels, folder.drifting)


def test_a_scene_is_restored_and_written_in_all_its_files(folder, trained, bands):
    config = chosen(trained, "infer.members=2", "infer.reference=nearest")
    summary = infer.run(config, folder)
    assert summary.done == [FIRST, SECOND]
    assert summary.note == "1 rank"
    h5 = folder.output(FIRST, ".h5")
    layers = [*BANDS, "reconstructed", *(f"uncertainty_{band}" for band in BANDS)]
    suffixes = [".h5", ".h5.aux.xml", ".tif", *(f"_{name}.vrt" for name in layers), ".png", ".json"]
    assert {path.name for path in h5.parent.iterdir()} == {f"{FIRST}{suffix}" for suffix in suffixes}
    with h5py.File(h5) as file:
        image, flags, spread = (file[name][...] for name in ("reflectance", "reconstructed", "uncertainty"))
        facts = dict(file.attrs)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[5:25, 5:30] = True
    assert (flags == np.where(inside, 1, 0)).all()
    assert (image[:, ~inside] == 3000).all()
    assert (image[:, inside] != 9000).any()
    assert spread[:, inside].any()
    assert not spread[:, ~inside].any()
    expected = {
        "source_products": f"{FIRST} {NEAR} {FAR}",
        "checkpoint_sha256": file_sha256(trained),
        "config_sha256": digest(infer.items(config, folder)[0].config),
        "seed": 3,
        "sampler": "euler",
        "steps": 2,
        "members": 2,
        "uncertainty_factors": "1.0000 2.0000 3.0000 0.5000",
        "cloudjob_version": __version__,
    }
    assert {name: facts[name] for name in expected} == expected
    item = json.loads(folder.output(FIRST, ".json").read_text())
    assert item["properties"]["datetime"] == "2024-03-10T22:20:35Z"
    assert [link["href"].rpartition("/")[2] for link in item["links"][:3]] == [FIRST, NEAR, FAR]
    made = records.record(folder, "infer", FIRST)
    kept = made["outputs"]
    assert len(kept) == len(suffixes)
    assert all(file_sha256(folder.root / name) == facts["sha256"] for name, facts in kept.items())
    (figures,) = made["result"]["ranks"]
    phases = ["opening", "checking", "decoding", "first guess", "tiles", "blending", "writing"]
    assert list(figures["seconds"]) == phases
    assert figures["peak_bytes"] > 2**20
    collection = json.loads((folder.outputs / "collection.json").read_text())
    assert [link["rel"] for link in collection["links"]] == ["root", "item", "item"]
    assert infer.run(config, folder).skipped == [FIRST, SECOND]


def test_one_member_has_no_uncertainty(folder, trained, bands):
    folder.only = [FIRST]
    infer.run(chosen(trained), folder)
    with h5py.File(folder.output(FIRST, ".h5")) as file:
        assert "uncertainty" not in file
        assert file.attrs["source_products"] == f"{FIRST} {FAR}"
        assert file.attrs["members"] == 1
    assert folder.output(FIRST, ".h5").exists()
    assert not folder.output(SECOND, ".h5").exists()


def test_bands_as_the_source_had_them_go_with_the_scene_that_they_were_of(folder, trained, bands):
    folder.only = [FIRST]
    old = folder.output(FIRST, ".SAFE") / "GRANULE" / "old_B04_10m.jp2"
    old.parent.mkdir(parents=True)
    old.touch()
    infer.run(chosen(trained), folder)
    assert not folder.output(FIRST, ".SAFE").exists()


def test_progress_within_a_scene_is_told(folder, trained, bands):
    told = []
    folder.progress = lambda *now: told.append(now)
    infer.run(chosen(trained), folder)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert told[0] == (0.0025, f"infer: 0 of 2 ({FIRST}: checking 50%)")
    assert (0.1, f"infer: 0 of 2 ({FIRST}: decoding 100%)") in told
    assert (0.4 + 0.5 / 4) / 2 in shares  # the first of four tiles of the first of two scenes
    assert told[-1] == (1.0, f"infer: 2 of 2 ({SECOND})")


# --- ranks -------------------------------------------------------------------------------------------------------
@pytest.fixture
def run_on(folder, trained, bands, monkeypatch):
    """A function: what `infer.run` returns, or raises, on each of some ranks; each has a wish to stop of its own."""

    def run(size: int, *overrides: str, stopped: dict | None = None) -> list:
        here = threading.local()

        def work(rank):
            here.ranks = rank
            mine = RunFolder(folder.root, only=folder.only, force=folder.force and rank.rank == 0)
            mine.stop_requested = (stopped or {}).get(rank.rank, lambda: False)
            return infer.run(chosen(trained, *overrides), mine)

        monkeypatch.setattr(mpi, "communicator", lambda: here.ranks)
        return together(size, work)

    return run


def outputs(folder: RunFolder) -> dict[str, bytes]:
    """Of both products: all that was written, but the records."""
    return {
        path.name: path.read_bytes() for name in (FIRST, SECOND) for path in folder.output(name, "").parent.iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_comes_out_is_the_same_by_however_many_ranks(folder, run_on, bands, ranks):
    (alone,) = run_on(1, "infer.members=2")
    assert (alone.done, alone.note) == ([FIRST, SECOND], "1 rank")
    expected = outputs(folder)
    assert len(expected) == 2 * (len(BANDS) * 2 + 6)
    folder.force = True
    lead, *others = run_on(ranks, "infer.members=2")
    assert (lead.done, lead.note) == ([FIRST, SECOND], f"{ranks} ranks")
    assert all((each.done, each.failed) == ([], {}) for each in others)
    assert outputs(folder) == expected
    assert len(bands.asked) == 4  # each scene once, by one of the ranks
    figures = records.record(folder, "infer", FIRST)["result"]["ranks"]
    assert len(figures) == ranks


def test_a_product_that_a_rank_cannot_restore_has_failed_and_the_others_go_on(folder, run_on, monkeypatch):
    restore = Restorer.tiles

    def tiles(self, batch, places, *rest, **options):
        if places[0] == Tile(0, 24, 32, 32):
            raise ItemError("tile 2 is broken")
        return restore(self, batch, places, *rest, **options)

    monkeypatch.setattr(Restorer, "tiles", tiles)
    lead, other = run_on(2)
    assert lead.failed == dict.fromkeys((FIRST, SECOND), "rank 1: tile 2 is broken")
    assert other.failed == {}
    monkeypatch.undo()


@pytest.mark.slow
def test_what_cannot_be_written_has_failed_and_the_ranks_go_on_with_the_next_scene(folder, run_on, monkeypatch):
    write, named = infer._write, []

    def once(config, folder, item, *rest):
        named.append(item.name)
        if len(named) == 1:
            raise ItemError("the disk is strange")
        return write(config, folder, item, *rest)

    monkeypatch.setattr(infer, "_write", once)
    lead, other = run_on(2)
    assert (lead.failed, lead.done) == ({FIRST: "the disk is strange"}, [SECOND])
    assert not isinstance(other, Exception)
    assert run_on(2)[0].done == [FIRST]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_wish_to_stop_on_any_rank_ends_all_and_what_was_made_is_kept(folder, run_on, bands, monkeypatch, rank):
    restored, restore = [], Restorer.tiles

    def spy(self, batch, places, *rest, **options):
        restored.extend((tile.row, tile.col) for tile in places)
        return restore(self, batch, places, *rest, **options)

    monkeypatch.setattr(Restorer, "tiles", spy)
    found = run_on(2, stopped={rank: lambda: len(restored) >= 1})
    assert isinstance(found[0], InterruptedJob)
    assert not isinstance(found[1], Exception)  # rank 0 says it
    (work,) = folder.output(FIRST, "").parent.glob(".work-*")
    assert len(list(work.glob("tile-*.npy"))) == len(restored) < 4
    folder.only = [FIRST]
    assert run_on(3)[0].done == [FIRST]
    assert sorted(restored) == [(row, col) for row in (0, 8) for col in (0, 24)]
    assert len(bands.asked) == 1
    assert not work.exists()


def test_a_checkpoint_that_cannot_be_read_is_said_once_and_nobody_waits(folder, trained, run_on):
    trained.write_bytes(b"no checkpoint")
    lead, other = run_on(2)
    assert isinstance(lead, ItemError | ConfigError) or lead.failed
    assert not isinstance(other, Exception)


def test_what_an_earlier_attempt_with_other_inputs_left_is_removed(folder, trained, bands):
    old = folder.output(FIRST, "").parent / ".work-before"
    old.mkdir(parents=True)
    infer.run(chosen(trained), folder)
    assert not old.exists()


# --- products without a clear date -------------------------------------------------------------------------------
def unpaired(cloudy: str) -> dict:
    measures = {"accepted": False, "cloudy_cloud": 0.3, "sun_elevation": [25.0, 24.0]}
    return row(cloudy) | measures | {"reasons": ["clear date has 0.400 cloud, at most 0.05"]}


def test_a_product_without_an_acceptable_clear_date_is_an_item_of_itself_alone(folder, trained):
    write_jsonl(folder.pairs, [unpaired(FIRST), row(SECOND)])
    one, two = infer.items(chosen(trained), folder)
    assert (one.name, two.name) == (SECOND, FIRST)
    own = {FIRST: records.output_digest(folder, "download", FIRST)}
    assert two.inputs == own | {"checkpoint": file_sha256(trained), "pair": unpaired(FIRST)["version"]}
    (only,) = infer.items(chosen(trained, "infer.unpaired=false"), folder)
    assert (only.name, only.config) == (SECOND, one.config)  # what is done stays done


def test_it_is_restored_without_a_clear_date_and_that_is_said(folder, trained, bands):
    write_jsonl(folder.pairs, [unpaired(FIRST)])
    assert infer.run(chosen(trained, "infer.reference=nearest"), folder).done == [FIRST]
    assert [asked.shown for asked in bands.asked] == [()]
    said = f"infer: {FIRST} has no acceptable clear date, and is restored from itself alone: clear date has 0.400 cloud"
    assert folder.said[0].startswith(said)
    with h5py.File(folder.output(FIRST, ".h5")) as file:
        assert file.attrs["source_products"] == FIRST


@pytest.mark.slow
def test_from_pair_on_a_product_without_a_clear_date_goes_through(finished, tmp_path):
    """Of three tiles one keeps its clear date, and the bands of the others are fetched all the same."""
    run = RunFolder(copied(finished, tmp_path / "run", until="train"))
    good("pair", run.root, "--set", "pair.clear_max_unknown=0.001")
    for stage in ("review", "download"):
        good(stage, run.root)
    done = good("infer", run.root)
    rows = [json.loads(line) for line in run.pairs.read_text().splitlines()]
    paired = {row["cloudy"] for row in rows if row["accepted"]}
    alone = {row["cloudy"] for row in rows} - paired
    assert (len(paired), len(alone)) == (1, 2)
    assert "infer: 3 done" in done.stderr
    for name in paired | alone:
        said = f"infer: {name} has no acceptable clear date, and is restored from itself alone: clear date has 0.00"
        assert (said in done.stderr) == (name in alone)
        with h5py.File(run.output(name, ".h5")) as file:
            assert (file["reconstructed"][...] == 1).any()
            assert (file.attrs["source_products"] == name) == (name in alone)
    assert "infer: 0 done, 3 skipped" in good("infer", run.root).stderr
    assert "evaluate: 1 done" in good("evaluate", run.root).stderr


@pytest.mark.slow
def test_a_run_without_any_clear_product_is_restored_by_a_network_from_elsewhere(tmp_path):
    """No pair, and so nothing to train on."""
    run, trained = RunFolder(tmp_path / "run"), untrained(tmp_path)
    alone = ["search.clear.start=2024-05-01", "search.clear.end=2024-05-30", f"infer.checkpoint={trained}"]
    overrides = [part for each in alone for part in ("--set", each)]
    good("search", CONFIG, "--run-dir", run.root, *overrides)
    for stage in ("preview", "pair", "review", "download"):
        done = good(stage, run.root)
        if stage == "pair":
            assert "0 pairs of 0 candidates accepted, 3 products that no clear date suits" in done.stderr
            assert "no clear product of this tile" in done.stderr
    done = good("infer", run.root)
    assert "infer: 3 done" in done.stderr
    names = [json.loads(line)["cloudy"] for line in run.pairs.read_text().splitlines()]
    for name in names:
        said = "has no acceptable clear date, and is restored from itself alone: no clear product of this tile"
        assert f"infer: {name} {said}" in done.stderr
        with h5py.File(run.output(name, ".h5")) as file:
            assert (file["reconstructed"][...] == 1).any()
    refused = call("pair", run.root, "--set", "infer.checkpoint=null")
    clean_message(refused, 2, "none of 0 candidates", "--set infer.checkpoint=PATH of a trained network")
    clean_message(call("pair", run.root, "--set", f"infer.checkpoint={trained}", "--set", "infer.unpaired=false"), 2)
