"""Which of a picture's two tones is ink: by the paper's margin, a box's lines, and the room there is between strokes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from handlers.picture import Grey, uint8
from handlers.shapes import FRAME_WIDTH, Mask

SKETCH_SIDE = 96  # pixels; light and polarity are judged on a picture of this long side
MARGIN = 0.18  # of the longer side: a margin of paper that is wider is no line of a box
MIXED = 0.12  # of a line: so much of another tone makes it one of two tones
STRAIGHT = 0.5  # of a line's length: how much of it must be equally wide
TWO_TONES = 0.8  # separability above which a picture has two clear tones


def light_ink(grey: Grey) -> Grey:
    """Invert the picture if its ink is dark."""
    raw = sketch_of(grey)
    sketch = uint8(cv2.medianBlur(raw, 3))
    if np.ptp(sketch) < 0.5 * np.ptp(raw):  # strokes one pixel wide went with the specks
        sketch = raw
    window = (2 * (sketch.shape[1] // 3) + 1, 2 * (sketch.shape[0] // 3) + 1)
    levels = cv2.addWeighted(sketch, 0.5, cv2.blur(sketch, window, borderType=cv2.BORDER_REFLECT_101), -0.5, 128)
    light = uint8(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    return uint8(cv2.bitwise_not(grey)) if _paper_is_light(light, sketch) else grey


def _paper_is_light(light: Grey, sketch: Grey) -> bool:
    """Whether paper is the light part, 255, of a picture of two tones.

    Lines of one tone along the edges are the paper's margin, or a box. A margin wider than any box's line is paper, and so is
    one whose inner edge is not straight. Else, under uneven light, ink is what is narrow. Else paper is what follows those
    lines, and what holds the larger empty disc inside of them; the edge does not bound a disc, for paper may be tight around
    a bold character.
    """
    sides = [_edge_of(view, max(light.shape)) for view in (light, light[::-1], light.T, light.T[::-1])]
    margins = {side.margin for side in sides} - {None}
    if len(margins) == 1:
        return bool(margins.pop())
    edges = [line.mean() / 255 for line in (light[0], light[-1], light[:, 0], light[:, -1])]
    if (max(edges) < 0.1 or min(edges) > 0.9) and not _is_straight_band((light > 0) == (edges[0] > 0.5)):
        return bool(edges[0] > 0.5)
    if separability(sketch) < TWO_TONES:
        return _thin_parts(sketch, cv2.MORPH_TOPHAT) <= _thin_parts(sketch, cv2.MORPH_BLACKHAT)
    top, bottom, left, right = (side.depth for side in sides)
    inside = np.ascontiguousarray(light[top : light.shape[0] - bottom, left : light.shape[1] - right])
    if inside.size == 0:  # a picture of a few pixels is all edge
        inside = light
    longest = max(inside.shape)  # a picture without any tone's edge gives endless distances
    light_disc, dark_disc = (min(longest, cv2.distanceTransform(part, cv2.DIST_L2, 3).max()) + 0.5 for part in (inside, cv2.bitwise_not(inside)))
    return bool(math.log(light_disc / dark_disc) + sum(2 * side.after - 1 for side in sides) / len(sides) > 0)


@dataclass(frozen=True)
class _Edge:
    """What lies along one edge of a picture of two tones."""

    depth: int  # how many lines from the edge on are of one tone each
    after: float  # the light share, 0 to 1, of the next two lines
    margin: bool | None  # the tone, light or not, of a margin wider than a box's line


def _edge_of(light: Grey, side: int) -> _Edge:
    """The upper edge, judged by the lines' middle part; `side` is the picture's longer side."""
    rows, columns = light.shape
    deepest = max(1, min(round(0.3 * side), round(0.4 * rows)))
    shares = light[: deepest + 2, round(0.2 * columns) : columns - round(0.2 * columns)].mean(axis=1) / 255
    uniform = np.abs(shares[:deepest] - 0.5) > 0.5 - MIXED
    same = uniform & ((shares[:deepest] > 0.5) == (shares[0] > 0.5))
    depth, run = (deepest if lines.all() else int(lines.argmin()) for lines in (uniform, same))
    after = shares[depth : depth + 2]
    return _Edge(depth, float(after.mean()) if len(after) else 0.5, bool(shares[0] > 0.5) if run > MARGIN * side else None)


def _is_straight_band(mask: Mask) -> bool:
    """Whether what is set along the edge is equally wide, and not wider than a box's line, on at least three sides."""
    crooked = 0
    for view in (mask, mask[::-1], mask.T, mask.T[::-1]):
        widths = np.where(view.all(axis=0), len(view), view.argmin(axis=0))  # from the edge to the first that is not set
        width = np.sort(widths)[len(widths) // 2]
        thin = 0 < width <= FRAME_WIDTH * len(view) + 1
        crooked += not (thin and (np.abs(widths - width) <= 1).mean() >= STRAIGHT)
        if crooked > 1:
            return False
    return True


def _thin_parts(sketch: Grey, operation: int) -> float:
    """The energy of what is lighter (top hat) or darker (black hat) than all around it and narrower than a fifth of the picture."""
    window = 2 * round(0.1 * max(sketch.shape)) + 1
    hat = cv2.morphologyEx(sketch, operation, np.ones((window, window), np.uint8))
    return float(cv2.norm(hat, cv2.NORM_L2SQR))


def separability(grey: Grey) -> float:
    """How well two tones describe a picture: the variance between Otsu's two classes over all variance, 0 to 1 (Otsu 1979, eq. 15)."""
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    tones = np.arange(256)
    below, moments = np.cumsum(shares), np.cumsum(shares * tones)
    variance = float((shares * (tones - moments[-1]) ** 2).sum())
    between = (moments[-1] * below - moments) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return float(between.max()) / max(variance, 1e-9)


def sketch_of(grey: Grey) -> Grey:
    """A small version for judging light and polarity; by a whole factor, which is fast, so up to a factor's pixels are cut."""
    height, width = grey.shape
    factor = math.ceil(max(height, width) / SKETCH_SIDE)
    if factor == 1 or min(height, width) < factor:
        return grey
    whole = grey[: height // factor * factor, : width // factor * factor]
    return uint8(cv2.resize(whole, (width // factor, height // factor), interpolation=cv2.INTER_AREA))
