"""The corruptions of MNIST-C and EMNIST-DA, for 28x28 images light on black, at those benchmarks' severities.

Sources: Mu & Gilmer 2019, "MNIST-C: A Robustness Benchmark for Computer Vision" (arXiv:1906.02337); Eastwood et al.
2022, "Source-Free Adaptation to Measurement Shift via Bottom-Up Feature Restoration" (arXiv:2107.05446), which has
severer blur and backgrounds. Written anew; where those take photographs (frost, bricks, grass, ...), a synthetic
texture stands in.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from training.degrade.strokes import Picture, uint8
from training.degrade.styles import jpeg, salt_and_pepper, smooth_field

Unit: TypeAlias = npt.NDArray[np.floating]  # (28, 28), 0 to 1


def _unit(glyph: Picture) -> Unit:
    return glyph.astype(np.float32) / 255


def _grey(values: npt.NDArray[np.floating]) -> Picture:
    return uint8(np.clip(values, 0, 1) * 255)


# ---- noise and blur
# ------------------------------------------------------------------------------------------------------


def gaussian_noise(glyph: Picture, rng: np.random.Generator, sigma: float = 0.38) -> Picture:
    return _grey(_unit(glyph) + rng.normal(0, sigma, glyph.shape))


def shot_noise(glyph: Picture, rng: np.random.Generator, photons: float = 3) -> Picture:
    return _grey(rng.poisson(_unit(glyph) * photons) / photons)


def impulse_noise(glyph: Picture, rng: np.random.Generator, share: float = 0.17) -> Picture:
    return salt_and_pepper(glyph, share, rng)


def speckle_noise(glyph: Picture, rng: np.random.Generator, sigma: float = 0.6) -> Picture:
    return _grey(_unit(glyph) * (1 + rng.normal(0, sigma, glyph.shape)))


def gaussian_blur(glyph: Picture, _: np.random.Generator, sigma: float = 2) -> Picture:
    return uint8(cv2.GaussianBlur(glyph, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))


def glass_blur(
    glyph: Picture, rng: np.random.Generator, sigma: float = 0.7, reach: int = 1, rounds: int = 2
) -> Picture:
    blurred = uint8(cv2.GaussianBlur(glyph, (0, 0), sigma))
    size = glyph.shape[0]
    for _ in range(rounds):
        for y in range(size - reach, reach, -1):
            for x in range(size - reach, reach, -1):
                if rng.random() < 0.5:
                    dy, dx = rng.integers(-reach, reach, 2)
                    a, b = (min(y, size - 1), min(x, size - 1)), (min(y + dy, size - 1), min(x + dx, size - 1))
                    blurred[a], blurred[b] = blurred[b], blurred[a]
    return uint8(cv2.GaussianBlur(blurred, (0, 0), sigma))


def shuffled(glyph: Picture, rng: np.random.Generator, sigma: float, reach: float) -> Picture:
    """Glass, all pixels at once: each takes the value of a random neighbour."""
    size = glyph.shape[0]
    blurred = cv2.GaussianBlur(glyph, (0, 0), sigma)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    map_x, map_y = ((c + np.round(rng.uniform(-reach, reach, c.shape))).astype(np.float32) for c in (x, y))
    moved = cv2.remap(blurred, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return uint8(cv2.GaussianBlur(moved, (0, 0), sigma))


def defocus_blur(glyph: Picture, _: np.random.Generator, radius: int = 3) -> Picture:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)
    return uint8(cv2.filter2D(glyph, -1, disc / disc.sum()))


def motion_blur(glyph: Picture, rng: np.random.Generator, radius: int = 10, sigma: float = 3) -> Picture:
    """One-sided, as ImageMagick's: a half Gaussian along a direction."""
    angle = math.radians(rng.uniform(-45, 45)) + (math.pi if rng.random() < 0.5 else 0)
    steps = np.arange(radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        kernel[radius + round(step * math.sin(angle)), radius + round(step * math.cos(angle))] += weight
    return uint8(cv2.filter2D(glyph, -1, kernel, borderType=cv2.BORDER_REPLICATE))


def zoom_blur(glyph: Picture, _: np.random.Generator, most: float = 1.31) -> Picture:
    zoomed = [_affine(glyph, np.eye(2) / z).astype(np.float32) for z in np.arange(1, most, 0.03)]
    return _grey((_unit(glyph) + sum(zoomed) / 255) / (len(zoomed) + 1))


# ---- weather, light
# ------------------------------------------------------------------------------------------------------


def _plasma(rng: np.random.Generator, roughness: float, size: int) -> Unit:
    """A cloud: octaves of smooth noise, each with half the cells' size and 1/`roughness` of the height; 0 to 1."""
    cloud = np.zeros((size, size), np.float32)
    for octave in range(5):
        cloud += (smooth_field((size, size), 1.2 * 2**octave, rng) - 0.5) / roughness**octave
    return np.asarray((cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-6))


def fog(glyph: Picture, rng: np.random.Generator, strength: float = 3.0, roughness: float = 1.4) -> Picture:
    return _grey((_unit(glyph) + strength * _plasma(rng, roughness, len(glyph))) / (1 + strength))


def frost(glyph: Picture, rng: np.random.Generator, keep: float = 0.7, amount: float = 0.7) -> Picture:
    return _grey(keep * _unit(glyph) + amount * _plasma(rng, 1.15, len(glyph)) ** 2)


def snow(glyph: Picture, rng: np.random.Generator, threshold: float = 0.8) -> Picture:
    flakes = cv2.resize(rng.normal(0.5, 0.3, (10, 10)).astype(np.float32), glyph.shape, interpolation=cv2.INTER_LINEAR)
    flakes = motion_blur(_grey(np.where(flakes < threshold, 0, flakes)), rng, 6, 3).astype(np.float32) / 255
    x = 0.7 * _unit(glyph) + 0.3 * np.maximum(_unit(glyph), _unit(glyph) * 1.5 + 0.5)
    return _grey(x + flakes + np.rot90(flakes, 2))


def spatter(glyph: Picture, rng: np.random.Generator) -> Picture:
    """Mud: patches of dark grey over the picture."""
    liquid = cv2.GaussianBlur(rng.normal(0.65, 0.3, glyph.shape), (0, 0), 1)
    mud = cv2.GaussianBlur((liquid > 0.65).astype(np.float64), (0, 0), 1.5)
    mud[mud < 0.8] = 0
    return _grey(_unit(glyph) * (1 - mud) + mud * 63 / 255)


def contrast(glyph: Picture, _: np.random.Generator, factor: float = 0.1) -> Picture:
    x = _unit(glyph)
    return _grey((x - x.mean()) * factor + x.mean())


def brightness(glyph: Picture, _: np.random.Generator, more: float = 0.5) -> Picture:
    return _grey(_unit(glyph) + more)


def saturate(glyph: Picture, _: np.random.Generator, factor: float = 20.0, more: float = 0.2) -> Picture:
    return _grey(_unit(glyph) * factor + more)


def quantize(glyph: Picture, _: np.random.Generator, bits: int = 1) -> Picture:
    levels = 2**bits - 1
    return _grey(np.round(_unit(glyph) * levels) / levels)


def jpeg_compression(glyph: Picture, _: np.random.Generator, quality: int = 7) -> Picture:
    return jpeg(glyph, quality)


def pixelate(glyph: Picture, _: np.random.Generator, factor: float = 0.4) -> Picture:
    small = (round(len(glyph) * factor),) * 2
    return uint8(
        cv2.resize(cv2.resize(glyph, small, interpolation=cv2.INTER_AREA), glyph.shape, interpolation=cv2.INTER_NEAREST)
    )


# ---- geometry
# ------------------------------------------------------------------------------------------------------------


def _affine(glyph: Picture, matrix: npt.NDArray[np.floating], shift: tuple[float, float] = (0, 0)) -> Picture:
    """Output (x, y) takes its value from `matrix` applied around the centre, plus `shift`."""
    centre = (len(glyph) - 1) / 2
    offset = centre - matrix @ np.array([centre, centre]) + np.array(shift)
    full = np.hstack([matrix, offset[:, None]]).astype(np.float32)
    return uint8(cv2.warpAffine(glyph, full, glyph.shape, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def shear(glyph: Picture, rng: np.random.Generator, amount: float = 0.4) -> Picture:
    angle = _sign(rng) * amount
    return _affine(glyph, np.array([[1, -math.sin(angle)], [0, math.cos(angle)]]))


def rotate(glyph: Picture, rng: np.random.Generator, radians: float = 0.4) -> Picture:
    cos, sin = math.cos(radians), math.sin(_sign(rng) * radians)
    return _affine(glyph, np.array([[cos, -sin], [sin, cos]]))


def scale(glyph: Picture, _: np.random.Generator, factor: float = 0.7) -> Picture:
    return _affine(glyph, np.eye(2) / factor)


def translate(glyph: Picture, rng: np.random.Generator, pixels: int = 3) -> Picture:
    return _affine(glyph, np.eye(2), (_sign(rng) * pixels, _sign(rng) * pixels))


# ---- lines, stripes, edges, patches, textures
# ----------------------------------------------------------------------------


def _segment(start: tuple[float, float], end: tuple[float, float], size: int) -> Unit:
    """A line of about 3 pixels with soft edges from `start` to `end`, (column, row)."""
    (c0, r0), (c1, r1) = start, end
    columns, rows = np.meshgrid(np.arange(size), np.arange(size))
    distance = np.minimum(np.abs(rows - (r0 + (r1 - r0) / (c1 - c0) * (columns - c0))), 2.299)
    tone = np.clip(np.log(1 - distance / 2.3) + 1, 0, 1)
    tone[:, : math.floor(c0)] = 0
    tone[:, math.ceil(c1) :] = 0
    return np.asarray(tone)


def line(glyph: Picture, rng: np.random.Generator) -> Picture:
    size = len(glyph)
    start, end = (
        (int(rng.integers(0, 5)), int(rng.integers(0, size - 1))),
        (int(rng.integers(22, 27)), int(rng.integers(0, size - 1))),
    )
    return _grey(_unit(glyph) + _segment(start, end, size))


def dotted_line(glyph: Picture, rng: np.random.Generator) -> Picture:
    size = len(glyph)
    dots = _segment((0, int(rng.integers(0, 27))), (27, int(rng.integers(0, 27))), size)
    dots[:, (np.arange(size) // 2) % 2 == 0] = 0
    return _grey(_unit(glyph) + dots)


def zigzag(glyph: Picture, rng: np.random.Generator, length: float = 2.0, height: float = 2.0) -> Picture:
    first, last, row = 2, 25, int(rng.integers(0, 27))
    angle = math.atan2(int(rng.integers(-5, 5)), last - first)
    along = np.arange(0, (last - first) / math.cos(angle), 2 * length)
    points = (
        [(0.0, 0.0)] + [(d + length, height * (-1) ** n) for n, d in enumerate(along[:-1])] + [(float(along[-1]), 0.0)]
    )
    turned = [
        (first + x * math.cos(angle) - y * math.sin(angle), row + x * math.sin(angle) + y * math.cos(angle))
        for x, y in points
    ]
    x = _unit(glyph)
    for start, end in itertools.pairwise(turned):
        if end[0] > start[0] + 0.1:
            x = np.clip(x + _segment(start, end, len(glyph)), 0, 1)
    return _grey(x)


def inverse(glyph: Picture, _: np.random.Generator) -> Picture:
    return 255 - glyph


def stripe(glyph: Picture, _: np.random.Generator, width: int = 7) -> Picture:
    striped = glyph.copy()
    for columns in (np.s_[:, :width], np.s_[:, -width:]):
        striped[columns] = 255 - striped[columns]
    return striped


def canny_edges(glyph: Picture, _: np.random.Generator) -> Picture:
    smooth = cv2.GaussianBlur(glyph, (0, 0), 1)
    return uint8(cv2.Canny(smooth, 40, 90))


def patch(glyph: Picture, rng: np.random.Generator, side: int = 7) -> Picture:
    """A black or grey square hides a part of the image."""
    hidden = glyph.copy()
    y, x = rng.integers(4, len(glyph) - 4 - side, 2)
    hidden[y : y + side, x : x + side] = rng.choice([0, 128, 255])
    return hidden


def texture(glyph: Picture, rng: np.random.Generator) -> Picture:
    """A background shows through, and the ink inverts it, as in MNIST-M and in EMNIST-DA's bricks, grass, crystals and
    oranges.
    """
    cells = rng.uniform(2, 14)
    background = smooth_field(glyph.shape, cells, rng)
    if rng.random() < 0.4:
        background = 0.5 * background + 0.5 * rng.random(glyph.shape, dtype=np.float32)
    if rng.random() < 0.3:  # bricks, tiles
        period, phase = int(rng.integers(4, 12)), int(rng.integers(0, 12))
        background[(np.arange(len(glyph)) + phase) % period == 0] *= rng.uniform(0.2, 0.8)
    low, high = sorted(rng.uniform(0, 1, 2))
    background = low + (high - low) * background
    if abs(float(background.mean()) - 0.5) < 0.15:  # on middle grey the ink would not show
        background = background + math.copysign(0.25, float(background.mean()) - 0.5)
    return _grey(np.where(glyph >= 128, 1 - background, background))
