"""Which of a picture's two tones is ink: by the paper's margin, a box's lines, and the room there is between
strokes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from handlers.pictures.decoding import Grey, uint8
from handlers.pictures.shapes import FRAME_WIDTH, Mask, line_sums

SKETCH_SIDE = 96  # pixels; light and polarity are judged on a picture of this long side
MARGIN = 0.18  # of the longer side: a margin of paper that is wider is no line of a box
MIXED = 0.12  # of a line: so much of another tone makes it one of two tones
STRAIGHT = 0.5  # of a line's length: how much of it must be equally wide
TWO_TONES = 0.8  # separability above which a picture has two clear tones


def light_ink(grey: Grey) -> Grey:
    """Invert the picture if its ink is dark."""
    raw = sketch_of(grey)
    sketch = uint8(cv2.medianBlur(raw, 3))
    if spread(sketch) < 0.5 * spread(raw):  # strokes one pixel wide went with the specks
        sketch = raw
    window = (2 * (sketch.shape[1] // 3) + 1, 2 * (sketch.shape[0] // 3) + 1)
    levels = cv2.addWeighted(sketch, 0.5, cv2.blur(sketch, window, borderType=cv2.BORDER_REFLECT_101), -0.5, 128)
    light = uint8(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    return uint8(cv2.bitwise_not(grey)) if _paper_is_light(light, sketch) else grey


def _paper_is_light(light: Grey, sketch: Grey) -> bool:
    """Whether paper is the light part, 255, of a picture of two tones.

    Lines of one tone along the edges are the paper's margin, or a box. A margin wider than any box's line is paper, and
    so is one whose inner edge is not straight. Else, under uneven light, ink is what is narrow. Else paper is what
    follows those lines, and what holds the larger empty disc inside of them; the edge does not bound a disc, for paper
    may be tight around a bold character.
    """
    rows, columns = _light_shares(light, 1), _light_shares(light, 0)
    sides = (rows, rows[::-1], columns, columns[::-1])  # from the edge inward: top, bottom, left, right
    margins = {_margin_tone(shares, max(light.shape)) for shares in sides} - {None}
    if len(margins) == 1:
        return bool(margins.pop())
    edges = [cv2.countNonZero(line) / len(line) for line in (light[0], light[-1], light[:, 0], light[:, -1])]
    if (max(edges) < 0.1 or min(edges) > 0.9) and not _is_straight_band((light > 0) == (edges[0] > 0.5)):
        return bool(edges[0] > 0.5)
    if separability(sketch) < TWO_TONES:
        return _thin_parts(sketch, cv2.MORPH_TOPHAT) <= _thin_parts(sketch, cv2.MORPH_BLACKHAT)
    bands = [_band(shares, max(light.shape)) for shares in sides]
    top, bottom, left, right = (depth for depth, _ in bands)
    inside = np.ascontiguousarray(light[top : light.shape[0] - bottom, left : light.shape[1] - right])
    if inside.size == 0:  # a picture of a few pixels is all edge
        inside = light
    longest = max(inside.shape)  # a picture without any tone's edge gives endless distances
    light_disc, dark_disc = (
        min(longest, cv2.distanceTransform(part, cv2.DIST_L2, 3).max()) + 0.5
        for part in (inside, cv2.bitwise_not(inside))
    )
    return bool(math.log(light_disc / dark_disc) + sum(2 * after - 1 for _, after in bands) / len(bands) > 0)


def _light_shares(light: Grey, axis: int) -> list[float]:
    """The light share, 0 to 1, of the middle part of each row (axis 1) or column (axis 0)."""
    length = light.shape[axis]
    middle = slice(round(0.2 * length), length - round(0.2 * length))
    part = light[:, middle] if axis == 1 else light[middle]
    shares: list[float] = (line_sums(part, axis) / part.shape[axis] / 255).tolist()
    return shares


def _deepest(shares: list[float], side: int) -> int:
    """How many lines from the edge on may belong to it; `side` is the picture's longer side."""
    return max(1, min(round(0.3 * side), round(0.4 * len(shares))))


def _margin_tone(shares: list[float], side: int) -> bool | None:
    """Whether a margin along the edge is light, given the lines' light shares inward; None if none is wider than a
    box's line.
    """
    width = math.floor(MARGIN * side) + 1
    if width > _deepest(shares, side):
        return None
    margin = shares[:width]
    if min(margin) - 0.5 > 0.5 - MIXED:
        return True
    return False if 0.5 - max(margin) > 0.5 - MIXED else None


def _band(shares: list[float], side: int) -> tuple[int, float]:
    """How many lines from the edge on are of one tone each, and the light share of the next two lines."""
    deepest = _deepest(shares, side)
    depth = next((line for line in range(deepest) if abs(shares[line] - 0.5) <= 0.5 - MIXED), deepest)
    after = shares[depth : depth + 2]
    return depth, sum(after) / len(after) if after else 0.5


def _is_straight_band(mask: Mask) -> bool:
    """Whether what is set along the edge is equally wide, and not wider than a box's line, on at least three sides."""
    crooked = 0
    for view in (mask, mask[::-1], mask.T, mask.T[::-1]):
        # From the edge to the first that is not set.
        widths = np.where(view.all(axis=0), len(view), view.argmin(axis=0))
        width = np.sort(widths)[len(widths) // 2]
        thin = 0 < width <= FRAME_WIDTH * len(view) + 1
        crooked += not (thin and np.count_nonzero(np.abs(widths - width) <= 1) >= STRAIGHT * len(widths))
        if crooked > 1:
            return False
    return True


def _thin_parts(sketch: Grey, operation: int) -> float:
    """The energy of what is lighter (top hat) or darker (black hat) than all around it and narrower than a fifth of the
    picture.
    """
    window = 2 * round(0.1 * max(sketch.shape)) + 1
    hat = cv2.morphologyEx(sketch, operation, np.ones((window, window), np.uint8))
    return float(cv2.norm(hat, cv2.NORM_L2SQR))


def separability(grey: Grey) -> float:
    """How well two tones describe a picture: the variance between Otsu's two classes over all variance, 0 to 1 (Otsu
    1979, eq. 15).
    """
    shares = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64) / grey.size
    tones = np.arange(256)
    below, moments = np.cumsum(shares), np.cumsum(shares * tones)
    variance = float((shares * (tones - moments[-1]) ** 2).sum())
    between = (moments[-1] * below - moments) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return float(between.max()) / max(variance, 1e-9)


def spread(grey: Grey) -> float:
    """Grey levels from the darkest to the lightest pixel."""
    low, high, _, _ = cv2.minMaxLoc(grey)
    return high - low


def sketch_of(grey: Grey) -> Grey:
    """A small version for judging light and polarity; by a whole factor, which is fast, so up to a factor's pixels are
    cut.
    """
    height, width = grey.shape
    factor = math.ceil(max(height, width) / SKETCH_SIDE)
    if factor == 1 or min(height, width) < factor:
        return grey
    whole = grey[: height // factor * factor, : width // factor * factor]
    return uint8(cv2.resize(whole, (width // factor, height // factor), interpolation=cv2.INTER_AREA))
