import dataclasses
import errno
import json
import logging
import lzma
import os
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from batches import batch, restored

from cloudjob.diffusion import checkpoint
from cloudjob.diffusion.checkpoint import SCHEMA_VERSION, Checkpoint
from cloudjob.diffusion.recipe import PROCESSES, Recipe
from cloudjob.errors import ConfigError, CorruptFileError, DiskFullError, InputError
from cloudjob.files import digest
from cloudjob.pixels import BANDS


def made(seen: int, **others) -> Checkpoint:
    """A checkpoint of one weight tensor, which tells how far it is."""
    plain = {
        "seen": seen,
        "total": 800,
        "skipped": [2, 1],
        "model": {"weight": torch.full((1000,), float(seen))},
        "averages": {"0.10": {"weight": torch.full((1000,), seen + 0.1)}, "0.05": {"weight": torch.ones(3)}},
        "chosen": "0.10",
        "calibration": {"factors": [1.0, 2.0, 3.0, 4.0], "sampler": "euler", "steps": 2},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "config": {"seed": 3, "train": {"lr": 0.1}},
        "recipe": {"preset": "tiny"},
        "bands": list(BANDS),
        "cloudjob_version": "0.2",
        "key": "none",
    }
    return Checkpoint(**plain | others)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, state: dict) -> Path:
    """A checkpoint of any content, with the checksum that it should have."""
    with path.open("wb") as file:
        hashing = checkpoint._Hashing(file)
        torch.save(state, hashing)
        file.write(b"\nsha256 of the above: " + hashing.sha256.hexdigest().encode() + b"\n")
    return path


# --- saving ------------------------------------------------------------------------------------------------------
def test_what_was_saved_comes_back(tmp_path):
    saved = made(7)
    path = checkpoint.save(tmp_path / "new" / "folder", saved)
    assert path == tmp_path / "new" / "folder" / "step-00000007.pt"
    loaded = checkpoint.load(path)
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("model", "averages", "optimizer", "written_config"):
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name
    assert loaded.written_config == saved.config
    assert loaded.schema_version == SCHEMA_VERSION == 4
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert list(loaded.averages) == ["0.10", "0.05"]
    assert torch.equal(loaded.averages["0.05"]["weight"], torch.ones(3))
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], torch.zeros(4))
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_the_newest_two_are_kept_and_the_newest_comes_back(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    for seen in (9, 100, 20):
        checkpoint.save(tmp_path, made(seen))
    assert names(tmp_path) == ["step-00000020.pt", "step-00000100.pt"]
    path, loaded = checkpoint.load_newest(tmp_path)
    assert path == checkpoint.newest(tmp_path) == tmp_path / "step-00000100.pt"
    assert loaded.seen == 100
    assert torch.equal(loaded.model["weight"], torch.full((1000,), 100.0))


def test_where_no_checkpoint_is_one_is_told_what_to_run(tmp_path):
    folder = tmp_path / "train" / "checkpoints"
    with pytest.raises(InputError, match=re.escape(f"{folder} holds no checkpoint. Run: cloudjob train {tmp_path}")):
        checkpoint.newest(folder)


def test_bytes_depend_on_the_content_alone(tmp_path):
    """Not on the folder, nor on which strings and containers are one object."""
    one = checkpoint.save(tmp_path / "a", made(7)).read_bytes()
    text, tensors = json.dumps(made(7).config), made(7)
    other = made(7, config=json.loads(text), chosen="".join(["0.", "10"]), model=dict(tensors.model))
    assert one == checkpoint.save(tmp_path / "b", other).read_bytes()
    bands = ["B04", (1, "B08")]
    apart = [["".join(["B", "04"]), (int("1"), "".join(["B", "08"]))] for _ in range(2)]
    shared, equal = made(7, bands=bands, skipped=bands), made(7, bands=apart[0], skipped=apart[1])
    assert len({checkpoint.save(tmp_path / "d", each).read_bytes() for each in (shared, equal)}) == 1
    assert one != checkpoint.save(tmp_path / "c", made(7, bands=["B03"])).read_bytes()


def test_milestones_and_what_was_noted_stay(tmp_path):
    for seen in range(1, 8):
        checkpoint.save(tmp_path, made(seen), {"energy_kwh": seen / 8}, keep=lambda seen: seen % 3 == 0)
    kept = {f"step-{seen:08d}.{suffix}" for seen in (3, 6, 7) for suffix in ("pt", "json")}
    assert set(names(tmp_path)) == kept
    assert checkpoint.facts(tmp_path / "step-00000006.pt") == {"energy_kwh": 0.75}
    assert checkpoint.facts(tmp_path / "step-00000009.pt") == {}
    assert (tmp_path / "step-00000006.json").read_text() == '{\n "energy_kwh": 0.75\n}\n'
    (tmp_path / "step-00000006.json").write_text("{half")
    assert checkpoint.facts(tmp_path / "step-00000006.pt") == {}


def test_an_old_one_that_somebody_has_just_removed_is_not_missed(tmp_path):
    def keep(seen: int) -> bool:
        (tmp_path / checkpoint.file_name(seen)).unlink()
        return False

    for seen in (1, 2, 3):
        checkpoint.save(tmp_path, made(seen), keep=keep)
    assert names(tmp_path) == ["step-00000002.pt", "step-00000003.pt"]


def test_nothing_noted_nothing_beside_it(tmp_path):
    checkpoint.save(tmp_path, made(1))
    checkpoint.save(tmp_path, made(2), {})
    assert names(tmp_path) == ["step-00000001.pt", "step-00000002.json", "step-00000002.pt"]


def test_torch_alone_can_read_it(tmp_path):
    state = torch.load(checkpoint.save(tmp_path, made(7)), weights_only=True)
    assert state["seen"] == 7
    assert set(state) == {field.name for field in dataclasses.fields(Checkpoint)} - {"written_config"}


def test_what_a_gpu_wrote_is_read_without_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = checkpoint.save(tmp_path, made(7))
    assert checkpoint.load(path).model["weight"].device == torch.device("cpu")


def test_what_a_killed_save_left_is_removed(tmp_path):
    checkpoint.save(tmp_path, made(1))
    (tmp_path / ".tmp-1-step-00000002.pt@elsewhere").write_bytes(b"half")
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["step-00000001.pt"]


def test_what_somebody_else_has_just_removed_is_no_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / ".tmp-1-step-00000002.pt@elsewhere"])
    checkpoint.sweep(tmp_path)


def test_the_interval_grows_with_the_cost_of_a_save():
    assert checkpoint.interval(2, 3600) == pytest.approx(120)


def test_a_device_without_memory_does_not_make_a_checkpoint_corrupt(tmp_path, monkeypatch):
    def full(network, device):
        raise RuntimeError("CUDA out of memory")

    recipe = Recipe.of("tiny", "regression", **NORMALS)
    path = checkpoint.save(tmp_path, made(1, model=recipe.network().state_dict(), chosen="none", recipe=recipe.facts()))
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        checkpoint.open_network(path, "cuda")


# --- a full disk -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lacks", [0, 1])
def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch, lacks):
    """Room for the tensors of all parts, and 1 MiB for the rest, is enough."""
    needed = 4 * (1000 + 1000 + 3 + 4) + 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - lacks))
    if not lacks:
        checkpoint.save(tmp_path, made(1))
        return
    with pytest.raises(DiskFullError, match="1 MiB free, a checkpoint needs 1; the older ones are whole"):
        checkpoint.save(tmp_path, made(1))
    assert names(tmp_path) == []


def test_a_disk_that_says_0_bytes_free_is_tried(tmp_path, monkeypatch):
    """Some file systems do not know."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    checkpoint.save(tmp_path, made(1), {"loss": 1})
    assert names(tmp_path) == ["step-00000001.json", "step-00000001.pt"]


def test_a_broken_one_on_a_disk_that_cannot_be_written_to_is_passed_over(tmp_path, monkeypatch, caplog):
    for seen in (1, 2):
        checkpoint.save(tmp_path, made(seen))
    (tmp_path / "step-00000002.pt").write_bytes(b"broken")

    def refuse(*names):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    path, found = checkpoint.load_newest(tmp_path)
    assert (path.name, found.seen) == ("step-00000001.pt", 1)
    assert "step-00000002.pt" in caplog.text


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, made(1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=re.escape(f"{tmp_path}: no space left for a checkpoint")):
        checkpoint.save(tmp_path, made(2))
    assert names(tmp_path) == ["step-00000001.pt"]


def test_a_full_disk_in_the_middle_of_torchs_writer(tmp_path, monkeypatch):
    def save(value, file):
        file.write(b"x")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(DiskFullError):
        checkpoint.save(tmp_path, made(2))
    assert names(tmp_path) == []


def test_other_errors_are_not_disguised(tmp_path):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save(tmp_path, made(2, config={"harm": lambda: None}))
    assert names(tmp_path) == []


# --- damage ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_any_byte_changed_or_cut_off_is_noticed(tmp_path):
    one = torch.arange(8)
    path = checkpoint.save(tmp_path, made(1, model={"weight": one}, averages={"0.10": {"weight": one}}))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CorruptFileError, match="checksum"):
            checkpoint.load(path)
    for place in (*range(0, len(content), 50), *range(len(content) - 100, len(content))):
        path.write_bytes(content[:place])
        with pytest.raises(CorruptFileError, match="checksum"):
            checkpoint.load(path)
    path.write_bytes(content + b"\n")
    with pytest.raises(CorruptFileError, match="checksum"):
        checkpoint.load(path)
    path.write_bytes(content)
    assert checkpoint.load(path).seen == 1


def test_an_unreadable_one_is_named_and_set_aside(tmp_path, caplog):
    checkpoint.save(tmp_path, made(1))
    newest = checkpoint.save(tmp_path, made(2))
    newest.write_bytes(newest.read_bytes()[:-1000])
    path, loaded = checkpoint.load_newest(tmp_path)
    assert (path.name, loaded.seen) == ("step-00000001.pt", 1)
    assert str(newest) in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert names(tmp_path) == ["step-00000001.pt", "step-00000002.pt.corrupt"]


def test_one_that_another_rank_has_set_aside_is_passed_over(tmp_path, monkeypatch, caplog):
    """Before it was opened, or between opening and renaming."""
    for seen in (1, 2):
        checkpoint.save(tmp_path, made(seen))
    gone = [tmp_path / f"step-{seen:08d}.pt" for seen in (4, 3)]
    monkeypatch.setattr(checkpoint, "saved", lambda folder: [*gone, *sorted(folder.glob("step-*.pt"), reverse=True)])
    plain = checkpoint.load

    def load(path):
        if path == gone[0]:
            raise CorruptFileError(path, "is no whole checkpoint")
        return plain(path)

    monkeypatch.setattr(checkpoint, "load", load)
    path, loaded = checkpoint.load_newest(tmp_path)
    assert (path.name, loaded.seen) == ("step-00000002.pt", 2)
    assert names(tmp_path) == ["step-00000001.pt", "step-00000002.pt"]


def test_a_whole_file_of_something_else_is_damage(tmp_path):
    checkpoint.save(tmp_path, made(1))
    for number, state in enumerate([{"seen": 1}, {"seen": 1, "config": {}}, vars(made(1)) | {"more": 1}]):
        state = {name: value for name, value in state.items() if name != "written_config"}
        with pytest.raises(CorruptFileError, match="is not a checkpoint"):
            checkpoint.load(write(tmp_path / f"step-0000000{number + 2}.pt", state))
    assert checkpoint.load_newest(tmp_path)[1].seen == 1
    assert len(list(tmp_path.glob("*.corrupt"))) == 3


def test_a_checkpoint_cannot_run_code(tmp_path):
    path = checkpoint.save(tmp_path, made(1, config={"seen": os.getcwd, "harm": re.compile}))
    with pytest.raises(CorruptFileError, match="cannot be read"):
        checkpoint.load(path)


# --- whose it is, and its weights --------------------------------------------------------------------------------
@pytest.mark.parametrize(("chosen", "expected"), [("0.10", 7.1), ("0.05", 1), ("none", 7)])
def test_the_weights_are_those_that_were_chosen(chosen, expected):
    assert made(7, chosen=chosen).weights["weight"][0].item() == pytest.approx(expected)


def test_the_key_says_which_training_it_is_of():
    config, inputs = {"seed": 3, "train": {"lr": 0.1}}, {"shards": "abc"}
    assert checkpoint.key(config, inputs) == digest([config, inputs])
    own = made(7, config=config, key=checkpoint.key(config, inputs))
    assert own.is_of(config, inputs)
    assert not own.is_of(config | {"seed": 4}, inputs)
    assert not own.is_of(config, {"shards": "other"})
    assert not dataclasses.replace(own, key=checkpoint.key(config | {"seed": 4}, inputs)).is_of(config, inputs)
    older = dataclasses.replace(
        own, written_config={"seed": 3}, key=checkpoint.key({"seed": 3}, inputs), config=config | {"new": 1}
    )
    assert older.is_of(config | {"new": 1}, inputs)
    assert not older.is_of(config, inputs)
    assert not older.is_of(config | {"new": 1}, {"shards": "other"})


# --- networks ----------------------------------------------------------------------------------------------------
NORMALS = {"mean": [0.6] * 4, "std": [0.2] * 4}


def normal_noise(step: int) -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_checkpoint_restores_as_the_network_that_it_was_made_of(process, tmp_path):
    torch.manual_seed(0)
    recipe = Recipe.of("tiny", process, **NORMALS)
    network = recipe.network()
    with torch.no_grad():
        for parameter in network.parameters():  # untrained it says nothing
            parameter.add_(0.02 * torch.randn_like(parameter))
    other = {name: value + 1 for name, value in network.state_dict().items()}
    path = checkpoint.save(
        tmp_path,
        made(8, recipe=recipe.facts(), model=other, averages={"0.10": network.state_dict(), "0.05": other}),
    )
    again, loaded, calibration = checkpoint.open_network(path, "cpu")
    assert again == recipe
    assert not loaded.training
    assert calibration == made(8).calibration
    mask = torch.zeros(2, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:] = 1
    told = batch(torch.rand(2, 4, 16, 16), mask, reference=torch.rand(2, 4, 16, 16))
    options = {"noise": normal_noise, "steps": 2, "sampler": "euler"}
    images = [restored(one, net.eval(), told, **options) for one, net in ((recipe, network), (again, loaded))]
    assert torch.equal(*images)
    assert images[0].isfinite().all()


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"preset": "small", "process": "regression", **NORMALS}, "Error(s) in loading state_dict for UNet:"),  # shapes
        ({"preset": "tiny", "process": "corrective", **NORMALS}, "Error(s) in loading"),  # names
        ({"preset": "tiny", "process": "of tomorrow", **NORMALS}, "'of tomorrow'"),
        ({"preset": "huge", "process": "regression", **NORMALS}, "preset 'huge': must be one of tiny"),
        ({"preset": "tiny", "process": "regression", "unknown": 1, **NORMALS}, "Regression.__init__() got an"),
    ],
)
def test_another_network_than_the_recipes_is_named_and_left_alone(recipe, reason, tmp_path):
    weights = Recipe.of("tiny", "regression", **NORMALS).network().state_dict()
    path = checkpoint.save(tmp_path, made(8, recipe=recipe, averages={"0.10": weights}))
    with pytest.raises(CorruptFileError, match=re.escape(f"{path}: is not a checkpoint of this version ({reason}")):
        checkpoint.open_network(path, "cpu")
    assert path.exists()


# --- older and newer versions ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """One of schema version 1: 8 of 24 samples of a regression with preset tiny, whose weights began as multiples of
    1/256, so that they pack well."""
    packed = Path(__file__).with_name("checkpoint-schema-1.pt.xz").read_bytes()
    path = tmp_path_factory.mktemp("older") / "step-00000008.pt"
    path.write_bytes(lzma.decompress(packed))
    return path


def test_a_checkpoint_of_version_1_is_migrated_and_goes_on(older):
    assert "schema_version" not in torch.load(older, weights_only=True)
    kept = checkpoint.load(older)
    assert (kept.schema_version, kept.seen, kept.total, kept.skipped) == (4, 8, 24, [0, 0])
    assert (kept.config["train"]["betas"], kept.config["train"]["weight_decay"]) == ([0.9, 0.99], 0.01)
    group = kept.optimizer["param_groups"][0]
    assert (list(group["betas"]), group["weight_decay"]) == ([0.9, 0.99], 0.01)
    assert not {"betas", "weight_decay"} & set(kept.written_config["train"])
    fixed = {"betas": [0.9, 0.99], "weight_decay": 0.01, "first_guess": "surroundings", "deviation": False}
    now = {**kept.written_config, "train": {**kept.written_config["train"], **fixed}}
    shards = {"shards": "9d8279f434290268bc5f5d9a6ac61f693a3e884b53c33b2122d40cb66b77a6ec"}
    assert kept.is_of(now, shards)
    assert not kept.is_of({**now, "train": {**now["train"], "weight_decay": 0.02}}, shards)
    assert not kept.is_of(now, {"shards": "others"})
    found = checkpoint.load_newest(older.parent)
    assert found is not None
    assert found[0] == older


def test_a_checkpoint_of_version_1_restores_as_its_own_code_did(older):
    """The numbers are those that cloudjob gave with this file before its checkpoints had a version."""
    recipe, network, calibration = checkpoint.open_network(older, "cpu")
    assert calibration == {}
    row, col = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = [torch.sin(0.2 * (band + 1) * row + 0.3 * col) for band in range(4)]
    ground = 0.2 + 0.05 * torch.stack(waves)[None]
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:12] = 1
    told = batch(
        ground.masked_fill(mask[:, None] == 1, 0.7),
        mask,
        reference=ground + 0.02,
        reference_days=torch.tensor([9.0]),
        target_days=torch.zeros(1),
        sun_elevation=torch.tensor([20.0]),
    )
    options = {"noise": lambda step: torch.zeros(1, 4, 16, 16), "steps": 2}
    found = restored(recipe, network, told, **options)[0, :, 6, 9]
    assert found.tolist() == pytest.approx([0.103483, 0.185601, 0.149997, 0.191354], abs=2e-6)
    found = restored(recipe, network, told.without_references(), **options)[0, :, 6, 9]
    assert found.tolist() == pytest.approx([0.111969, 0.275738, 0.141640, 0.117997], abs=2e-6)


def test_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = checkpoint.save(tmp_path, made(5, schema_version=5, cloudjob_version="9.1"))
    whole = path.read_bytes()
    said = re.escape(f"{path}: cloudjob 9.1 wrote it, with schema version 5; this one reads versions up to 4")
    for read in (lambda: checkpoint.load(path), lambda: checkpoint.load_newest(tmp_path)):
        with pytest.raises(ConfigError, match=said):
            read()
    with pytest.raises(ConfigError, match=said):
        checkpoint.open_network(path, "cpu")
    assert names(tmp_path) == ["step-00000005.pt"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"bands": ["B02", "B03", "B04", "B08"]}, "for the bands B02, B03, B04, B08; here they are B04, B03, B02, B08"),
        ({"bands": []}, r"for the bands \(none\); here"),
        (
            {"recipe": {"mean": [0.1] * 3, "std": [0.1] * 3}},
            "the mean of 3 bands in its normalisation; here they are 4",
        ),
    ],
)
def test_a_network_of_other_bands_is_refused_by_name(tmp_path, other, told):
    path = checkpoint.save(tmp_path, made(8, **other))
    with pytest.raises(ConfigError, match=rf"{path.name}: a checkpoint .*{told}"):
        checkpoint.open_network(path, "cpu")
