"""What of the ink is the character: boxes, specks and neighbours' fragments are told by their shape."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from handlers.pictures.decoding import Grey

Mask: TypeAlias = npt.NDArray[np.bool_]  # (H, W)
Sums: TypeAlias = npt.NDArray[np.int32]  # of the pixels of each row (H,) or column (W,)

MIN_GLYPH = 0.05  # of the longer side: a smaller thing is a speck
MIN_LENGTH = 3  # pixels of the largest piece's longer side
SPECK_SHARE = 0.04  # of the main stroke's area: smaller pieces are dropped
FRAGMENT_SHARE = 0.35  # of the main stroke's area: smaller pieces that touch the edge belong to a neighbour
FRAME_BAND = 0.25  # of the side: how far from the edge a box's line may lie
FRAME_WIDTH = 0.16  # of the side: the widest line of a box
FRAME_SPAN = 0.9  # of the side: the shortest line of a box
PRINTED_SPAN = 0.97  # of its length: how much of a printed line lies within a pixel of straight
PRINTED_EDGE = 0.04  # of the side: how far inside of the ink's outer edge a printed line may begin
CHARACTER_SPAN = 0.4  # of a box's side: the smallest character in it; less is a part of what was taken for a box


def frame_of(mask: Mask) -> Mask:
    """The part of the ink that is a box around the character: straight lines along nearly all of at least two edges.

    A box may have paper around it. An E, L or H has lines along its edges too; a pen's are not as straight as a printed
    box's.
    """
    frame = np.zeros_like(mask)
    top, bottom, left, right = box_of(mask)
    rows, columns = line_sums(mask, 1), line_sums(mask, 0)
    if rows.max() < FRAME_SPAN * (right - left) and columns.max() < FRAME_SPAN * (bottom - top):
        return frame  # most characters have no line of that length
    if _mark_lines(mask, rows, columns, frame) >= 2:
        return frame
    frame[:] = False
    inside = np.s_[top:bottom, left:right]
    sides = _mark_lines(mask[inside], rows[top:bottom], columns[left:right], frame[inside], printed=True)
    if sides >= 2:
        rest = max(extent(mask & ~frame)) / max(bottom - top, right - left)
        if rest > CHARACTER_SPAN or (sides == 4 and rest == 0):
            return frame
    return np.zeros_like(mask)


def _mark_lines(mask: Mask, rows: Sums, columns: Sums, frame: Mask, printed: bool = False) -> int:
    """Mark in `frame` the lines of `mask` near its edges, and count the sides that have one; `printed`: straight to a
    pixel.
    """
    sides = 0
    for view, sums, marked in (
        (mask, rows, frame),
        (mask[::-1], rows[::-1], frame[::-1]),
        (mask.T, columns, frame.T),
        (mask.T[::-1], columns[::-1], frame.T[::-1]),
    ):
        across, length = view.shape
        band, widest = max(1, round(FRAME_BAND * across)), max(1, round(FRAME_WIDTH * max(across, length)))
        lines = np.flatnonzero(sums[:band] >= FRAME_SPAN * length)
        if not 0 < len(lines) <= widest:
            continue
        if printed and (
            view[: lines[0] + 1 + round(0.01 * across)].any(axis=0).mean() < PRINTED_SPAN
            or lines[0] > PRINTED_EDGE * across
        ):
            continue
        marked[max(0, lines[0] - 1) : lines[-1] + 2] = True  # with the soft edge of the line
        sides += 1
    return sides


def keep_character(mask: Mask) -> Mask:
    """Keep the largest piece and what may belong to it: dots, bars and broken strokes, not specks nor a neighbour's
    parts.

    Nothing is kept if the largest piece is a speck.
    """
    pieces = mask.view(np.uint8)
    least = max(MIN_LENGTH, MIN_GLYPH * max(mask.shape))
    # Most characters are of one piece, and to measure the pieces takes several times as long as to count them.
    if cv2.connectedComponents(pieces)[0] <= 2:  # the paper counts as one
        return mask if max(extent(mask)) >= least else np.zeros_like(mask)
    # The default takes twice as long.
    _, labels, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(pieces, 8, cv2.CV_32S, cv2.CCL_BBDT)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the paper
    height, width = mask.shape
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    at_edge = (left == 0) | (top == 0) | (right == width) | (bottom == height)
    main = int(areas.argmax())
    if max(right[main] - left[main], bottom[main] - top[main]) < least:
        return np.zeros_like(mask)
    keep = areas > SPECK_SHARE * areas[main]
    if not at_edge[main]:
        keep &= ~at_edge | (areas >= FRAGMENT_SHARE * areas[main])
    kept: Mask = keep.take(labels, mode="clip")
    return kept


def extent(mask: Mask) -> tuple[int, int]:
    """Height and width of what is set; 0, 0 if nothing is."""
    top, bottom, left, right = box_of(mask)
    return bottom - top, right - left


def box_of(ink: Mask | Grey) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (ends exclusive) of what is not 0; all 0 if nothing is."""
    left, top, width, height = cv2.boundingRect(ink.view(np.uint8))
    return top, top + height, left, left + width


def line_sums(grey: Mask | Grey, axis: int) -> Sums:
    """The sum of each row (axis 1) or column (axis 0), much faster than by numpy."""
    return np.asarray(cv2.reduce(grey.view(np.uint8), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S), np.int32).ravel()
