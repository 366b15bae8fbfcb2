import math

import pytest
import torch

from cloudjob.diffusion import noise
from cloudjob.diffusion.ground import gains, moved

SAMPLES = list(range(40, 72))
SIZE = 48
EVERYWHERE = torch.ones(1, 1, 1, 1, dtype=torch.bool)


@pytest.fixture(scope="module")
def references():
    torch.manual_seed(0)
    return torch.rand(len(SAMPLES), 3, 4, SIZE, SIZE)


def test_a_part_of_the_ground_lies_elsewhere_and_on_later_dates_farther_on():
    size = 96
    row = torch.arange(size, dtype=torch.float32)
    image = (row[:, None] * 100 + row).expand(len(SAMPLES), 3, 4, size, size)
    found = moved(image.contiguous(), 1.0, where=EVERYWHERE, seed=3, samples=SAMPLES)
    assert torch.equal(found[:, :, 0], found[:, :, 3]), "all bands alike"
    seen = set()
    for sample in found[:, :, 0]:
        ways = []
        for date in range(3):
            changed = sample[date] != image[0, date, 0]
            code, places = sample[date][changed].long(), torch.nonzero(changed)
            shifts = [(places[:, 0] - code // 100) % size, (places[:, 1] - code % 100) % size]
            if changed.any():
                assert all(len(shift.unique()) == 1 for shift in shifts)
                ways.append([(int(shift[0]) + size // 2) % size - size // 2 for shift in shifts])
        if ways:
            assert len(ways) == 3
            assert 0.5 <= math.hypot(*ways[0]) <= 12.7
            for date in (1, 2):
                rounded = (date + 2) / 2
                assert all(abs((date + 1) * one - far) <= rounded for one, far in zip(ways[0], ways[date], strict=True))
            seen.add(tuple(ways[0]))
    assert len(seen) > 20
    shares = (found != image).any(2).float().mean((1, 2, 3))
    assert shares.max() > 0.75
    assert shares.min() < 0.1


def test_as_many_samples_as_the_share_and_each_by_its_number_alone(references):
    drawn = noise.uniforms(3, SAMPLES, "moving ground")
    found = moved(references, 0.4, where=EVERYWHERE, seed=3, samples=SAMPLES)
    changed = (found != references).flatten(1).any(1)
    assert not changed[drawn >= 0.4].any()
    assert changed[drawn < 0.4].float().mean() > 0.8, "the part that moves may be none"
    assert torch.equal(moved(references[5:9], 0.4, where=EVERYWHERE, seed=3, samples=SAMPLES[5:9]), found[5:9])
    assert torch.equal(moved(references, 0.0, where=EVERYWHERE, seed=3, samples=SAMPLES), references)
    without = references[:, :0]
    assert moved(without, 1.0, where=EVERYWHERE, seed=3, samples=SAMPLES).shape == without.shape


def test_only_what_is_seen_moves(references):
    where = torch.rand(len(SAMPLES), 1, SIZE, SIZE) < 0.5
    found = moved(references, 1.0, where=where, seed=3, samples=SAMPLES)
    everywhere = moved(references, 1.0, where=EVERYWHERE, seed=3, samples=SAMPLES)
    assert torch.equal(found, torch.where(where[:, None], everywhere, references))
    assert not torch.equal(found, references)


def test_what_a_date_does_not_show_moves_along(references):
    holes = references.clone()
    holes[:, :, :, 10:20, 10:20] = torch.nan
    found = moved(holes, 1.0, where=EVERYWHERE, seed=3, samples=SAMPLES)
    assert found.isnan().any()
    known = moved(holes.isnan().float(), 1.0, where=EVERYWHERE, seed=3, samples=SAMPLES)
    assert torch.equal(found.isnan(), known == 1)


def test_gains_are_one_but_for_the_share_that_is_darkened(references):
    like = references[:, 0]
    assert (gains(0.0, seed=3, samples=SAMPLES, like=like) == 1).all()
    found = gains(0.5, seed=3, samples=SAMPLES, like=like)
    assert found.shape == (len(SAMPLES), 4, 1, 1)
    darker = noise.uniforms(3, SAMPLES, "other ground") < 0.5
    assert (found[~darker] == 1).all()
    assert (found <= 1).all()
    assert (found[darker] < 1).any(1).all()
