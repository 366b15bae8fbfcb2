"""The state of a training: what a step does to it, and that going on from a checkpoint equals never having stopped."""

import hashlib
import lzma
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import batch

from cloudjob import __version__
from cloudjob.diffusion import checkpoint, networks
from cloudjob.diffusion.average import GAMMAS, PowerAverage
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import ConfigError, ItemError
from cloudjob.hpc import distributed
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.pixels import CLOUD
from cloudjob.training.settings import Files, Identity, Settings, Talk
from cloudjob.training.state import State
from cloudjob.training.step import learning_rate

ALONE = ProcessGroup(0, 1, 0, torch.device("cpu"))
PLAIN = Settings(
    options={},
    preset="speck",
    process="regression",
    batch_size=2,
    warmup=4,
    lr=1e-3,
    precision="float32",
    compile=False,
)
CONFIG = {"seed": 0, "train": {"preset": "speck", "lr": 1e-3}}
IDENTITY = Identity(config=CONFIG, inputs={"shards": "abc"})
QUARTERS = (0.25, 0.5, 0.75)


@pytest.fixture(autouse=True)
def speck(monkeypatch) -> None:
    """A preset that is smaller than any that is worth training."""
    monkeypatch.setitem(networks.SIZES, "speck", networks.Size(widths=(8, 8), blocks=1))
    monkeypatch.setattr(networks, "PRESETS", (*networks.PRESETS, "speck"))


def state(settings: Settings = PLAIN, total: int = 16, group: ProcessGroup = ALONE) -> State:
    recipe = Recipe.of(settings.preset, settings.process, mean=[0.2] * 4, std=[0.1] * 4)
    return State(recipe, settings, total, group)


def triplets(first: int):
    """Two triplets that are a function of their numbers."""
    generator = torch.Generator().manual_seed(first)
    cloudy, target = torch.rand(2, 2, 4, 16, 16, generator=generator) * 0.4
    mask = torch.zeros(2, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:12] = CLOUD
    return batch(cloudy, mask, target=target, sun_elevation=torch.full((2,), 30.0))


def train(made: State, steps: int) -> None:
    for _ in range(steps):
        made.step.gradient([made.seen, made.seen + 1], triplets(made.seen))
        made.advance()


def digests(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{name}": hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}


def everything(made: State) -> dict:
    """All that the rest of a training depends on."""
    found = {"seen": made.seen, "skipped": (made.skipped, made.skipped_in_a_row), "chosen": made.chosen}
    found |= digests(made.network.state_dict())
    for width, average in made.averages.items():
        found |= digests(average.state_dict(), f"{width} ")
    for number, moments in made.step.optimizer.state_dict()["state"].items():
        found |= digests(moments, f"{number} ")
    return found


def files(folder: Path) -> Files:
    names = ("checkpoints", "metrics", "validation", "checks", "job_cards", "samples", "tensorboard", "forced")
    return Files(**{name: folder / "train" / name for name in names})


class Heard(list):
    """Lines that were said."""

    @property
    def talk(self) -> Talk:
        return Talk(say=self.append)


# --- anew --------------------------------------------------------------------------------------------------------
def test_a_new_training_follows_from_its_seed():
    one, same, other = state(), state(), state(replace(PLAIN, seed=1))
    assert everything(one) == everything(same)
    assert everything(one) != everything(other)
    assert (one.seen, one.skipped, one.skipped_in_a_row, one.calibration) == (0, 0, 0, {})
    assert one.network.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert {width: average.gamma for width, average in one.averages.items()} == GAMMAS


@pytest.mark.parametrize(
    ("setting", "chosen"),
    [("auto", "0.10"), ("0.05", "0.05"), ("0.10", "0.10"), ("0.9999", "0.9999"), ("none", "none")],
)
def test_until_the_end_a_fixed_or_the_wider_average_counts(setting, chosen):
    assert state(replace(PLAIN, average=setting)).chosen == chosen


def test_more_ranks_than_samples_are_a_mistake():
    with pytest.raises(ConfigError, match="3 ranks cannot share it out"):
        state(group=ProcessGroup(0, 3, 0, torch.device("cpu")))


# --- a step ------------------------------------------------------------------------------------------------------
def test_a_step_takes_the_rate_of_the_samples_seen_before_it(monkeypatch):
    made, rates = state(), []
    monkeypatch.setattr(made.step, "update", lambda rate, skip: rates.append(rate))
    for _ in range(3):
        assert made.rate == learning_rate(PLAIN, seen=made.seen, total=16)
        made.advance()
    assert rates == [learning_rate(PLAIN, seen=seen, total=16) for seen in (0, 2, 4)]
    assert made.seen == 6


def test_the_exponential_average_goes_through_a_checkpoint(tmp_path):
    settings = replace(PLAIN, average="0.9999")
    made = state(settings)
    train(made, 2)
    made.save(files(tmp_path), IDENTITY, {}, milestones=())
    again = state(settings)
    again.resume(files(tmp_path), IDENTITY, Talk(), anew=False)
    assert list(again.averages) == ["0.9999"]
    assert everything(again) == everything(made)
    assert torch.equal(again.averaged("0.9999").stem.weight, made.averages["0.9999"].average["stem.weight"])
    assert not torch.equal(again.averaged("0.9999").stem.weight, made.network.stem.weight)


def test_averages_take_in_the_weights_after_the_step():
    made = state()
    expected = {width: PowerAverage(made.network, gamma=gamma) for width, gamma in GAMMAS.items()}
    for number in range(1, 4):
        train(made, 1)
        for width, average in expected.items():
            average.update(made.network, step=number)
            assert torch.equal(average.average["stem.weight"], made.averages[width].average["stem.weight"])


def test_how_far_it_is_is_noted_where_ranks_watch_each_other():
    class Watch:
        seen = 0

    made = state(group=replace(ALONE, watch=Watch()))
    train(made, 2)
    assert made.group.watch.seen == 4


def test_a_bad_step_changes_no_weight_and_is_counted(monkeypatch):
    made, heard = state(), Heard()
    train(made, 1)
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    made.step.gradient([2, 3], triplets(2))
    for weight in made.network.parameters():
        weight.grad.fill_(torch.nan)
    moments = made.step.optimizer.state_dict()["state"]
    kept = {number: {name: value.clone() for name, value in each.items()} for number, each in moments.items()}
    made.advance(torch.ones(()))  # on the device: nobody has asked what it is
    made.count(bad=True, seen=2, say=heard.append)
    for number, each in made.step.optimizer.state_dict()["state"].items():
        assert all(torch.equal(kept[number][name], value) for name, value in each.items())
    assert all(torch.equal(before[name], value) for name, value in made.network.state_dict().items())
    assert (made.seen, made.skipped, made.skipped_in_a_row) == (4, 1, 1)
    assert heard == [
        "train: the loss or its gradient was not finite after 2 samples; that step is skipped (1 in a row)"
    ]


def test_too_many_in_a_row_end_it_on_all_ranks():
    made, heard = state(replace(PLAIN, max_skipped=3)), Heard()
    for bad in (True, True, False, True, True):
        made.count(bad=bad, seen=made.seen, say=heard.append)
        made.seen += 2
    assert (made.skipped, made.skipped_in_a_row, made.seen) == (4, 2, 10)
    with pytest.raises(
        ItemError, match=r"not finite after 10 samples, for 3 steps in a row: lower train\.lr"
    ) as failed:
        made.count(bad=True, seen=made.seen, say=heard.append)
    assert failed.value.on_all_ranks
    assert len(heard) == 5
    assert made.seen == 10


@pytest.mark.parametrize(
    ("total", "share", "passed"),
    [
        (16, 0.5, [8]),  # exactly there
        (16, 0.25, [4]),
        (20, 0.25, [6]),  # 5 samples: by the first step that has them
        (16, 1.0, [16]),
        (16, 0.05, [2]),  # by the first step
    ],
)
def test_a_share_is_passed_by_one_step(total, share, passed):
    made, now, before = state(total=total), [], []
    for seen in range(2, total + 1, 2):
        made.seen = seen
        now += [seen] * made.passed((share,))
        before += [seen - 2] * made.passed((share,), seen - 2)
    assert now == passed
    assert before == [seen for seen in passed if seen < total]
    assert not made.passed(())


def test_any_of_several_shares_counts():
    made, now = state(), []
    for seen in range(2, 17, 2):
        made.seen = seen
        now += [seen] * made.passed(QUARTERS)
    assert now == [4, 8, 12]


def test_averaged_is_a_copy():
    made = state()
    train(made, 3)
    for width in ("0.10", "0.05"):
        network = made.averaged(width)
        assert not network.training
        assert torch.equal(network.stem.weight, made.averages[width].average["stem.weight"])
        assert not torch.equal(network.stem.weight, made.network.stem.weight)
    network = made.averaged("none")
    assert torch.equal(network.stem.weight, made.network.stem.weight)
    network.stem.weight.data.zero_()
    assert made.network.stem.weight.abs().sum() > 0
    assert made.network.training


# --- saved and resumed -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("stops", [(1,), (3, 4)])
def test_resumed_equals_never_stopped_bit_for_bit(tmp_path, stops):
    plain = state()
    train(plain, 6)
    made, done = state(), 0
    for stop in stops:
        train(made, stop - done)
        made.skipped, made.skipped_in_a_row = 5, 2  # as a bad step leaves them
        made.chosen, made.calibration = "0.05", {"factors": [1.0]}
        made.save(files(tmp_path), IDENTITY, {"seen": made.seen}, milestones=())
        made, done, heard = state(), stop, Heard()
        made.resume(files(tmp_path), IDENTITY, heard.talk, anew=False)
        assert heard == [f"train: goes on from step-{2 * stop:08d}.pt, {2 * stop} of 16 samples seen"]
        assert (made.seen, made.skipped, made.skipped_in_a_row) == (2 * stop, 5, 2)
        assert (made.chosen, made.calibration) == ("0.05", {"factors": [1.0]})
        made.skipped, made.skipped_in_a_row, made.chosen = 0, 0, "0.10"
    train(made, 6 - done)
    assert everything(made) == everything(plain)


def test_a_checkpoint_holds_all_that_inference_needs(tmp_path):
    made = state()
    train(made, 1)
    before = made.save_s
    made.save(files(tmp_path), IDENTITY, {"energy_kwh": 1.5}, milestones=())
    assert before == 1.0
    assert 0 < made.save_s != before
    path = checkpoint.newest(files(tmp_path).checkpoints)
    kept = checkpoint.load(path)
    assert (kept.seen, kept.total, kept.skipped, kept.chosen) == (2, 16, [0, 0], "0.10")
    assert (kept.config, kept.key) == (CONFIG, checkpoint.key(CONFIG, {"shards": "abc"}))
    assert (kept.bands, kept.cloudjob_version) == (["B04", "B03", "B02", "B08"], __version__)
    assert Recipe.of(**kept.recipe) == made.recipe
    assert checkpoint.facts(path) == {"energy_kwh": 1.5}
    _, network, _ = checkpoint.open_network(path, "cpu")
    assert torch.equal(network.stem.weight, made.averages["0.10"].average["stem.weight"])


@pytest.mark.slow
def test_milestones_are_kept(tmp_path):
    made = state()
    for _ in range(8):
        train(made, 1)
        made.save(files(tmp_path), IDENTITY, {}, milestones=QUARTERS)
    names = sorted(path.name for path in files(tmp_path).checkpoints.glob("*.pt"))
    assert names == [f"step-{seen:08d}.pt" for seen in (4, 8, 12, 14, 16)]


def begun(folder: Path, steps: int = 2, **changed) -> State:
    made = state(**changed)
    train(made, steps)
    made.save(files(folder), IDENTITY, {}, milestones=())
    return made


def resumed(
    folder: Path, identity: Identity = IDENTITY, *, anew: bool = False, settings: Settings = PLAIN, total: int = 16
):
    made, heard = state(settings, total), Heard()
    made.resume(files(folder), identity, heard.talk, anew=anew)
    return made, heard


def test_without_a_checkpoint_it_begins(tmp_path):
    made, heard = resumed(tmp_path)
    assert heard == []
    assert everything(made) == everything(state())


def other(inputs: str = "abc", **train) -> Identity:
    """The training of these tests with other settings, or on other shards."""
    return Identity(config=CONFIG | {"train": CONFIG["train"] | train}, inputs={"shards": inputs})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("identity", "lines"),
    [
        (other(preset="tiny", epochs=2), ["train.epochs None -> 2", "train.preset speck -> tiny"]),
        (other("others"), ["shards: others than it was trained on"]),
        (other("others", lr=2), ["train.lr 0.001 -> 2", "shards: others than it was trained on"]),
        (other("others", samples=24), ["train.samples None -> 24", "shards: others than it was trained on"]),
    ],
    ids=["settings", "shards", "both", "longer, on other shards"],
)
@pytest.mark.parametrize(
    ("steps", "kind", "back"), [(2, "an unfinished", "go on with it"), (8, "a finished", "keep it")]
)
def test_a_training_that_differs_is_refused_and_left_as_it_is(tmp_path, identity, lines, steps, kind, back):
    begun(tmp_path, steps)
    before = sorted(tmp_path.rglob("*"))
    settings = replace(PLAIN, decay=False)
    with pytest.raises(ConfigError) as failed:
        resumed(tmp_path, identity, settings=settings, total=24)
    path = files(tmp_path).checkpoints / f"step-{2 * steps:08d}.pt"
    assert str(failed.value) == (
        f"{path} is of {kind} training ({2 * steps} of 16 samples), set otherwise:\n"
        + "".join(f"  {line}\n" for line in lines)
        + f"set these back to {back}; or start anew: cloudjob train with --force (it is kept aside), or in another "
        f"--run-dir, from its weights with --init-from {path}"
    )
    assert failed.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("changed", [{"samples": 24}, {"epochs": 2}, {"epochs": 2, "samples": 24}])
@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.slow
def test_a_longer_training_goes_on_where_the_rate_does_not_decay(tmp_path, changed, steps):
    """And ends as one that was as long from the start."""
    settings = replace(PLAIN, decay=False)
    plain = state(settings, total=24)
    train(plain, 12)
    short = state(settings)
    train(short, steps)
    if steps == 8:
        short.chosen, short.calibration = "0.05", {"factors": [1.0]}  # as the end of a training leaves them
    short.save(files(tmp_path), IDENTITY, {}, milestones=())
    made, heard = resumed(tmp_path, other(**changed), settings=settings, total=24)
    assert heard == [f"train: goes on from step-{2 * steps:08d}.pt, {2 * steps} of 24 samples seen"]
    assert (made.chosen, made.calibration) == ("0.10", {})
    train(made, 12 - steps)
    assert everything(made) == everything(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("total", "decay", "words"),
    [(24, True, "with train.decay the learning rate"), (8, True, "with train.decay"), (8, False, "train.samples")],
)
def test_a_longer_training_with_decay_and_a_shorter_one_are_refused(tmp_path, total, decay, words):
    begun(tmp_path)
    with pytest.raises(ConfigError) as failed:
        resumed(tmp_path, other(samples=total), settings=replace(PLAIN, decay=decay), total=total)
    assert words in str(failed.value)
    assert "--init-from" in str(failed.value)


def test_a_length_that_is_said_in_another_way_is_the_same(tmp_path):
    made = begun(tmp_path)
    again, _ = resumed(tmp_path, other(samples=16, epochs=9))
    assert everything(again) == everything(made)


@pytest.mark.slow
@pytest.mark.parametrize("identity", [IDENTITY, other("others", lr=2)], ids=["the same", "set otherwise"])
@pytest.mark.parametrize("steps", [2, 8])
def test_by_force_it_begins_anew_once_and_the_earlier_one_is_kept_aside_whole(tmp_path, identity, steps):
    begun(tmp_path, steps)
    (tmp_path / "train" / "metrics").write_text("rows")
    (tmp_path / "train-before-1").mkdir()
    made, heard = resumed(tmp_path, identity, anew=True)
    aside = tmp_path / "train-before-2"
    assert heard == [f"train: starts anew (--force); the earlier training is kept in {aside}"]
    assert everything(made) == everything(state())
    assert (aside / "metrics").read_text() == "rows"
    assert (aside / "checkpoints" / f"step-{2 * steps:08d}.pt").exists()
    assert not list(files(tmp_path).checkpoints.glob("*"))
    for moment in (0, 1):  # stopped before its first checkpoint, and after it
        if moment:
            train(made, 1)
            made.save(files(tmp_path), identity, {}, milestones=())
        again, heard = resumed(tmp_path, identity, anew=True)
        assert everything(again) == everything(made)
        assert heard[-1:] == ["train: goes on from step-00000002.pt, 2 of 16 samples seen"] * moment
        assert not (tmp_path / "train-before-3").exists()
    _, heard = resumed(tmp_path, other(lr=3), anew=True)  # another force
    assert heard == [f"train: starts anew (--force); the earlier training is kept in {tmp_path / 'train-before-3'}"]


def test_a_training_without_a_readable_checkpoint_is_kept_aside_whole(tmp_path):
    begun(tmp_path)
    path = files(tmp_path).checkpoints / "step-00000004.pt"
    path.write_bytes(b"torn")
    made, heard = resumed(tmp_path)
    assert made.seen == 0
    aside = tmp_path / "train-before-1"
    assert heard == [f"train: starts anew (no checkpoint of it can be read); the earlier training is kept in {aside}"]
    assert (aside / "checkpoints" / "step-00000004.pt.corrupt").read_bytes() == b"torn"


@pytest.mark.slow
def test_a_version_with_another_network_is_said(tmp_path):
    begun(tmp_path)
    path = files(tmp_path).checkpoints / "step-00000004.pt"
    kept = checkpoint.load(path)
    for change in (
        {"model": kept.model | {"head.bias": kept.model["head.bias"][:-1]}},
        {"model": kept.model | {"tail": torch.zeros(1)}},
        {"model": {name: value for name, value in kept.model.items() if name != "head.bias"}},
    ):
        checkpoint.save(path.parent, replace(kept, **change))
        with pytest.raises(
            ConfigError, match=r"step-00000004.pt: cloudjob .*, which wrote it, had another network.*--force"
        ):
            resumed(tmp_path)


def test_what_a_killed_save_has_left_is_swept(tmp_path):
    begun(tmp_path)
    (files(tmp_path).checkpoints / ".tmp-1-step").touch()
    resumed(tmp_path)
    assert not list(files(tmp_path).checkpoints.glob(".tmp-*"))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path):
    made = begun(tmp_path)
    before = everything(made)
    train(made, 1)
    made.save(files(tmp_path), IDENTITY, {}, milestones=())
    path = files(tmp_path).checkpoints / "step-00000006.pt"
    path.write_bytes(path.read_bytes()[:-100])
    found, heard = resumed(tmp_path)
    assert everything(found) == before
    assert heard == ["train: goes on from step-00000004.pt, 4 of 16 samples seen"]
    assert path.with_name(path.name + ".corrupt").exists()


# --- other ranks -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_other_ranks_load_what_rank_0_found(tmp_path, monkeypatch):
    """They do not look for themselves, nor set anything aside."""
    made = begun(tmp_path)
    path = files(tmp_path).checkpoints / "step-00000004.pt"
    checkpoint.save(path.parent, replace(checkpoint.load(path), seen=6, config={}))
    found = state(group=ProcessGroup(1, 2, 1, torch.device("cpu")))
    monkeypatch.setattr(distributed, "gather", lambda own: [path, own])
    monkeypatch.setattr(distributed, "run_on_all_ranks", lambda task: task())
    found.resume(files(tmp_path), IDENTITY, Talk(), anew=True)
    assert everything(found) == everything(made)


# --- given weights -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_new_training_may_start_from_given_weights(tmp_path):
    begun(tmp_path / "given")
    path = files(tmp_path / "given").checkpoints / "step-00000004.pt"
    settings = replace(PLAIN, init_from=path, seed=9)
    made, heard = resumed(tmp_path, settings=settings)
    weights = checkpoint.load(path).averages["0.10"]
    tensors = len(weights)
    assert heard == [f"train: starts from {path}: {tensors} of {tensors} tensors taken"]
    assert made.seen == 0
    for found in (made.network.state_dict(), *(average.state_dict() for average in made.averages.values())):
        assert all(torch.equal(found[name], value) for name, value in weights.items())
    # one that has begun goes on from its own
    train(made, 1)
    made.save(files(tmp_path), IDENTITY, {}, milestones=())
    again, heard = resumed(tmp_path, settings=settings)
    assert heard == ["train: goes on from step-00000002.pt, 2 of 16 samples seen"]
    assert everything(again) == everything(made)


@pytest.mark.slow
def test_what_does_not_fit_is_named_and_left_as_it_was(tmp_path):
    begun(tmp_path / "given")
    path = files(tmp_path / "given").checkpoints / "step-00000004.pt"
    kept = checkpoint.load(path)
    weights = kept.averages["0.10"]
    bias = weights["head.bias"]
    del weights["stem.bias"]
    changed = kept.averages | {"0.10": weights | {"head.bias": torch.ones(3, 3), "tail": torch.ones(2)}}
    checkpoint.save(path.parent, replace(kept, averages=changed))
    made, heard = resumed(tmp_path, settings=replace(PLAIN, init_from=path))
    fresh = state()
    own = len(fresh.network.state_dict())
    stem = tuple(fresh.network.stem.bias.shape)
    assert heard == [
        f"train: starts from {path}: {own - 2} of {own} tensors taken",
        f"train:   does not fit: head.bias, here {tuple(bias.shape)}, there (3, 3)",
        f"train:   does not fit: stem.bias, here {stem}, there none",
        "train:   does not fit: tail, here none, there (2,)",
    ]
    assert torch.equal(made.network.head.bias, fresh.network.head.bias)
    assert torch.equal(made.network.stem.bias, fresh.network.stem.bias)
    assert torch.equal(made.network.stem.weight, weights["stem.weight"])


@pytest.mark.slow
def test_weights_that_cannot_be_taken_are_a_mistake_and_move_nothing(tmp_path):
    """Missing, damaged, of quite another network: before what lies there is kept aside."""
    begun(tmp_path)
    begun(tmp_path / "given")
    path = files(tmp_path / "given").checkpoints / "step-00000004.pt"
    kept, torn = checkpoint.load(path), tmp_path / "torn.pt"
    torn.write_bytes(path.read_bytes()[:-100])
    strange = {"weight": torch.ones(1)}
    checkpoint.save(path.parent, replace(kept, averages=dict.fromkeys(kept.averages, strange)))
    other = checkpoint.save(tmp_path / "other", replace(kept, bands=["B02", "B03", "B04", "B08"]))
    before = sorted(tmp_path.rglob("*"))
    for given, words in (
        (other, "a checkpoint for the bands B02, B03, B04, B08; here they are B04, B03, B02, B08"),
        (tmp_path / "none.pt", r"train\.init_from: .*none.pt does not exist"),
        (tmp_path, "or is no file"),
        (torn, r"train\.init_from: .*torn.pt: is no whole checkpoint"),
        (path, r"no tensor of .*step-00000004\.pt fits this network \(speck\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            resumed(tmp_path, settings=replace(PLAIN, init_from=given), anew=True)
    assert sorted(tmp_path.rglob("*")) == before


# --- of an older version -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_training_of_schema_version_1_goes_on(tmp_path):
    """With its own optimizer and averages; a checkpoint that it writes is of the version of now, and goes on too."""
    packed = Path(__file__).parents[1] / "diffusion" / "checkpoint-schema-1.pt.xz"
    folder = files(tmp_path).checkpoints
    folder.mkdir(parents=True)
    path = folder / "step-00000008.pt"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    old = torch.load(path, weights_only=True)
    assert "schema_version" not in old
    fixed = {"betas": [0.9, 0.99], "weight_decay": 0.01, "first_guess": "surroundings", "deviation": False}
    config = old["config"] | {"train": old["config"]["train"] | fixed}
    shards = "9d8279f434290268bc5f5d9a6ac61f693a3e884b53c33b2122d40cb66b77a6ec"
    identity = Identity(config=config, inputs={"shards": shards})
    tiny = replace(PLAIN, preset="tiny")
    made, heard = resumed(tmp_path, identity, settings=tiny)
    assert heard == ["train: goes on from step-00000008.pt, 8 of 16 samples seen"]
    expected = digests(old["model"])
    for width, weights in old["averages"].items():
        expected |= digests(weights, f"{width} ")
    for number, moments in old["optimizer"]["state"].items():
        expected |= digests(moments, f"{number} ")
    assert {"seen": 8, "skipped": (0, 0), "chosen": "0.10"} | expected == everything(made)
    train(made, 1)
    made.save(files(tmp_path), identity, {}, milestones=())
    assert checkpoint.load(folder / "step-00000010.pt").schema_version == 4
    again, _ = resumed(tmp_path, identity, settings=tiny)
    assert everything(again) == everything(made)
    with pytest.raises(ConfigError, match=r"train\.lr 0\.001 -> 0\.5"):
        resumed(tmp_path, replace(identity, config=config | {"train": config["train"] | {"lr": 0.5}}), settings=tiny)
