"""The corruptions at the severities of MNIST-C and EMNIST-DA, to measure by, and at any severity, to train on."""

from __future__ import annotations

import math

import numpy as np

from training.degrade import corruptions as c
from training.degrade.strokes import Picture
from training.degrade.styles import Style, jpeg

CORRUPTIONS: dict[str, Style] = {  # at MNIST-C's severities
    "gaussian_noise": c.gaussian_noise,
    "shot_noise": c.shot_noise,
    "impulse_noise": c.impulse_noise,
    "speckle_noise": c.speckle_noise,
    "gaussian_blur": c.gaussian_blur,
    "gaussian_blur_3": lambda g, r: c.gaussian_blur(g, r, 3),  # EMNIST-DA's
    "glass_blur": c.glass_blur,
    "defocus_blur": c.defocus_blur,
    "motion_blur": c.motion_blur,
    "zoom_blur": c.zoom_blur,
    "fog": c.fog,
    "frost": c.frost,
    "snow": c.snow,
    "spatter": c.spatter,
    "contrast": c.contrast,
    "brightness": c.brightness,
    "saturate": c.saturate,
    "jpeg_compression": c.jpeg_compression,
    "pixelate": c.pixelate,
    "quantize": c.quantize,
    "shear": c.shear,
    "rotate": c.rotate,
    "scale": c.scale,
    "translate": c.translate,
    "line": c.line,
    "dotted_line": c.dotted_line,
    "zigzag": c.zigzag,
    "inverse": c.inverse,
    "stripe": c.stripe,
    "canny_edges": c.canny_edges,
    "patch": c.patch,
    "texture": c.texture,
}

ANY_SEVERITY: dict[
    str, Style
] = {  # for training: each family at a random severity, up to a little beyond the benchmarks'
    "gaussian_noise": lambda g, r: c.gaussian_noise(g, r, r.uniform(0.05, 0.45)),
    "shot_noise": lambda g, r: c.shot_noise(g, r, math.exp(r.uniform(math.log(2.5), math.log(60)))),
    "impulse_noise": lambda g, r: c.impulse_noise(g, r, r.uniform(0.02, 0.28)),
    "speckle_noise": lambda g, r: c.speckle_noise(g, r, r.uniform(0.1, 0.7)),
    "gaussian_blur": lambda g, r: c.gaussian_blur(g, r, r.uniform(0.5, 3.3)),
    "glass_blur": lambda g, r: c.shuffled(g, r, r.uniform(0.5, 1.1), r.uniform(0.8, 2.4)),
    "defocus_blur": lambda g, r: c.defocus_blur(g, r, int(r.integers(1, 5))),
    "motion_blur": lambda g, r: c.motion_blur(g, r, 10, r.uniform(1.5, 6)),
    "zoom_blur": lambda g, r: c.zoom_blur(g, r, r.uniform(1.1, 1.4)),
    "fog": lambda g, r: c.fog(g, r, r.uniform(1, 3.3), r.uniform(1.2, 2.2)),
    "frost": lambda g, r: c.frost(g, r, r.uniform(0.5, 1), r.uniform(0.3, 0.85)),
    "snow": lambda g, r: c.snow(g, r, r.uniform(0.6, 0.95)),
    "spatter": c.spatter,
    "contrast": lambda g, r: c.contrast(g, r, r.uniform(0.06, 0.5)),
    "brightness": lambda g, r: c.brightness(g, r, r.uniform(0.1, 0.6)),
    "saturate": lambda g, r: c.saturate(g, r, r.uniform(1.5, 20), r.uniform(0, 0.3)),
    "jpeg_compression": lambda g, r: jpeg(g, int(r.integers(5, 40))),
    "pixelate": lambda g, r: c.pixelate(g, r, r.uniform(0.25, 0.6)),
    "quantize": lambda g, r: c.quantize(g, r, int(r.integers(1, 4))),
    "shear": lambda g, r: c.shear(g, r, r.uniform(0.1, 0.6)),
    "rotate": lambda g, r: c.rotate(g, r, r.uniform(0.1, 0.55)),
    "scale": lambda g, r: c.scale(g, r, r.uniform(0.45, 1.1)),
    "translate": lambda g, r: c.translate(g, r, int(r.integers(1, 6))),
    "line": c.line,
    "dotted_line": c.dotted_line,
    "zigzag": lambda g, r: c.zigzag(g, r, r.uniform(1.5, 3), r.uniform(1.5, 3)),
    "stripe": lambda g, r: c.stripe(g, r, int(r.integers(5, 9))),
    "canny_edges": c.canny_edges,
    "patch": lambda g, r: c.patch(g, r, int(r.integers(4, 10))),
    "texture": c.texture,
    "texture_again": c.texture,  # the widest family counts twice
}
_ANY = list(ANY_SEVERITY.values())


def corrupt(glyph: Picture, rng: np.random.Generator) -> Picture:
    """One family at a random severity, sometimes two, of either polarity."""
    picture = _ANY[int(rng.integers(len(_ANY)))](glyph, rng)
    if rng.random() < 0.1:
        picture = _ANY[int(rng.integers(len(_ANY)))](picture, rng)
    return picture if rng.random() < 0.7 else 255 - picture
