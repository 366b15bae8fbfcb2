"""Randomness that belongs to the sample or the pixel, never to the process: each draw is a pure function of its key.

The generator is counter-based: SplitMix64 (Steele, Lea & Flood 2014, OOPSLA) in wrapping 64-bit integers, the same bits
on every device, thread count, tile and rank. A 64-bit word becomes a normal deviate as the scaled sum of two quantiles
looked up by 16 bits each. Box-Muller is avoided because vectorised log and cos may round differently from their scalar
tails, which would make a window differ in its last bit from the same window cut out of a bigger field.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Sequence[int] | Tensor  # of samples: plain, or (N,) int64 on the device where they are drawn for

_WORD = 2**64
_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shift and factor
_QUANTILES: dict[torch.device, Tensor] = {}


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as torch's int64 holds it."""
    return (value + 2**63) % _WORD - 2**63


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words (masked, torch's arithmetic shift is a logical one)."""
    for shift, factor in _ROUNDS:
        z = (z >> shift).bitwise_and_(2 ** (64 - shift) - 1).bitwise_xor_(z).mul_(_signed(factor))
    return z


def _mixed(z: int) -> int:
    """`_mix` of one word, 0 to 2^64 - 1, without a tensor."""
    for shift, factor in _ROUNDS:
        z = (z >> shift ^ z) * factor % _WORD
    return z


@torch.compiler.assume_constant_result
def _stem(seed: int, use: str, *numbers: int) -> int:
    """Hash of (seed, use, numbers), 0 to 2^64 - 1: `use` separates streams."""
    key = seed
    for number in (zlib.crc32(use.encode()), *numbers):
        key = _mixed((key + _GAMMA) % _WORD) + number
    return _mixed((key + _GAMMA) % _WORD)


def _keys(seed: int, use: str, numbers: Numbers) -> Tensor:
    """(N,) the hash of (seed, use, number) of each sample, on the device of the numbers."""
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor(numbers, dtype=torch.int64)
    return _mix(numbers + _signed(_stem(seed, use) + _GAMMA))


def prepare(device: torch.device) -> None:
    """What draws on a device that are to be compiled must find there."""
    if device not in _QUANTILES:
        z = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
        _QUANTILES[device] = (z / (2 * z.square().mean()).sqrt()).float().to(device)


def _quantiles(device: torch.device) -> Tensor:
    """The 2^16 mid-point quantiles of the normal distribution, scaled so that the sum of two has unit variance."""
    if not torch.compiler.is_compiling():
        prepare(device)
    return _QUANTILES[device]


def _normal(keys: Tensor, *, rows: range, cols: range, bands: int, device: torch.device | str) -> Tensor:
    """(len(keys), bands, rows, cols) standard normal: (key, band, row) seeds a SplitMix64 stream over the columns."""
    band = _mix(keys[:, None] + torch.arange(bands, device=keys.device) * _signed(_GAMMA))
    row = _mix(band[:, :, None] + torch.arange(rows.start, rows.stop, device=keys.device) * _signed(_GAMMA)).to(device)
    col = torch.arange(cols.start, cols.stop, device=device) * _signed(_GAMMA)
    word = _mix(row[..., None] + col)
    table = _quantiles(word.device)
    return table[word & 0xFFFF] + table[(word >> 32) & 0xFFFF]


def field(
    seed: int,
    *,
    rows: range,
    cols: range,
    bands: int,
    member: int = 0,
    step: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A window of a scene's standard normal noise: float32 (bands, rows, cols), keyed by absolute row and column.

    Any window equals, bit for bit, the same window cut out of a bigger field. `member` numbers the ensemble members,
    `step` the draws of a stochastic sampler. Members 2k and 2k + 1 are antithetic, n and -n: each is a fair draw, and
    what is random about their mean all but cancels (Hammersley & Morton 1956).
    """
    keys = torch.tensor([_signed(_stem(seed, "scene", member // 2, step))])
    drawn = _normal(keys, rows=rows, cols=cols, bands=bands, device=device)[0]
    return -drawn if member % 2 else drawn


def uniform_field(seed: int, *, rows: range, cols: range, device: torch.device | str = "cpu") -> Tensor:
    """A window of a scene's uniform numbers in (0, 1): float32 (rows, cols), keyed as `field`."""
    row = _mix(torch.arange(rows.start, rows.stop, device=device) * _signed(_GAMMA) + _signed(_stem(seed, "uniform")))
    col = torch.arange(cols.start, cols.stop, device=device) * _signed(_GAMMA)
    return (((_mix(row[:, None] + col) >> 41) & (2**23 - 1)).float() + 0.5) / 2**23


def normals(seed: int, indices: Numbers, use: str, *, like: Tensor) -> Tensor:
    """Standard normal noise of the shape and device of `like` (N, bands, H, W), sample i a function of indices[i]."""
    keys = _keys(seed, use, indices)
    bands, height, width = like.shape[1:]
    return _normal(keys, rows=range(height), cols=range(width), bands=bands, device=like.device)


def some(numbers: Numbers, places: Tensor) -> Numbers:
    """The numbers of the samples at these places."""
    return numbers[places] if isinstance(numbers, Tensor) else [numbers[place] for place in places.tolist()]


def draws(seed: int, indices: Numbers, *, member: int, step: int, like: Tensor) -> Tensor:
    """The noise of a sampler for single windows: as `field`, but keyed by their numbers as `normals`."""
    drawn = normals(seed, indices, f"member {member // 2} step {step}", like=like)
    return -drawn if member % 2 else drawn


def uniforms(seed: int, indices: Numbers, use: str) -> Tensor:
    """One float64 in [0, 1) for each sample, on the device of the numbers; another `use` is an independent draw."""
    word = _keys(seed, use, indices)
    return ((word >> 11) & (2**53 - 1)).double() / 2**53
