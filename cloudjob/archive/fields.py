"""Random numbers and random fields by spectral synthesis: white noise shaped in the Fourier domain."""

import hashlib
import math

import numpy as np
from scipy import fft


class Noise:
    """Random numbers and fields by key and name: the same name gives the same field, whatever was drawn before. The
    fields are moved by `offset` (rows, columns)."""

    def __init__(self, key: str, size: int, offset: tuple[int, int] = (0, 0)):
        self.key, self.size, self.offset = key, size, offset
        self.row, self.col = np.ogrid[0:size, 0:size]  # small: they broadcast
        self.row, self.col = self.row.astype(np.float32), self.col.astype(np.float32)

    def rng(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.key}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))

    def field(
        self,
        name: str,
        longest: float,
        *,
        slope: float = 3.0,
        shortest: float = 2.0,
        stretch: float = 1.0,
        angle: float = 0.0,
    ) -> np.ndarray:
        """(size, size) float32, mean 0, standard deviation 1, power ~ frequency**-slope from `shortest` to `longest`
        wavelength (pixels); `stretch` times longer along `angle` (radians, columns to rows). Wraps at the edges."""
        rng, shape = self.rng(name), (self.size, self.size // 2 + 1)
        row = fft.fftfreq(self.size)[:, None].astype(np.float32)
        col = fft.rfftfreq(self.size)[None].astype(np.float32)
        along = (col * math.cos(angle) + row * math.sin(angle)) * stretch
        squared = along**2 + (row * math.cos(angle) - col * math.sin(angle)) ** 2
        amplitude = (squared + np.float32(longest**-2)) ** np.float32(-slope / 4)
        amplitude *= np.exp(-squared * np.float32((shortest / 2) ** 2 * 2))
        spectrum = np.empty(shape, np.complex64)
        spectrum.real = rng.standard_normal(shape, np.float32)
        spectrum.imag = rng.standard_normal(shape, np.float32)
        spectrum *= amplitude
        spectrum[0, 0] = 0
        out = fft.irfft2(spectrum, s=(self.size, self.size), overwrite_x=True)
        out /= out.std()
        return np.roll(out, self.offset, (0, 1)) if any(self.offset) else out

    def evolving(self, name: str, day: float, period: float, longest: float, **shape: float) -> np.ndarray:
        """A field that turns into another one and back in `period` days, at constant variance."""
        turn = 2 * math.pi * day / period
        out = math.cos(turn) * self.field(name + "a", longest, **shape)
        out += math.sin(turn) * self.field(name + "b", longest, **shape)
        return out


def step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def slope_light(height: np.ndarray, azimuth: float) -> np.ndarray:
    """Slope towards the sun, standard deviation 1: positive faces are lit, negative ones lie in shade."""
    light = fall_towards(height, azimuth)
    return np.clip(light / light.std(), -3, 3)


def fall_towards(height: np.ndarray, azimuth: float) -> np.ndarray:
    """By how much `height` falls per pixel towards `azimuth`, in degrees."""
    east, south = math.sin(math.radians(azimuth)), -math.cos(math.radians(azimuth))
    return -(np.gradient(height, axis=1) * np.float32(east) + np.gradient(height, axis=0) * np.float32(south))


def line(field: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """1 on the zero line of a field, falling to 0 at half of `width` pixels (plus one pixel of blur)."""
    steepness = np.hypot(np.gradient(field, axis=0), np.gradient(field, axis=1)) + 1e-4
    return np.clip(0.5 + 0.5 * width - np.abs(field) / steepness, 0, 1)
