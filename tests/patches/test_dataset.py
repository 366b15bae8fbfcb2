import numpy as np
import pytest
import torch
from shard_files import index_of, triplets, write

from cloudjob.patches.dataset import Triplets
from cloudjob.pixels import EMPTY_DN, OFFSET, REFERENCES, SCALE


@pytest.mark.parametrize("references", [0, 1, 3])
def test_all_images_are_reflectance_and_nan_without_data(tmp_path, references):
    write(tmp_path / "train_0.h5", 3, references=references)
    found = Triplets(tmp_path, index_of(train_0=3), "train")[1]
    expected = list(triplets(3, references=references))[1]
    images = ("cloudy", "clear", *REFERENCES[:references])
    assert {name for name, value in found.items() if value.ndim == 3} == set(images)
    for name in images:
        dn = expected[name].astype(np.float32)
        wanted = np.where(dn == EMPTY_DN, np.nan, dn * SCALE + OFFSET)
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].numpy(), wanted, atol=1e-6)
