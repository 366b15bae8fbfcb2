"""Shards keep what is written; the order of samples depends on the seed and the number seen alone."""

import json

import h5py
import numpy as np
import pytest

from cloudjob.errors import CorruptFileError
from cloudjob.patches import loader, shards


def triplets(count, window=16, seed=0, reference=True):
    rng = np.random.default_rng(seed)
    for i in range(count):
        images = rng.integers(0, 65536, (3, 4, window, window)).astype(np.uint16)
        mask = rng.choice([0, 1, 2, 3, 255], (window, window)).astype(np.uint8)
        yield shards.Triplet(images[0], images[1], mask, images[2] if reference else None, i, 2 * i, i / 10)


def write(path, count, reference=True, seed=0):
    return shards.write(
        path,
        triplets(count, seed=seed, reference=reference),
        count=count,
        window=16,
        pair={"pair": "p"},
        reference_days=-3.5 if reference else None,
        attributes={"config_sha256": "abc", "cloudjob_version": "0"},
    )


@pytest.fixture
def shard_set(tmp_path):
    write(tmp_path / "train-00000.h5", 5)
    write(tmp_path / "train-00002.h5", 3, reference=False, seed=1)
    write(tmp_path / "val-00001.h5", 2, seed=2)
    files = [("train-00000.h5", 5, "train"), ("val-00001.h5", 2, "val"), ("train-00002.h5", 3, "train")]
    index = {"files": [{"file": name, "count": count, "split": split} for name, count, split in files]}
    return shards.ShardSet(tmp_path, index, "train")


def test_layout_is_the_contract(tmp_path):
    write(tmp_path / "a.h5", 3)
    with h5py.File(tmp_path / "a.h5") as file:
        shapes = {name: (data.shape, data.dtype.str) for name, data in file.items()}
        assert shapes["cloudy"] == shapes["clear"] == shapes["reference"] == ((3, 4, 16, 16), "<u2")
        assert shapes["mask"] == ((3, 16, 16), "|u1")
        assert {shapes[name] for name in ("row", "col", "pair")} == {((3,), "<i4")}
        assert {shapes[name] for name in ("cloud_fraction", "reference_days")} == {((3,), "<f4")}
        assert file["cloudy"].chunks == (1, 4, 16, 16)
        assert file.attrs["bands"] == "B04,B03,B02,B08"
        assert (file.attrs["scale"], file.attrs["offset"]) == (1e-4, -0.1)
        assert json.loads(file.attrs["pairs"]) == [{"pair": "p"}]
        assert file["col"][:].tolist() == [0, 2, 4]


def test_what_is_written_is_read_in_order_over_files(shard_set):
    assert len(shard_set) == 8
    expected = [*triplets(5), *triplets(3, seed=1, reference=False)]
    for position, triplet in enumerate(expected):
        sample = shard_set[position]
        for name in ("cloudy", "clear", "mask"):
            np.testing.assert_array_equal(sample[name], getattr(triplet, name))
        assert (sample["reference"] == (0 if triplet.reference is None else triplet.reference)).all()


def test_normalisation_is_that_of_the_valid_pixels(tmp_path):
    sums = [write(tmp_path / "a.h5", 4), write(tmp_path / "b.h5", 2, seed=5)]
    clear = np.stack([t.clear for t in (*triplets(4), *triplets(2, seed=5))]).astype(float)
    values = np.where(clear == 0, np.nan, clear * 1e-4 - 0.1)
    found = shards.normalisation(sums)
    np.testing.assert_allclose(found["mean"], np.nanmean(values, (0, 2, 3)), rtol=1e-2)
    np.testing.assert_allclose(found["std"], np.nanstd(values, (0, 2, 3)), rtol=1e-2)


def test_truncated_shard_is_named(tmp_path, shard_set):
    path = tmp_path / "train-00002.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CorruptFileError, match=r"train-00002\.h5"):
        shard_set[6]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_samples(shard_set, ranks):
    def global_batches(start):
        parts = [
            list(loader.batches(shard_set, seed=3, start=start, stop=24, batch=4, rank=r, size=ranks))
            for r in range(ranks)
        ]
        for step in zip(*parts, strict=True):
            numbered = [
                (n, image) for samples, arrays in step for n, image in zip(samples, arrays["clear"], strict=True)
            ]
            yield sorted(numbered, key=lambda pair: pair[0])

    whole = list(global_batches(0))
    assert [[n for n, _ in batch] for batch in whole] == [list(range(i, i + 4)) for i in range(0, 24, 4)]
    for numbered in whole:
        for n, image in numbered:
            np.testing.assert_array_equal(image, shard_set[loader.position(3, n, 8)]["clear"])
    later = list(global_batches(8))  # a resumed training goes on with the very same samples
    for a, b in zip(whole[2:], later, strict=True):
        assert all((x[1] == y[1]).all() for x, y in zip(a, b, strict=True))


def test_each_epoch_sees_each_triplet_once_in_another_order():
    epochs = [[loader.position(0, n, 50) for n in range(e * 50, e * 50 + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
