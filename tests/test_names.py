"""Names of products and of pairs are read and written in one way."""

from datetime import UTC, datetime

import pytest

from cloudjob.errors import ConfigError
from cloudjob.names import ProductName

NAME = "S2C_MSIL2A_20250605T222541_N0511_R029_T05WPS_20250606T001122"


def test_name_has_its_fields():
    name = ProductName.parse(f"{NAME}.SAFE")
    assert name == ProductName(
        name=NAME,
        satellite="S2C",
        sensing=datetime(2025, 6, 5, 22, 25, 41, tzinfo=UTC),
        baseline="05.11",
        relative_orbit=29,
        tile="05WPS",
        discriminator="20250606T001122",
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        NAME.replace("MSIL2A", "MSIL1C"),
        NAME.replace("S2C", "S2E"),
        NAME.replace("0605", "1305"),
        f"{NAME}.zip",
    ],
)
def test_what_is_no_level_2a_name_is_a_configuration_error(name):
    with pytest.raises(ConfigError, match="not the name"):
        ProductName.parse(name)
