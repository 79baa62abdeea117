"""Any picture of one character -> uint8 (28, 28), upright, light ink on black, framed as EMNIST frames its images.

    picture bytes ─ decode ─ grey ─ shrink ─ light ink ─┬─ framed as EMNIST already? ──────────────────────► resize
                                                        └─ level ─ threshold ─ drop frame, specks ─ frame as EMNIST ─►

The last step follows section II-A of Cohen et al. 2017, "EMNIST: an extension of MNIST to handwritten letters". OpenCV
does the image processing: it is the fastest here (a 300-pixel picture in under 3 ms) and, of the libraries that have
connected components and distance transforms, the lightest to import. Pillow decodes: it knows the formats, EXIF and alpha.
"""

from __future__ import annotations

import io
import math
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Grey: TypeAlias = npt.NDArray[np.uint8]  # (H, W)
Mask: TypeAlias = npt.NDArray[np.bool_]  # (H, W)

SIZE = 28  # pixels a side of what the network sees
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")  # how files of these formats begin
MAX_PIXELS = 64_000_000  # a picture of more is refused before it is decoded
WORK_SIDE = 320  # pixels; larger pictures are shrunk to this long side
SKETCH_SIDE = 96  # pixels; light and polarity are judged on a picture of this long side

MIN_CONTRAST = 20  # grey levels between ink and paper, below which a picture is blank
MIN_PIXELS = 4  # of ink; fewer are no character
SPECK_SHARE = 0.04  # of the main stroke's area: smaller pieces are dropped
FRAGMENT_SHARE = 0.35  # of the main stroke's area: smaller pieces that touch the edge belong to a neighbour
BACKGROUND_WINDOW = 0.45  # of the side: wider than any stroke, so that a grey opening leaves the paper alone
FRAME_BAND = 0.25  # of the side: how far from the edge a box's line may lie
FRAME_WIDTH = 0.16  # of the side: the widest line of a box
FRAME_STRAIGHT = 0.7  # of a line's length: how much of it must be equally wide
FRAME_SPAN = 0.9  # of the side: the shortest line of a box

GLYPH_SIDE = 50  # pixels of the glyph's long side before the blur: its usual size in NIST's 128-pixel fields
BLUR_SIGMA = 1.0  # pixels, at that size
BORDER = 2  # pixels around the glyph's box, at that size


class InvalidImage(ValueError):
    """A picture that cannot be read as a character. `code` is one of the error codes of the REST contract."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_image(data: bytes, size: int = SIZE) -> Grey:
    """Decode a picture and prepare it: uint8 (size, size). Raises InvalidImage."""
    return prepare(decode(data), size)


def decode(data: bytes) -> Grey:
    """Picture bytes -> grey levels uint8 (H, W): EXIF turn applied, transparent parts white. Raises InvalidImage.

    Large JPEG files are decoded at a reduced scale. Of animations and multi-page files the first picture is taken.
    """
    if not data:
        raise InvalidImage("invalid_image", "the picture is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InvalidImage("image_too_large", f"{width}x{height} pixels; at most {MAX_PIXELS // 1_000_000} million are read")
            image.draft("L", (2 * WORK_SIDE, 2 * WORK_SIDE))
            return _to_grey(ImageOps.exif_transpose(image))
    except InvalidImage:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidImage("image_too_large", f"too many pixels; at most {MAX_PIXELS // 1_000_000} million are read") from error
    except UnidentifiedImageError as error:
        if data.startswith(SIGNATURES):
            raise InvalidImage("invalid_image", "the picture is damaged: its header cannot be read") from error
        raise InvalidImage("unsupported_format", f"not a picture in one of these formats: {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InvalidImage("invalid_image", f"the picture is damaged: {error}") from error


def _to_grey(image: Image.Image) -> Grey:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        white = Image.new("RGBA", rgba.size, "white")
        grey = np.asarray(Image.alpha_composite(white, rgba).convert("L"))
        # White ink on a transparent canvas vanishes on white; then the opacity is the ink.
        return grey if np.ptp(grey) >= MIN_CONTRAST else 255 - np.asarray(alpha)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: the picture's own range becomes 0..255
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise InvalidImage("invalid_image", "the picture has pixels that are not finite numbers")
        return np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.asarray(image.convert("L"))


def prepare(grey: Grey, size: int = SIZE) -> Grey:
    """Grey levels uint8 (H, W) of one character, of either polarity -> uint8 (size, size). Raises InvalidImage if there is none."""
    grey = shrink(grey, WORK_SIDE)
    if np.ptp(grey) < MIN_CONTRAST:
        raise InvalidImage("blank_image", "the picture shows nothing: it is one flat tone")
    light = light_ink(grey)
    if is_framed_as_emnist(light):
        return resize(light, size)
    ink = level(light)
    threshold, contrast = split_levels(ink)
    if contrast < MIN_CONTRAST:
        raise InvalidImage("blank_image", "no character stands out from the paper")
    mask = ink > threshold
    glyph = keep_character(mask & ~frame_of(mask))
    if np.count_nonzero(glyph) < MIN_PIXELS:
        raise InvalidImage("blank_image", "nothing is left beside the frame, the specks and the neighbours' fragments")
    return frame_as_emnist(soften(ink, glyph, threshold, contrast), size)


def shrink(grey: Grey, side: int) -> Grey:
    """Shrink to at most `side` pixels a side, averaging over areas; smaller pictures stay as they are."""
    height, width = grey.shape
    scale = side / max(height, width)
    if scale >= 1:
        return grey
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _uint8(cv2.resize(grey, shape, interpolation=cv2.INTER_AREA))


def sketch_of(grey: Grey) -> Grey:
    """A small version for judging light and polarity; by a whole factor, which is fast, so up to a factor's pixels are cut."""
    height, width = grey.shape
    factor = math.ceil(max(height, width) / SKETCH_SIDE)
    if factor == 1 or min(height, width) < factor:
        return grey
    whole = grey[: height // factor * factor, : width // factor * factor]
    return _uint8(cv2.resize(whole, (width // factor, height // factor), interpolation=cv2.INTER_AREA))


def light_ink(grey: Grey) -> Grey:
    """Invert the picture if its ink is dark.

    A straight band of one tone along the edge is a box, of the ink's tone. Else paper is the side of the threshold that
    holds the larger empty disc; the edge does not bound a disc, for paper may be tight around a bold character.
    """
    sketch = cv2.medianBlur(sketch_of(grey), 3)
    window = (2 * (sketch.shape[1] // 3) + 1, 2 * (sketch.shape[0] // 3) + 1)
    levels = cv2.addWeighted(sketch, 0.5, cv2.blur(sketch, window, borderType=cv2.BORDER_REFLECT_101), -0.5, 128)
    light = _uint8(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    edge = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    edge_is_light = bool(edge.mean() > 127)
    if _is_straight_band((light > 0) == edge_is_light):
        ink_is_light = edge_is_light
    else:
        light_disc, dark_disc = (cv2.distanceTransform(side, cv2.DIST_L2, 3).max() for side in (light, cv2.bitwise_not(light)))
        ink_is_light = bool(light_disc <= dark_disc)
    return grey if ink_is_light else _uint8(cv2.bitwise_not(grey))


def _is_straight_band(mask: Mask) -> bool:
    """Whether what is set along the edge is equally wide, and not wider than a box's line, on at least three sides."""
    crooked = 0
    for view in (mask, mask[::-1], mask.T, mask.T[::-1]):
        widths = np.where(view.all(axis=0), len(view), view.argmin(axis=0))  # from the edge to the first that is not set
        width = np.sort(widths)[len(widths) // 2]
        thin = 0 < width <= FRAME_WIDTH * len(view) + 1
        crooked += not (thin and (np.abs(widths - width) <= 1).mean() >= FRAME_STRAIGHT)
        if crooked > 1:
            return False
    return True


def is_framed_as_emnist(light: Grey) -> bool:
    """Whether a light-on-dark picture looks as EMNIST's images do, at any size: square, black around a centred
    character whose long side fills 18 to 27 of 28 parts, fully white somewhere, and without a frame."""
    height, width = light.shape
    if height != width or height < SIZE:
        return False
    unit = height / SIZE
    ring = max(1, round(unit))
    if light.max() < 250 or max(light[:ring].max(), light[-ring:].max(), light[:, :ring].max(), light[:, -ring:].max()) > 8:
        return False
    mask = light > 16
    top, bottom, left, right = _box(mask)
    long_side = max(bottom - top, right - left) / unit
    off_centre = max(abs(top + bottom - height), abs(left + right - width)) / 2 / unit
    return 18 <= long_side <= 27 and off_centre <= 2.5 and not frame_of(light > 127).any()


def level(light: Grey) -> Grey:
    """Subtract the paper's own tone, estimated by a grey opening that is wider than any stroke."""
    sketch = cv2.GaussianBlur(sketch_of(light), (3, 3), 0)
    window = max(3, round(BACKGROUND_WINDOW * min(sketch.shape)))
    paper = cv2.morphologyEx(sketch, cv2.MORPH_OPEN, np.ones((window, window), np.uint8))
    paper = cv2.blur(paper, (window, window), borderType=cv2.BORDER_REPLICATE)
    return _uint8(cv2.subtract(light, cv2.resize(paper, light.shape[::-1], interpolation=cv2.INTER_LINEAR)))


def split_levels(ink: Grey) -> tuple[float, float]:
    """Otsu's threshold between paper and ink, and the distance between the means of the two, both in grey levels."""
    smooth = cv2.GaussianBlur(ink, (3, 3), 0)
    threshold, above = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    means = [cv2.mean(smooth, side)[0] for side in (above, cv2.bitwise_not(above))]  # 0 for a side without pixels
    return float(threshold), max(0.0, means[0] - means[1])


def frame_of(mask: Mask) -> Mask:
    """The part of the ink that is a box around the character: straight lines near at least two edges, along nearly all of them."""
    frame = np.zeros_like(mask)
    sides = 0
    for view, marked in ((mask, frame), (mask.T, frame.T)):  # lines along the rows, then along the columns
        across, length = view.shape
        lines = cv2.reduce(view.view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0] >= FRAME_SPAN * length
        if not lines.any():
            continue
        band, widest = max(1, round(FRAME_BAND * across)), max(1, round(FRAME_WIDTH * across))
        for near in (slice(0, band), slice(across - band, across)):
            rows = np.flatnonzero(lines[near]) + near.start
            if 0 < len(rows) <= widest:
                marked[max(0, rows[0] - 1) : rows[-1] + 2] = True  # with the soft edge of the line
                sides += 1
    return frame if sides >= 2 else np.zeros_like(mask)


def keep_character(mask: Mask) -> Mask:
    """Keep the largest piece and what may belong to it: dots, bars and broken strokes, not specks nor a neighbour's parts."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:  # paper and at most one piece
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the paper
    height, width = mask.shape
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    at_edge = (left == 0) | (top == 0) | (right == width) | (bottom == height)
    main = int(areas.argmax())
    keep = areas > SPECK_SHARE * areas[main]
    if not at_edge[main]:
        keep &= ~at_edge | (areas >= FRAGMENT_SHARE * areas[main])
    kept: Mask = keep.take(labels, mode="clip")
    return kept


def soften(ink: Grey, glyph: Mask, threshold: float, contrast: float) -> Grey:
    """The glyph alone as ink 0..255, cut to its box: soft at its edges, flat inside, nothing elsewhere."""
    reach = max(1, round(max(glyph.shape) / 100))
    near = cv2.dilate(glyph.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    scaled = (ink.astype(np.float32) - (threshold - 0.35 * contrast)) * (255 / (0.7 * contrast))
    soft = _uint8(np.clip(scaled, 0, 255)) * near
    top, bottom, left, right = _box(soft > 0)
    return _uint8(soft[top:bottom, left:right])


def frame_as_emnist(glyph: Grey, size: int = SIZE) -> Grey:
    """Frame a glyph, light on black and cut to its box, as the EMNIST authors did: blur, box, square, border, bicubic, stretch."""
    height, width = glyph.shape
    scale = GLYPH_SIDE / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(glyph, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    reach = round(4 * BLUR_SIGMA)
    padded = cv2.copyMakeBorder(scaled, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    blurred = cv2.GaussianBlur(padded, (0, 0), BLUR_SIGMA)
    top, bottom, left, right = _box(blurred > 0)
    box = blurred[top:bottom, left:right]
    side = max(box.shape) + 2 * BORDER
    square = np.zeros((side, side), np.uint8)
    y, x = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[y : y + box.shape[0], x : x + box.shape[1]] = box
    small = resize(square, size).astype(np.float32)
    return _uint8(np.round(small * (255 / max(1.0, float(small.max())))))


def resize(grey: Grey, size: int) -> Grey:
    """Bicubic, with Pillow's anti-aliasing when it shrinks; a picture of that size stays as it is."""
    if grey.shape == (size, size):
        return grey
    return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC))


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (ends exclusive) of what is set; something must be."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _uint8(array: npt.NDArray[np.generic] | cv2.typing.MatLike) -> Grey:
    return array.astype(np.uint8, copy=False)
