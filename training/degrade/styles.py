"""Glyphs as users' pictures: on cards with boxes, scanned, photographed, drawn in a browser.

A style takes one glyph, uint8 (28, 28), light on black, and a generator, and gives a picture: grey uint8 (H, W) or RGBA
uint8 (H, W, 4), of either polarity. USERS are the styles by which a model is measured; `scene` mixes all of this at
random, to train on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from training.degrade.strokes import UNIT, Picture, hairline, pen, uint8

Field: TypeAlias = npt.NDArray[np.float32]  # (H, W), 0 to 1
Style: TypeAlias = Callable[[Picture, np.random.Generator], Picture]

SIDES = (64, 400)  # pixels a side of an enlarged picture


# ---- canvases
# ------------------------------------------------------------------------------------------------------------


def _enlarge(glyph: Picture, side: int, sharpness: float = 1.0) -> Picture:
    """To `side` pixels, with edges as soft as the enlargement makes them (1) or harder."""
    large = cv2.resize(glyph, (side, side), interpolation=cv2.INTER_CUBIC if side > glyph.shape[0] else cv2.INTER_AREA)
    if sharpness > 1:
        large = np.clip((large.astype(np.float32) - 120) * sharpness + 120, 0, 255)
    return uint8(large)


def _enlarge_any(picture: Picture, rng: np.random.Generator) -> Picture:
    if rng.random() < 0.5:
        return picture
    factor = rng.uniform(2, 10)
    return uint8(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC))


def _side(rng: np.random.Generator) -> int:
    return round(math.exp(rng.uniform(math.log(SIDES[0]), math.log(SIDES[1]))))


def _cut(glyph: Picture) -> Picture:
    """The glyph without its empty margin."""
    x, y, width, height = cv2.boundingRect((glyph > 40).astype(np.uint8))
    return glyph[y : y + height, x : x + width] if width else glyph


def _either(picture: Picture, rng: np.random.Generator) -> Picture:
    return picture if rng.random() < 0.5 else 255 - picture


def _place(glyph: Picture, canvas: int, share: float, rng: np.random.Generator, corner: bool) -> Picture:
    """The glyph on black with its long side `share` of the canvas, in a corner or anywhere."""
    cut = _cut(glyph)
    scale = share * canvas / max(cut.shape)
    width, height = (max(2, min(canvas, round(n * scale))) for n in cut.shape[::-1])
    small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    margin = 0.02 * canvas
    free_x, free_y = canvas - width, canvas - height
    if corner:
        x, y = (round(min(margin, f / 2) if rng.random() < 0.5 else f - min(margin, f / 2)) for f in (free_x, free_y))
    else:
        x, y = int(rng.integers(0, free_x + 1)), int(rng.integers(0, free_y + 1))
    result = np.zeros((canvas, canvas), np.uint8)
    result[y : y + height, x : x + width] = small
    return result


def with_box(glyph: Picture, rng: np.random.Generator) -> Picture:
    """A box's frame around a glyph, in the tone of its ink, at the glyph's size: 1-4 pixels wide, gap -2 to 3, two to
    four sides.
    """
    scale = glyph.shape[0] // UNIT
    cut = _cut(glyph)
    width = int(rng.integers(1, 5)) * scale
    # Top, bottom, left, right.
    gaps = rng.integers(-2, 4, 4) * scale if rng.random() < 0.5 else np.full(4, rng.integers(-2, 4)) * scale
    outside = int(rng.integers(0, 4)) * scale if rng.random() < 0.5 else 0
    height, breadth = cut.shape
    top, left = int(gaps[0]) + width + outside, int(gaps[2]) + width + outside
    rows, columns = height + top + int(gaps[1]) + width + outside, breadth + left + int(gaps[3]) + width + outside
    canvas = np.zeros((max(rows, 8), max(columns, 8)), np.uint8)
    y, x = max(0, top), max(0, left)
    part = cut[: canvas.shape[0] - y, : canvas.shape[1] - x]
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    if gaps.min() < 0:  # what would lie outside the box was cut off when the box was cut out
        canvas[:outside], canvas[canvas.shape[0] - outside :] = 0, 0
        canvas[:, :outside], canvas[:, canvas.shape[1] - outside :] = 0, 0
    end_y, end_x = canvas.shape[0] - outside, canvas.shape[1] - outside
    lines = (  # top, bottom, left, right
        np.s_[outside : outside + width, outside:end_x],
        np.s_[end_y - width : end_y, outside:end_x],
        np.s_[outside:end_y, outside : outside + width],
        np.s_[outside:end_y, end_x - width : end_x],
    )
    tone = int(rng.integers(170, 256))
    for side in rng.permutation(4)[: int(rng.integers(2, 5))]:
        canvas[lines[side]] = np.maximum(canvas[lines[side]], tone)
    return canvas


def with_fragments(glyph: Picture, rng: np.random.Generator, neighbour: Picture | None = None) -> Picture:
    """Parts of a neighbour's strokes at one or two edges of a slightly larger canvas."""
    scale = glyph.shape[0] // UNIT
    edge = int(rng.integers(2, 6)) * scale
    canvas = np.pad(glyph, edge)
    other = _cut(np.rot90(glyph, 2) if neighbour is None else neighbour)
    for _ in range(int(rng.integers(1, 3))):
        depth = int(rng.integers(1, 4)) * scale
        strip = other[:, :depth] if rng.random() < 0.5 else other[:, -depth:]
        strip = strip[: canvas.shape[0]]
        start = int(rng.integers(0, canvas.shape[0] - strip.shape[0] + 1))
        turned = np.rot90(canvas, int(rng.integers(0, 4)))  # a view: writing into it writes into the canvas
        view = turned[start : start + strip.shape[0], : strip.shape[1]]
        np.maximum(view, strip, out=view)
    return canvas


# ---- paper, light, scanning
# ----------------------------------------------------------------------------------------------


def smooth_field(shape: tuple[int, int], cells: float, rng: np.random.Generator) -> Field:
    """Smooth noise, 0 to 1, of about `cells` hills a side."""
    grid = rng.random((max(2, round(cells)) + 1, max(2, round(cells)) + 1), dtype=np.float32)
    field = cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)


def on_paper(ink: Picture, rng: np.random.Generator, shadow: tuple[int, int] = (60, 200)) -> Picture:
    """Photographed: dark ink on textured paper under a shadow of `shadow` grey levels from one side to the other."""
    height, width = ink.shape
    angle, bright = rng.uniform(0, 2 * math.pi), rng.uniform(215, 250)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    across = math.cos(angle) * x / width + math.sin(angle) * y / height
    across = (across - across.min()) / np.ptp(across)
    if rng.random() < 0.3:  # a cast shadow with an edge
        across = 1 / (1 + np.exp((rng.uniform(0.3, 0.7) - across) * rng.uniform(8, 25)))
    light = bright - min(rng.uniform(*shadow), bright - 40) * across
    paper = (
        light
        + rng.uniform(2, 8) * (2 * smooth_field(ink.shape, rng.uniform(4, 20), rng) - 1)
        + rng.normal(0, rng.uniform(1, 4), ink.shape)
    )
    reflect = rng.uniform(0.1, 0.55)  # how much light the ink gives back
    picture = paper * (1 - (1 - reflect) * ink.astype(np.float32) / 255)
    if rng.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.0) * max(height, width) / 112))
    return uint8(np.clip(picture, 0, 255))


def salt_and_pepper(picture: Picture, share: float, rng: np.random.Generator) -> Picture:
    dice = rng.random(picture.shape)
    return np.where(dice < share / 2, 0, np.where(dice < share, 255, picture)).astype(np.uint8)


def jpeg(picture: Picture, quality: int) -> Picture:
    decoded = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return uint8(decoded)


def one_bit(picture: Picture, rng: np.random.Generator) -> Picture:
    low, high = float(picture.min()), float(picture.max())
    return np.where(picture > low + (high - low) * rng.uniform(0.35, 0.65), 255, 0).astype(np.uint8)


def transparent(ink: Picture, rng: np.random.Generator) -> Picture:
    """A browser's canvas: ink of one tone, the rest transparent; RGBA (H, W, 4)."""
    tone = int(rng.choice([0, 0, 30, 255]))
    return np.dstack([np.full((*ink.shape, 3), tone, np.uint8), ink])


def _loose(glyph: Picture, rng: np.random.Generator, low: float, high: float) -> Picture:
    return _place(glyph, _side(rng), rng.uniform(low, high), rng, corner=False)


USERS: dict[str, Style] = {
    "clean": lambda g, _: g,
    "inverted": lambda g, _: 255 - g,
    "enlarged": lambda g, r: _either(_enlarge(g, _side(r)), r),
    "jpeg": lambda g, r: jpeg(_either(_enlarge(g, _side(r), r.uniform(1, 3)), r), int(r.integers(30, 71))),
    "box": lambda g, r: _either(with_box(g, r), r),
    "box_enlarged": lambda g, r: _either(with_box(_enlarge(g, UNIT * int(r.integers(2, 11))), r), r),
    "paper_shadow": lambda g, r: on_paper(_enlarge(g, _side(r), r.uniform(1, 4)), r),
    "noise": lambda g, r: salt_and_pepper(
        _either(_enlarge(g, int(r.choice([UNIT, _side(r)]))), r), r.uniform(0.02, 0.05), r
    ),
    "one_bit": lambda g, r: one_bit(_either(_enlarge(g, int(r.choice([UNIT, _side(r)]))), r), r),
    "thin_pen": lambda g, r: _either(_enlarge(pen(g, 1), _side(r)), r),
    "thin_28": lambda g, r: _either(hairline(g), r),
    "marker": lambda g, r: _either(_enlarge(np.pad(pen(g, 6), 12), _side(r)), r),
    "small_or_corner": lambda g, r: _either(_place(g, _side(r), r.uniform(0.15, 0.9), r, corner=True), r),
    "canvas_alpha": lambda g, r: transparent(
        _place(pen(g, r.uniform(1, 4)), 280, r.uniform(0.3, 0.9), r, corner=False), r
    ),
    "fragments": lambda g, r: _either(_enlarge_any(with_fragments(g, r), r), r),
}


def _empty(rng: np.random.Generator) -> Picture:
    side = _side(rng)
    return np.zeros((side, side), np.uint8)


def _empty_box(rng: np.random.Generator) -> Picture:
    picture = _empty(rng)
    margin, width = (int(rng.uniform(0, 0.1) * len(picture)) for _ in range(2))
    return uint8(cv2.rectangle(picture, (margin, margin), (len(picture) - 1 - margin,) * 2, 255, max(1, width)))


BLANK: dict[str, Style] = {  # without any character, whatever the glyph
    "white": lambda _, r: 255 - _empty(r),
    "grain": lambda _, r: uint8(np.clip(235 + r.normal(0, r.uniform(1, 10), _empty(r).shape), 0, 255)),
    "paper": lambda _, r: on_paper(_empty(r), r, (0, 60)),
    "paper_in_shadow": lambda _, r: on_paper(_empty(r), r),
    "specks": lambda _, r: salt_and_pepper(255 - _empty(r), r.uniform(0.001, 0.02), r),
    "empty_box": lambda _, r: _either(_empty_box(r), r),
}


def scene(glyph: Picture, rng: np.random.Generator, neighbour: Picture | None = None) -> Picture:
    """A user's picture at random: any pen, place, box, paper, light, scan and noise, alone and together; grey uint8 (H,
    W).
    """
    return _worn(_toned(_laid_out(_drawn(glyph, rng), rng, neighbour), rng), rng)


def _drawn(glyph: Picture, rng: np.random.Generator) -> Picture:
    dice = rng.random()
    if dice < 0.33:
        return pen(glyph, rng.uniform(0.8, 6.8))
    return hairline(glyph) if dice < 0.38 else glyph


def _laid_out(ink: Picture, rng: np.random.Generator, neighbour: Picture | None) -> Picture:
    """Light ink on black: alone, anywhere on a canvas, in a box, beside a neighbour, or cut to its edges; sometimes
    turned a little.
    """
    side, layout = round(math.exp(rng.uniform(math.log(UNIT), math.log(240)))), rng.random()
    if layout < 0.3:
        ink = _enlarge(ink, side, rng.uniform(1, 4))
    elif layout < 0.5:
        ink = _place(ink, max(side, 48), rng.uniform(0.15, 0.95), rng, corner=rng.random() < 0.4)
    elif layout < 0.85:
        ink = with_box(_enlarge(ink, UNIT * max(1, int(rng.integers(-16, 9)))), rng)
    elif layout < 0.95:
        ink = _enlarge_any(with_fragments(_enlarge(ink, UNIT * int(rng.integers(1, 3))), rng, neighbour), rng)
    else:
        ink = _cut(_enlarge(ink, max(side, 40)))
    if rng.random() < 0.15:
        turn = cv2.getRotationMatrix2D((ink.shape[1] / 2, ink.shape[0] / 2), rng.uniform(-4, 4), 1)
        ink = uint8(cv2.warpAffine(ink, turn, ink.shape[::-1]))
    return ink


def _toned(ink: Picture, rng: np.random.Generator) -> Picture:
    """Photographed on paper, scanned to one bit, or in two tones of any contrast and polarity."""
    tone = rng.random()
    if tone < 0.3:
        picture = on_paper(ink, rng, (0, 200))
        return picture if rng.random() < 0.9 else 255 - picture
    if tone < 0.45:
        return one_bit(_either(ink, rng), rng)
    low, high = sorted(rng.uniform(0, 255, 2)) if rng.random() < 0.4 else (0, 255)
    return _either(uint8(np.clip(low + ink.astype(np.float32) * (max(high - low, 20) / 255), 0, 255)), rng)


def _worn(picture: Picture, rng: np.random.Generator) -> Picture:
    """Specks, grain and JPEG, each sometimes."""
    if rng.random() < 0.15:
        picture = salt_and_pepper(picture, rng.uniform(0.005, 0.06), rng)
    if rng.random() < 0.2:
        picture = uint8(np.clip(picture + rng.normal(0, rng.uniform(1, 12), picture.shape), 0, 255))
    return jpeg(picture, int(rng.integers(20, 80))) if rng.random() < 0.25 else picture
