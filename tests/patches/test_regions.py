"""The published splits."""

from itertools import combinations

import pytest

from cloudjob.patches.public import regions


@pytest.mark.parametrize(("table", "counts"), [(regions.PAIRS, (155, 10, 10)), (regions.SERIES, (35, 5, 13))])
def test_each_region_is_in_one_split(table, counts):
    assert tuple(len(table[split]) for split in ("train", "val", "test")) == counts
    assert not any(one & other for one, other in combinations(table.values(), 2))
    assert {name.partition("_")[0] for names in table.values() for name in names} == set(regions.SEASONS)
    assert regions.split_of("ROIs1158_10", table) is None
    assert regions.split_of("ROIs1158_106", table) == "test"
