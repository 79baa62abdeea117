"""A glyph, framed as EMNIST frames its images (section II-A of Cohen et al. 2017, "EMNIST: an extension of MNIST to
handwritten letters").
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from handlers.pictures.decoding import Grey, uint8
from handlers.pictures.shapes import Mask, box_of, frame_of

SIZE = 28  # pixels a side of what the network sees
HAIRLINE = 1.25  # parts of 28; hardly any of EMNIST's strokes are thinner
GLYPH_SIDE = 50  # pixels of the glyph's long side before the blur: its usual size in NIST's 128-pixel fields
# Pixels, at that size: strokes thinner than the former, as 5 % of EMNIST's are, get the latter width.
THINNEST, USUAL_THIN = (
    4.0,
    5.5,
)
THICKEST, USUAL_THICK = 12.0, 9.0  # likewise for thicker ones, 2 %
BLUR_SIGMA = 1.0  # pixels, at that size
BORDER = 2  # pixels around the glyph's box, at that size


def is_framed_as_emnist(light: Grey) -> bool:
    """Whether a light-on-dark picture looks as EMNIST's images do, at any size: square, black around a centred
    character whose long side fills 18 to 27 of 28 parts, fully white somewhere, without a frame and not drawn in
    hairlines.
    """
    height, width = light.shape
    if height != width or height < SIZE:
        return False
    unit = height / SIZE
    ring = max(1, round(unit))
    top, bottom, left, right = box_of(light > 8)
    if light.max() < 250 or min(top, height - bottom, left, width - right) < ring:
        return False
    top, bottom, left, right = box_of(light > 16)
    long_side = max(bottom - top, right - left) / unit
    off_centre = max(abs(top + bottom - height), abs(left + right - width)) / 2 / unit
    if not (18 <= long_side <= 27 and off_centre <= 2.5) or frame_of(light > 127).any():
        return False
    twice = uint8(
        cv2.resize(light, (2 * SIZE, 2 * SIZE), interpolation=cv2.INTER_CUBIC if unit < 2 else cv2.INTER_AREA)
    )
    return stroke_width(twice) / 2 >= HAIRLINE


def soften(ink: Grey, glyph: Mask, threshold: float, contrast: float) -> Grey:
    """The glyph alone as ink 0..255, cut to its box: soft at its edges, flat inside, nothing elsewhere."""
    reach = max(1, round(max(glyph.shape) / 100))
    near = uint8(cv2.dilate(glyph.view(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)))
    levels = np.arange(256, dtype=np.float32)
    softened = np.clip((levels - (threshold - 0.35 * contrast)) * (255 / (0.7 * contrast)), 0, 255)
    soft = uint8(cv2.LUT(ink, uint8(softened))) * near
    top, bottom, left, right = box_of(soft)
    return uint8(soft[top:bottom, left:right])


def frame_as_emnist(glyph: Grey, size: int = SIZE) -> Grey:
    """Frame a glyph, light on black and cut to its box, as the EMNIST authors did: blur, box, square, border, bicubic,
    stretch.
    """
    height, width = glyph.shape
    scale = GLYPH_SIDE / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(glyph, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    reach = round(4 * BLUR_SIGMA)
    padded = cv2.copyMakeBorder(even_stroke(uint8(scaled)), reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    blurred = cv2.GaussianBlur(padded, (0, 0), BLUR_SIGMA)
    top, bottom, left, right = box_of(uint8(blurred))
    box = blurred[top:bottom, left:right]
    side = max(box.shape) + 2 * BORDER
    square = np.zeros((side, side), np.uint8)
    y, x = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[y : y + box.shape[0], x : x + box.shape[1]] = box
    small = resize(square, size).astype(np.float32)
    return uint8(np.round(small * (255 / max(1.0, float(small.max())))))


def stroke_width(glyph: Grey) -> float:
    """The mean width in pixels of a glyph's strokes: across a stroke the distance to its edge is a quarter of the width
    on average.
    """
    mask = cv2.copyMakeBorder((glyph > 110).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distances = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    return 4 * cv2.mean(distances, mask)[0] - 2


def even_stroke(glyph: Grey) -> Grey:
    """Thicken hairlines and thin a marker's strokes, of a glyph with a long side of GLYPH_SIDE; others stay as they
    are.
    """
    width = stroke_width(glyph)
    if THINNEST <= width <= THICKEST or width <= 0:
        return glyph
    change, operation = (
        (USUAL_THIN - width, cv2.MORPH_DILATE) if width < THINNEST else (width - USUAL_THICK, cv2.MORPH_ERODE)
    )
    reach = math.ceil(change / 2)
    across = round(change) + 1
    padded = cv2.copyMakeBorder(glyph, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    changed = cv2.morphologyEx(padded, operation, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across, across)))
    return uint8(changed) if changed.max() > 110 else glyph


def whole(ink: Grey, size: int) -> Grey:
    """The whole picture, square and stretched, where ink cannot be told from paper surely: then the network sees what
    there is.
    """
    height, width = ink.shape
    side = max(height, width)
    y, x = (side - height) // 2, (side - width) // 2
    square = cv2.copyMakeBorder(ink, y, side - height - y, x, side - width - x, cv2.BORDER_CONSTANT, value=0)
    small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC).astype(
        np.float32
    )
    low, high = np.percentile(small, (2, 99.5))
    return uint8(np.clip((small - low) * (255 / max(high - low, 1.0)), 0, 255))


def resize(grey: Grey, size: int) -> Grey:
    """Bicubic, with Pillow's anti-aliasing when it shrinks; a picture of that size stays as it is."""
    if grey.shape == (size, size):
        return grey
    return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC))
