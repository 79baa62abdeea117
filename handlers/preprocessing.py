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

MIN_CONTRAST = 16  # grey levels between ink and paper, below which a picture is blank
FAINT = 6  # grey levels; the same for a picture of two clear tones
TWO_TONES = 0.8  # separability above which a picture has two clear tones
MESSY = 0.76  # separability below which no threshold finds the ink
CROWDED = 0.48  # share of the picture inside its frame; more ink is no character's
MIN_GLYPH = 0.05  # of the longer side: a smaller thing is a speck
MIN_LENGTH = 3  # pixels of the largest piece's longer side
MIN_PIXELS = 4  # of ink; fewer are no character
SPECK_SHARE = 0.04  # of the main stroke's area: smaller pieces are dropped
FRAGMENT_SHARE = 0.35  # of the main stroke's area: smaller pieces that touch the edge belong to a neighbour
BACKGROUND_WINDOW = 0.45  # of the side: wider than any stroke, so that a grey opening leaves the paper alone
SHADOW_WINDOW = 0.25  # of the side: the same for a picture of uneven light, to follow a shadow's edge
MARGIN = 0.18  # of the longer side: a margin of paper that is wider is no line of a box
FRAME_BAND = 0.25  # of the side: how far from the edge a box's line may lie
FRAME_WIDTH = 0.16  # of the side: the widest line of a box
FRAME_STRAIGHT = 0.5  # of a line's length: how much of it must be equally wide
FRAME_SPAN = 0.9  # of the side: the shortest line of a box

GLYPH_SIDE = 50  # pixels of the glyph's long side before the blur: its usual size in NIST's 128-pixel fields
THINNEST, USUAL_THIN = 5.0, 6.5  # pixels: strokes thinner than the former, as 5 % of EMNIST's are, get the latter width
THICKEST, USUAL_THICK = 13.0, 10.0  # likewise of 2 %
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
    if np.ptp(grey) < FAINT:
        raise InvalidImage("blank_image", "the picture shows nothing: it is one flat tone")
    light = light_ink(grey)
    if is_framed_as_emnist(light):
        return resize(light, size)
    ink = level(light)
    threshold, contrast = split_levels(ink)
    clearness = separability(cv2.GaussianBlur(ink, (3, 3), 0))
    if contrast < (FAINT if clearness >= TWO_TONES else MIN_CONTRAST):
        raise InvalidImage("blank_image", "no character stands out from the paper")
    mask = ink > threshold
    frame = frame_of(mask)
    inside = mask & ~frame
    if np.count_nonzero(inside) > CROWDED * np.count_nonzero(~frame) or (clearness < MESSY and not frame.any()):
        return whole(ink, size)
    glyph = keep_character(inside)
    if np.count_nonzero(glyph) < MIN_PIXELS:
        raise InvalidImage("blank_image", "nothing is left beside the frame, the specks and the neighbours' fragments")
    return frame_as_emnist(soften(ink, glyph, threshold, contrast), size)


def whole(ink: Grey, size: int) -> Grey:
    """The whole picture, square and stretched, where ink cannot be told from paper surely: then the network sees what there is."""
    height, width = ink.shape
    side = max(height, width)
    y, x = (side - height) // 2, (side - width) // 2
    square = cv2.copyMakeBorder(ink, y, side - height - y, x, side - width - x, cv2.BORDER_CONSTANT, value=0)
    small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC).astype(np.float32)
    low, high = np.percentile(small, (2, 99.5))
    return _uint8(np.clip((small - low) * (255 / max(high - low, 1.0)), 0, 255))


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

    Lines of one tone along the edges are the paper's margin or a box. Paper is the tone of a margin that is wider than any
    box's line; else the tone that holds the larger empty disc inside of those lines, where the edge does not bound a disc,
    for paper may be tight around a bold character.
    """
    raw = sketch_of(grey)
    sketch = _uint8(cv2.medianBlur(raw, 3))
    if np.ptp(sketch) < 0.5 * np.ptp(raw):  # strokes one pixel wide went with the specks
        sketch = raw
    window = (2 * (sketch.shape[1] // 3) + 1, 2 * (sketch.shape[0] // 3) + 1)
    levels = cv2.addWeighted(sketch, 0.5, cv2.blur(sketch, window, borderType=cv2.BORDER_REFLECT_101), -0.5, 128)
    light = _uint8(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    depths, margins = zip(*(_uniform_lines(view, max(light.shape)) for view in (light, light[::-1], light.T, light.T[::-1])), strict=True)
    edges = [line.mean() / 255 for line in (light[0], light[-1], light[:, 0], light[:, -1])]
    if len({tone for tone in margins if tone is not None}) == 1:
        ink_is_light = not max(tone for tone in margins if tone is not None)
    elif (max(edges) < 0.1 or min(edges) > 0.9) and not _is_straight_band((light > 0) == (edges[0] > 0.5)):
        ink_is_light = edges[0] < 0.5
    else:
        top, bottom, left, right = depths
        inside = np.ascontiguousarray(light[top : light.shape[0] - bottom, left : light.shape[1] - right])
        light_disc, dark_disc = (cv2.distanceTransform(side, cv2.DIST_L2, 3).max() for side in (inside, cv2.bitwise_not(inside)))
        ink_is_light = bool(light_disc <= dark_disc)
        if separability(sketch) < TWO_TONES:
            ink_is_light = _thin_parts(sketch, cv2.MORPH_TOPHAT) > _thin_parts(sketch, cv2.MORPH_BLACKHAT)
    return grey if ink_is_light else _uint8(cv2.bitwise_not(grey))


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


def _uniform_lines(light: Grey, side: int) -> tuple[int, bool | None]:
    """How many rows from the top are of one tone each, judged by their middle part; and the tone, light or not, of a wide margin."""
    rows, columns = light.shape
    deepest = max(1, min(round(0.3 * side), round(0.4 * rows)))
    shares = light[:deepest, round(0.2 * columns) : columns - round(0.2 * columns)].mean(axis=1) / 255
    uniform = (shares < 0.12) | (shares > 0.88)
    depth = deepest if uniform.all() else int(uniform.argmin())
    same = uniform & ((shares > 0.5) == (shares[0] > 0.5))
    run = deepest if same.all() else int(same.argmin())
    return depth, bool(shares[0] > 0.5) if run > MARGIN * side else None


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
    return 18 <= long_side <= 27 and off_centre <= 2.5 and _mark_lines(light > 127, np.zeros_like(mask)) < 2


def level(light: Grey) -> Grey:
    """Subtract the paper's own tone, estimated by a grey opening that is wider than any stroke."""
    sketch = cv2.GaussianBlur(sketch_of(light), (3, 3), 0)
    share = BACKGROUND_WINDOW if separability(sketch) >= TWO_TONES else SHADOW_WINDOW
    window = max(3, round(share * min(sketch.shape)))
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
    """The part of the ink that is a box around the character: straight lines along nearly all of at least two edges.

    A box may have paper around it. An E, L or H has lines along its edges too; a pen's are not as straight as a printed box's.
    """
    frame = np.zeros_like(mask)
    if _mark_lines(mask, frame) >= 2:
        return frame
    frame[:] = False
    if mask.any():
        top, bottom, left, right = _box(mask)
        inner = np.s_[top:bottom, left:right]
        rest = mask[inner] & ~frame[inner] if _mark_lines(mask[inner], frame[inner], printed=True) >= 2 else frame[inner]
        if max(_extent(rest)) > 0.4 * max(rest.shape):
            return frame
    return np.zeros_like(mask)


def _mark_lines(mask: Mask, frame: Mask, printed: bool = False) -> int:
    """Mark in `frame` the lines of `mask` near its edges, and count the sides that have one; `printed`: straight to a pixel."""
    sides = 0
    for view, marked in ((mask, frame), (mask[::-1], frame[::-1]), (mask.T, frame.T), (mask.T[::-1], frame.T[::-1])):
        across, length = view.shape
        band, widest = max(1, round(FRAME_BAND * across)), max(1, round(FRAME_WIDTH * max(across, length)))
        rows = np.flatnonzero(view[:band].mean(axis=1) >= FRAME_SPAN)
        if not 0 < len(rows) <= widest:
            continue
        if printed and (view[: rows[0] + 1 + round(0.01 * across)].any(axis=0).mean() < 0.97 or rows[0] > 0.04 * across):
            continue
        marked[max(0, rows[0] - 1) : rows[-1] + 2] = True  # with the soft edge of the line
        sides += 1
    return sides


def keep_character(mask: Mask) -> Mask:
    """Keep the largest piece and what may belong to it: dots, bars and broken strokes, not specks nor a neighbour's parts.

    Nothing is kept if the largest piece is a speck.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the paper
    height, width = mask.shape
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    at_edge = (left == 0) | (top == 0) | (right == width) | (bottom == height)
    main = int(areas.argmax())
    if max(right[main] - left[main], bottom[main] - top[main]) < max(MIN_LENGTH, MIN_GLYPH * max(mask.shape)):
        return np.zeros_like(mask)
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
    scaled = even_stroke(scaled)
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


def stroke_width(glyph: Grey) -> float:
    """The mean width in pixels of a glyph's strokes: across a stroke the distance to its edge is a quarter of the width on average."""
    mask = cv2.copyMakeBorder((glyph > 110).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distances = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    return 4 * cv2.mean(distances, mask)[0] - 1


def even_stroke(glyph: Grey) -> Grey:
    """Thicken hairlines and thin a marker's strokes, of a glyph with a long side of GLYPH_SIDE; others stay as they are."""
    width = stroke_width(glyph)
    if THINNEST <= width <= THICKEST or width <= 0:
        return glyph
    change, operation = (USUAL_THIN - width, cv2.MORPH_DILATE) if width < THINNEST else (width - USUAL_THICK, cv2.MORPH_ERODE)
    reach = math.ceil(change / 2)
    across = round(change) + 1
    padded = cv2.copyMakeBorder(glyph, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    changed = cv2.morphologyEx(padded, operation, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across, across)))
    return _uint8(changed) if changed.max() > 110 else glyph


def resize(grey: Grey, size: int) -> Grey:
    """Bicubic, with Pillow's anti-aliasing when it shrinks; a picture of that size stays as it is."""
    if grey.shape == (size, size):
        return grey
    return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC))


def _extent(mask: Mask) -> tuple[int, int]:
    """Height and width of what is set; 0, 0 if nothing is."""
    if not mask.any():
        return 0, 0
    top, bottom, left, right = _box(mask)
    return bottom - top, right - left


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (ends exclusive) of what is set; something must be."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _uint8(array: npt.NDArray[np.generic] | cv2.typing.MatLike) -> Grey:
    return array.astype(np.uint8, copy=False)
