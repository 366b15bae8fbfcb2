import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from cloudjob.diffusion import noise


def probability(values, cdf) -> float:
    """The p-value of scipy.stats.kstest, which takes a second to import."""
    expected, steps = cdf(np.sort(values)), np.arange(len(values) + 1) / len(values)
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    return special.kolmogorov(np.sqrt(len(values)) * distance)


BIG = noise.field(7, rows=range(300, 428), cols=range(10_000, 10_128), bands=4)


@given(st.integers(0, 127), st.integers(0, 127), st.integers(1, 128), st.integers(1, 128))
def test_a_window_equals_the_cut_of_a_bigger_field(row, col, height, width):
    rows, cols = slice(row, row + height), slice(col, col + width)
    window = noise.field(
        7,
        rows=range(300, 428)[rows],
        cols=range(10_000, 10_128)[cols],
        bands=4,
    )
    assert torch.equal(window, BIG[:, rows, cols])


def test_the_field_is_standard_normal():
    values = noise.field(1, rows=range(512), cols=range(512), bands=1).numpy().ravel()
    assert probability(values, special.ndtr) > 0.01
    assert abs(((values - values.mean()) ** 4).mean() / values.var() ** 2 - 3) < 0.03
    assert np.abs(values).max() > 4.3


def test_every_part_of_the_key_gives_an_independent_field():
    key = {"seed": 3, "rows": range(200, 456), "cols": range(256), "bands": 2}
    fields = [
        noise.field(**(key | other))[0]
        for other in (
            {},
            {"seed": 4},
            {"seed": -4},
            {"member": 2},
            {"step": 1},
            {"rows": range(201, 457)},
            {"cols": range(1, 257)},
            {"cols": range(2**20, 2**20 + 256)},
        )
    ]
    fields.append(noise.field(**key)[1])
    correlation = np.corrcoef([field.flatten().numpy() for field in fields]) - np.eye(len(fields))
    assert np.abs(correlation).max() < 5 / 256  # 5 standard errors


def test_the_bits_are_pinned():
    """Outputs made again by a later version, or on another device, must have the same noise."""
    field = noise.field(2025, rows=range(5490, 5492), cols=range(3), bands=1, member=2, step=2)
    expected = [[1.3836781978607178, 0.00920441746711731, -0.8185021877288818]]
    expected += [[-0.008543774485588074, 0.22303086519241333, -0.9876559376716614]]
    assert field[0].tolist() == expected
    assert noise.uniforms(2025, [0, 10**9], "sigma").tolist() == [0.7882005121639908, 0.6749000139608721]
    like = torch.empty(2, 2, 2, 3)
    expected = [[-0.12826955318450928, 1.1827449798583984, -0.2826606035232544]]
    expected += [[0.7100136876106262, 0.7333630919456482, 0.2932659387588501]]
    assert noise.normals(2025, [7, 10**9], "noise", like=like)[1, 1].tolist() == expected
    expected = [[-0.9170714616775513, -1.6043658256530762, 0.14942476153373718]]
    expected += [[-0.26417863368988037, 0.03289695084095001, -0.018064185976982117]]
    assert noise.draws(2025, [7, 10**9], member=3, step=2, like=like)[0, 1].tolist() == expected


def test_a_seed_of_any_size_and_the_first_member_and_step_by_default():
    key = {"rows": range(2), "cols": range(2), "bands": 1}
    assert torch.equal(noise.field(2**64 - 1, **key), noise.field(-1, **key))
    assert torch.equal(noise.field(2**63, **key), noise.field(-(2**63), **key))
    assert torch.equal(noise.field(3, **key), noise.field(3, **key, member=0, step=0, device="cpu"))
    assert noise.field(3, **key).dtype == torch.float32
    assert noise.uniforms(3, [1], "x").dtype == torch.float64
    assert noise.uniforms(3, [], "x").shape == (0,)


def test_members_of_a_pair_are_antithetic():
    key = {"seed": 3, "rows": range(8), "cols": range(8), "bands": 2, "step": 1}
    assert torch.equal(noise.field(**key, member=5), -noise.field(**key, member=4))
    like = torch.empty(2, 2, 8, 8)
    drawn = [noise.draws(3, [7, 8], member=member, step=1, like=like) for member in range(4)]
    assert torch.equal(drawn[1], -drawn[0])
    assert torch.equal(drawn[3], -drawn[2])
    assert not torch.equal(drawn[2], drawn[0])
    assert torch.equal(noise.draws(3, [8], member=0, step=1, like=like[:1])[0], drawn[0][1])


def test_draws_belong_to_the_sample():
    like = torch.empty(3, 4, 8, 8)
    batch = noise.normals(5, [10, 11, 12], "noise", like=like)
    assert torch.equal(batch[1], noise.normals(5, [11], "noise", like=like[:1])[0])
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(batch, noise.normals(6, [10, 11, 12], "noise", like=like))
    assert not torch.equal(batch, noise.normals(5, [10, 11, 12], "other", like=like))


def test_uniforms_fill_the_interval():
    draws = noise.uniforms(0, list(range(20_000)), "sigma").numpy()
    assert probability(draws, np.array) > 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.04
    other = noise.uniforms(0, list(range(20_000)), "share").numpy()
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.04


def test_uniform_numbers_of_a_scene_belong_to_its_pixels():
    whole = noise.uniform_field(5, rows=range(-20, 80), cols=range(-3, 97))
    assert torch.equal(noise.uniform_field(5, rows=range(10, 30), cols=range(40, 60)), whole[30:50, 43:63])
    assert not torch.equal(noise.uniform_field(6, rows=range(-20, 80), cols=range(-3, 97)), whole)
    assert 0 < whole.min() < 0.001 < 0.999 < whole.max() < 1
    assert whole.histc(10, 0, 1).sub(1000).abs().max() < 150
    neighbours = torch.stack([whole[:-1, :-1], whole[1:, :-1], whole[:-1, 1:]]).flatten(1)
    assert (neighbours.corrcoef() - torch.eye(3)).abs().max() < 0.05
