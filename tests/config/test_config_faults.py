"""The file of faults: every fault that there is has a rate and is described; mistakes are named."""

from pathlib import Path

import pytest

from cloudjob.archive import faults
from cloudjob.config.faults import FaultRates, FaultsConfig
from cloudjob.config.source import load_section
from cloudjob.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "faults.yaml"


def test_every_fault_has_a_rate_and_words():
    assert set(FaultRates.model_fields) == set(faults.ALL)
    assert len(faults.ALL) == len(set(faults.ALL))
    assert all(field.description for field in FaultsConfig.model_fields.values())


def test_a_rate_that_is_not_given_is_that_of_every_other():
    found = FaultsConfig(every=0.2, short=0, stalled=1)
    assert found.rates() == dict.fromkeys(faults.ALL, 0.2) | {"short": 0, "stalled": 1}
    assert set(FaultsConfig().rates().values()) == {0}


def test_rules_that_are_not_given_are_those_of_the_data_space():
    assert FaultsConfig().rules() == faults.Rules()
    assert FaultsConfig(token_s=3, rotating=True).rules() == faults.Rules(token_s=3, rotating=True)


def test_the_example_is_good():
    assert set(load_section(EXAMPLE, FaultsConfig).rates().values()) == {0.2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stall: 0.1\n", ":1  stall: unknown key; did you mean stalled?"),
        ("every: 0.1\nshort: 20\n", ":2  short = 20: must be less than or equal to 1"),
        ("- short\n", ":1  the file must hold keys and values"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, text, words):
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_section(path, FaultsConfig)
    assert str(caught.value).startswith(f"{path}{words}")
