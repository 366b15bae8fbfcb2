"""What the metadata of products say, against real ones of ESA."""

import csv

import pytest
import rasterio

from cloudjob.archive import metadata
from cloudjob.names import ProductName


@pytest.mark.slow
def test_rule_of_the_percentages_gives_esas_own_numbers_for_a_real_product(shared_data):
    table = csv.DictReader((shared_data / "safe_T29UNU" / "ESA_percentages_vs_SCL20.csv").open())
    esa = {row["item"]: float(row["ESA_MTD_MSIL2A"]) for row in table}
    with rasterio.open(next(shared_data.glob("safe_T29UNU/*/GRANULE/*/IMG_DATA/R20m/*_SCL_20m.jp2"))) as image:
        found = metadata.percentages_of(image.read(1))
    for element in metadata._PERCENTAGES[3:]:
        assert found[element] == pytest.approx(esa[element], abs=5e-6)


@pytest.mark.parametrize(
    ("name", "orbit"),
    [
        ("S2B_MSIL2A_20191228T210519_N0212_R071_T01CCV_20201003T104658", 14683),
        ("S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454", 38058),
        ("S2B_MSIL2A_20210122T133229_N0214_R081_T22HBD_20210122T155500", 20270),
    ],
)
def test_absolute_orbits_of_real_products(name, orbit):
    assert metadata.absolute_orbit(ProductName.parse(name)) == orbit
