"""The settings of a training are those of the configuration, with the same defaults; its length in whole batches."""

from dataclasses import MISSING, fields

import pytest

from cloudjob.config.models import EvaluateConfig, InferConfig, TrainConfig
from cloudjob.training.settings import Settings, Talk


def test_defaults_are_those_of_the_configuration():
    train, infer = TrainConfig(), InferConfig()
    elsewhere = {
        "seed": 0,
        "sampler": infer.sampler,
        "steps": infer.steps,
        "members": EvaluateConfig().members,
        "preview_gain": infer.preview_gain,
    }
    defaults = {each.name: each.default for each in fields(Settings)}
    assert defaults.pop("options") is MISSING
    assert defaults == {name: elsewhere.get(name, getattr(train, name, None)) for name in defaults}
    process = {
        "first_guess",
        "process",
        "deviation",
        "alpha",
        "prediction",
        "schedule",
        "zero_terminal_snr",
    }  # these are `options`
    assert set(TrainConfig.model_fields) - set(defaults) == process - {"process"}


@pytest.mark.parametrize(
    ("given", "triplets", "total"),
    [
        ({"epochs": 3}, 16, 48),
        ({"epochs": 2.5}, 16, 40),
        ({"epochs": 1}, 19, 16),  # to the nearest whole batch
        ({"epochs": 1}, 21, 24),
        ({"epochs": 1}, 3, 8),  # at least one
        ({"epochs": 50, "samples": 100}, 16, 96),
        ({"epochs": 50, "samples": 1}, 16, 8),
    ],
)
def test_a_training_is_whole_batches(given, triplets, total):
    assert Settings(options={}, batch_size=8, **given).total(triplets) == total


def test_talk_is_silent_and_wishes_nothing_unless_told():
    talk = Talk()
    assert talk.say("a") is None
    assert talk.progress(0.5, "a") is None
    assert talk.stop_requested() is False
