"""A glyph's centre lines, and the glyph drawn anew with another pen."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Picture: TypeAlias = npt.NDArray[np.uint8]  # (H, W) or (H, W, 4)

UNIT = 28  # pixels a side of a glyph; widths and gaps are given at this size
FINE = 4  # strokes are drawn anew at so many times the size


def uint8(array: npt.NDArray[np.generic] | cv2.typing.MatLike) -> Picture:
    return np.asarray(array, np.uint8)


def _thinning_tables() -> list[npt.NDArray[np.uint8]]:
    """For each of 256 neighbourhoods, whether either pass of Zhang & Suen 1984 ("A fast parallel algorithm for
    thinning") keeps the pixel.
    """
    tables = []
    for passes in range(2):
        keep = np.ones(256, np.uint8)
        for code in range(256):
            around = [code >> bit & 1 for bit in range(8)]  # from the north on, clockwise
            n, e, s, w = around[::2]
            changes = sum(a == 0 and b == 1 for a, b in zip(around, [*around[1:], around[0]], strict=True))
            first, second = ((n & e & s), (e & s & w)) if passes == 0 else ((n & e & w), (n & s & w))
            keep[code] = not (2 <= sum(around) <= 6 and changes == 1 and first == 0 and second == 0)
        tables.append(keep)
    return tables


_THINNING = _thinning_tables()
_NEIGHBOURS = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], np.float32)  # the weight of each neighbour in a code


def skeleton(mask: Picture) -> Picture:
    """The centre lines, one pixel wide, of what is not zero in uint8 (H, W); 0 or 1."""
    ink = np.pad((mask > 0).astype(np.uint8), 1)
    while True:
        before = int(ink.sum())
        for table in _THINNING:
            codes = uint8(cv2.filter2D(ink.astype(np.float32), -1, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT))
            ink = ink & table[codes]
        if int(ink.sum()) == before:
            return ink[1:-1, 1:-1]


def _centre_lines(glyph: Picture) -> Picture:
    """Of uint8 (28, 28), at FINE times the size: 0 or 1, (112, 112). At 28 pixels, thinning would lose diagonal
    strokes.
    """
    large = cv2.resize(glyph, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_CUBIC)
    return skeleton((large > 110).astype(np.uint8))


def hairline(glyph: Picture) -> Picture:
    """The glyph in lines of 1 to 2 pixels, without grey: 0 or 255, (28, 28)."""
    blocks = _centre_lines(glyph).reshape(UNIT, FINE, UNIT, FINE)
    return uint8(255 * blocks.max(axis=(1, 3)))


def pen(glyph: Picture, width: float) -> Picture:
    """The glyph drawn anew with a round pen of `width` pixels at 28: uint8 (112, 112)."""
    line = _centre_lines(glyph)
    across = max(1, round(width * FINE))
    drawn = cv2.dilate(line, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across, across)))
    return uint8(cv2.GaussianBlur(uint8(drawn) * 255, (0, 0), 0.8))
