"""Names of products and of pairs are read and written in one way."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from cloudjob.errors import ConfigError
from cloudjob.names import ProductName, days_between, pair_name, product_name, stamp, tile_of_pair

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


def test_what_is_built_is_parsed():
    name = ProductName.parse(NAME)
    built = product_name(
        satellite=name.satellite,
        sensing=name.sensing,
        baseline=name.baseline,
        relative_orbit=name.relative_orbit,
        tile=name.tile,
        processed=name.processed,
    )
    assert built == NAME
    assert name.processed == datetime(2025, 6, 6, 0, 11, 22, tzinfo=UTC)


def test_times_in_names_are_in_utc():
    assert stamp(datetime(2025, 6, 5, 23, 25, 41, tzinfo=timezone(timedelta(hours=1)))) == "20250605T222541"


def test_a_datatake_is_of_one_satellite_and_start_of_sensing_whatever_the_tile_orbit_and_processing():
    own = ProductName.parse(NAME).datatake
    assert own == "S2C_20250605T222541"
    for same in (("05WPS", "05WNS"), ("N0511", "N0512"), ("20250606T001122", "20250706T001122")):
        assert ProductName.parse(NAME.replace(*same)).datatake == own
    for other in (("S2C", "S2A"), ("20250605T222541", "20250605T222542")):
        assert ProductName.parse(NAME.replace(*other)).datatake != own


def test_a_pair_is_named_by_its_tile_the_cloudy_and_the_clear_date_in_this_order():
    cloudy, clear = ProductName.parse(NAME), ProductName.parse(NAME.replace("20250605T", "20250530T"))
    assert pair_name(cloudy, clear) == "05WPS_20250605T222541_20250530T222541"
    assert tile_of_pair(pair_name(cloudy, clear)) == "05WPS"
    halves = {cloudy.granule}
    assert pair_name(cloudy, clear, halves) == f"05WPS_20250605T222541-{cloudy.discriminator}_20250530T222541"
    assert tile_of_pair(pair_name(cloudy, clear, halves)) == "05WPS"


@pytest.mark.parametrize(("day", "days"), [("20250605T", 0), ("20250608T", 3), ("20250530T", -6)])
def test_days_are_signed_from_the_first_product_to_the_second(day, days):
    assert days_between(NAME, NAME.replace("20250605T", day)) == days
