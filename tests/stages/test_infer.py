"""infer in this process: its inputs, the dates that are shown, what ranks answer each other, what is written."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from affine import Affine
from front_door import copied, good
from small_runs import settings
from untrained import untrained

from cloudjob import __version__
from cloudjob.config.models import Config
from cloudjob.diffusion import checkpoint, networks
from cloudjob.errors import DiskFullError, InputError, InterruptedJob
from cloudjob.files import digest, file_sha256, write_jsonl
from cloudjob.hpc import mpi
from cloudjob.pixels import BANDS, CLEAR, CLOUD
from cloudjob.restoration.restorer import Restorer
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2 import product as products
from cloudjob.sentinel2 import scene as scenes
from cloudjob.stages import infer

FIRST = "S2B_MSIL2A_20240310T222035_N0510_R122_T05WPS_20240311T012735"
SECOND = "S2B_MSIL2A_20240311T222035_N0510_R122_T05WPS_20240312T012735"
NEAR = "S2A_MSIL2A_20240304T222541_N0510_R029_T05WPS_20240305T001122"
FAR = "S2A_MSIL2A_20240320T222541_N0510_R029_T05WPS_20240321T001122"
HEIGHT, WIDTH = 40, 56


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network that is smaller than any that is worth training; torch's threads as they were, afterwards."""
    monkeypatch.setitem(networks.SIZES, "speck", networks.Size(widths=(8, 8), blocks=1))
    monkeypatch.setattr(networks, "PRESETS", (*networks.PRESETS, "speck"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def row(cloudy: str, *, reference: str | None = FAR) -> dict:
    name = f"pair of {cloudy}"
    days = {"days": -6.0, "reference_days": None if reference is None else 10.0}
    shown = {"shown": True, "accepted": True, "version": f"v {cloudy[-6:]}"}
    return {"pair": name, "cloudy": cloudy, "clear": NEAR, "reference": reference} | days | shown


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
    ],
)
def test_which_clear_dates_the_model_is_shown(reference, pair, roles):
    assert infer._references(settings(f"infer.reference={reference}"), pair) == roles


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
    model = infer._open_model(chosen(trained), folder, 0)
    assert model.sha256 == file_sha256(trained)
    restorer = model.restorer
    assert (restorer.seed, restorer.sampler, restorer.steps, restorer.low_precision) == (3, "auto", 2, False)
    assert folder.said == []
    kept = checkpoint.load(trained)
    _, newer = (checkpoint.save(folder.checkpoints, replace(kept, seen=seen)) for seen in (8, 16))
    assert infer._open_model(settings(), folder, 0).sha256 == file_sha256(newer)  # the newest of this run


@pytest.mark.parametrize(("members", "rank", "warns"), [(3, 0, True), (1, 0, False), (3, 1, False)])
def test_factors_that_do_not_hold_for_these_steps_are_said(folder, trained, members, rank, warns):
    infer._open_model(chosen(trained, "infer.steps=3", f"infer.members={members}"), folder, rank)
    assert [line[:43] for line in folder.said] == ["infer: WARNING: /uncertainty is the members"] * warns


# --- ranks -------------------------------------------------------------------------------------------------------
class Ranks:
    """Rank 0 of several: what it told the others, and what they answer to each product."""

    def __init__(self, *answers: tuple[str, str] | None, rank: int = 0, told: list | None = None):
        self.answers, self.rank, self.size = answers, rank, 1 + len(answers)
        self.sent, self.gathered, self.told = [], [], iter(told or [])
        self.others = lambda work: None  # what they do when a product is named

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def bcast(self, value):
        self.sent.append(value)
        if value is not None:
            self.others(value)
        return next(self.told) if self.rank else value

    def gather(self, value):
        self.gathered.append(value)
        return None if self.rank else [value, *self.answers]


@pytest.fixture
def launched(monkeypatch):
    """A function: this process is among these ranks."""

    def put(ranks: Ranks) -> Ranks:
        monkeypatch.setattr(mpi, "communicator", lambda: ranks)
        return ranks

    return put


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


def test_it_is_restored_without_a_clear_date_and_that_is_said(folder, trained, dates):
    write_jsonl(folder.pairs, [unpaired(FIRST)])
    assert infer.run(chosen(trained, "infer.reference=nearest"), folder).done == [FIRST]
    assert dates == [f"cloudy={FIRST}.SAFE", "cloudy"]
    said = f"infer: {FIRST} has no acceptable clear date, and is restored from itself alone: clear date has 0.400 cloud"
    assert folder.said[0].startswith(said)
    with h5py.File(folder.output(FIRST, ".h5")) as file:
        assert file.attrs["source_products"] == FIRST


# --- a scene -----------------------------------------------------------------------------------------------------
class Date(scenes.Scene):
    def matched(self, other: scenes.Scene) -> np.ndarray:
        return other.bands


@pytest.fixture
def dates(monkeypatch) -> list[str]:
    """Scenes in place of those on the disk; the roles that were opened, in order."""
    opened: list[str] = []
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:20, 5:30] = CLOUD
    values = {"cloudy": 9000, "clear": 3000, "reference": 4000}

    def open_pair(safes, masks, *, labels, drifting, processes):
        assert (labels.name, drifting.name) == ("masks", "drifting")

        def load(role: str) -> Date:
            opened.append(role)
            here = mask if role == "cloudy" else np.full_like(mask, CLEAR)
            bands = np.full((4, HEIGHT, WIDTH), values[role], np.uint16)
            if role == "cloudy":
                bands[:, here == CLEAR] = 3000
            return Date(SimpleNamespace(sun_elevation=25.0), None, bands, here, here)

        opened.append(" ".join(f"{role}={path.name}" for role, path in safes.items()))
        return load

    sensed = SimpleNamespace(
        crs="EPSG:32605",
        transform=Affine(10, 0, 600000, 0, -10, 7900020),
        sensing_time=datetime(2024, 3, 10, 22, 20, 35, tzinfo=UTC),
    )
    monkeypatch.setattr(scenes, "open_pair", open_pair)
    monkeypatch.setattr(products.Product, "open", lambda path: sensed)
    return opened


@pytest.mark.parametrize(
    ("reference", "pair", "roles", "days", "value"),
    [
        ("nearest", row(FIRST), ["cloudy", "clear", "reference"], -6.0, 3000),
        ("other", row(FIRST), ["cloudy", "reference"], 10.0, 4000),
        ("none", row(FIRST), ["cloudy"], None, None),
        ("other", row(FIRST, reference=None), ["cloudy"], None, None),
    ],
)
def test_a_product_is_prepared_once_with_the_dates_that_are_shown(
    folder, trained, dates, tmp_path, reference, pair, roles, days, value
):
    config, work = chosen(trained, f"infer.reference={reference}"), tmp_path / "outputs" / ".work-now"
    (tmp_path / "outputs" / ".work-before").mkdir(parents=True)
    found = infer._prepare(config, folder, pair, work)
    assert not (tmp_path / "outputs" / ".work-before").exists()
    named = {"cloudy": FIRST, "clear": NEAR} | ({"reference": FAR} if pair["reference"] else {})
    assert dates == [" ".join(f"{role}={name}.SAFE" for role, name in named.items()), *roles]
    assert (found.reference_days, found.sun_elevation) == (days, 25.0)
    assert value is None if found.reference is None else (found.reference == value).all()
    again = infer._prepare(config, folder, pair, work)
    assert len(dates) == 1 + len(roles)
    np.testing.assert_array_equal(again.cloudy, found.cloudy)


def test_a_scene_is_restored_and_written_in_all_its_files(folder, trained, dates):
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
    inside[5:20, 5:30] = True
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
    kept = records.record(folder, "infer", FIRST)["outputs"]
    assert len(kept) == len(suffixes)
    assert all(file_sha256(folder.root / name) == facts["sha256"] for name, facts in kept.items())
    collection = json.loads((folder.outputs / "collection.json").read_text())
    assert [link["rel"] for link in collection["links"]] == ["root", "item", "item"]
    assert infer.run(config, folder).skipped == [FIRST, SECOND]


def test_one_member_has_no_uncertainty(folder, trained, dates):
    folder.only = [FIRST]
    infer.run(chosen(trained), folder)
    with h5py.File(folder.output(FIRST, ".h5")) as file:
        assert "uncertainty" not in file
        assert file.attrs["source_products"] == f"{FIRST} {FAR}"
        assert file.attrs["members"] == 1
    assert folder.output(FIRST, ".h5").exists()
    assert not folder.output(SECOND, ".h5").exists()


def test_bands_as_the_source_had_them_go_with_the_scene_that_they_were_of(folder, trained, dates):
    folder.only = [FIRST]
    old = folder.output(FIRST, ".SAFE") / "GRANULE" / "old_B04_10m.jp2"
    old.parent.mkdir(parents=True)
    old.touch()
    infer.run(chosen(trained), folder)
    assert not folder.output(FIRST, ".SAFE").exists()


def test_rank_0_names_each_product_and_sends_the_others_home(folder, trained, dates, launched):
    """What comes out is what comes out of one rank."""
    config = chosen(trained)
    infer.run(config, folder)
    alone = [folder.output(name, ".h5").read_bytes() for name in (FIRST, SECOND)]
    folder.force = True
    ranks = launched(Ranks(None, None))

    def share(work: str) -> None:
        assert len(list(Path(work).glob("tile-*.npy"))) == 0
        for rank in (1, 2):
            assert infer._crew(config, folder, SimpleNamespace(rank=rank, size=3))._share(Path(work)) is None
        shared.append(len(list(Path(work).glob("tile-*.npy"))))

    shared, ranks.others = [], share
    summary = infer.run(config, folder)
    assert summary.note == "3 ranks"
    assert shared == [2, 2]  # of four tiles, of which rank 0 takes the first and the last
    *works, end = ranks.sent
    assert end is None
    assert [Path(work).parent for work in works] == [folder.output(name, "").parent for name in (FIRST, SECOND)]
    assert all(Path(work).name.startswith(".work-") and not Path(work).exists() for work in works)
    assert ranks.gathered == [None, None]
    assert [folder.output(name, ".h5").read_bytes() for name in (FIRST, SECOND)] == alone


def test_a_product_that_a_rank_cannot_restore_has_failed_and_the_others_go_on(folder, trained, dates, launched):
    ranks = launched(Ranks(None, ("ItemError", "tile 3 is broken")))
    summary = infer.run(chosen(trained), folder)
    assert summary.failed == {name: f"{name}, rank 2: tile 3 is broken" for name in (FIRST, SECOND)}
    assert ranks.sent[-1] is None
    assert len(ranks.sent) == 3


@pytest.mark.parametrize("kind", [InterruptedJob, DiskFullError])
def test_a_wish_to_stop_or_a_full_disk_of_a_rank_ends_all(folder, trained, dates, launched, kind):
    ranks = launched(Ranks((kind.__name__, "enough")))
    with pytest.raises(kind, match=f"{FIRST}, rank 1: enough"):
        infer.run(chosen(trained), folder)
    assert len(ranks.sent) == 2
    assert ranks.sent[-1] is None  # they wait for a name


def test_what_was_restored_before_a_stop_is_not_restored_again(folder, trained, dates, monkeypatch):
    config = chosen(trained)
    asked = iter([False, False, True])
    folder.stop_requested = lambda: next(asked)
    with pytest.raises(InterruptedJob, match="finished tiles are kept"):
        infer.run(config, folder)
    (work,) = folder.output(FIRST, "").parent.glob(".work-*")
    assert [path.name for path in work.glob("tile-*.npy")] == ["tile-00000-00000.npy"]
    folder.stop_requested = lambda: False
    restored, restore = [], Restorer.tile

    def spy(self, batch, tile, member, **options):
        restored.append(tile)
        return restore(self, batch, tile, member, **options)

    monkeypatch.setattr(Restorer, "tile", spy)
    opened = len(dates)
    folder.only = [FIRST]
    assert infer.run(config, folder).done == [FIRST]
    assert len(dates) == opened
    assert [(tile.row, tile.col) for tile in restored] == [(0, 24), (8, 0), (8, 24)]


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
