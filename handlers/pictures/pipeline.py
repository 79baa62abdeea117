"""Any picture of one character -> uint8 (28, 28), upright, light ink on black, framed as EMNIST frames its images.

    bytes ─ decode ─ shrink ─ light ink ─┬─ framed as EMNIST already? ─────────────────────────────────► resize
            picture.py       polarity.py ├─ level ─ threshold ─ drop box, specks ─ even stroke ─ frame as EMNIST
                                         │                      shapes.py          framing.py
                                         └─ where no threshold finds the ink: the whole picture, levelled ─► resize

What is in doubt is handed on whole, for the network can read through noise, fog and lines, and cannot read what was cut
away; it is trained on what comes out here. The framing follows section II-A of Cohen et al. 2017, "EMNIST: an extension
of MNIST to handwritten letters".

OpenCV does the image processing: it has connected components, distance transforms and morphology, is the fastest here,
and imports in 0.1 s (its wheel: 153 MB). scikit-image with SciPy takes 175 MB and 1.0 s.
"""

from __future__ import annotations

import cv2
import numpy as np

from handlers.pictures.decoding import FAINT, WORK_SIDE, Grey, InvalidImage, decode, uint8
from handlers.pictures.framing import SIZE, frame_as_emnist, is_framed_as_emnist, resize, soften, whole
from handlers.pictures.polarity import TWO_TONES, light_ink, separability, sketch_of, spread
from handlers.pictures.shapes import frame_of, keep_character

MIN_CONTRAST = 16  # grey levels between ink and paper, below which a picture is blank
MESSY = 0.76  # separability below which no threshold finds the ink
CROWDED = 0.48  # share of the picture inside its frame; more ink is no character's
MIN_PIXELS = 4  # of ink; fewer are no character
BACKGROUND_WINDOW = 0.45  # of the side: wider than any stroke, so that a grey opening leaves the paper alone
SHADOW_WINDOW = 0.25  # of the side: the same for a picture of uneven light, to follow a shadow's edge


def read_image(data: bytes, size: int = SIZE) -> Grey:
    """Decode a picture and prepare it: uint8 (size, size). Raises InvalidImage."""
    return prepare(decode(data), size)


def prepare(grey: Grey, size: int = SIZE) -> Grey:
    """Grey levels uint8 (H, W) of one character, of either polarity -> uint8 (size, size). Raises InvalidImage if there
    is none.
    """
    grey = shrink(grey, WORK_SIDE)
    if spread(grey) < FAINT:
        raise InvalidImage("blank_image", "the picture shows nothing: it is one flat tone")
    light = light_ink(grey)
    if is_framed_as_emnist(light):
        return resize(light, size)
    ink = level(light)
    threshold, contrast, clearness = split_levels(ink)
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


def shrink(grey: Grey, side: int) -> Grey:
    """Shrink to at most `side` pixels a side, averaging over areas; smaller pictures stay as they are."""
    height, width = grey.shape
    scale = side / max(height, width)
    if scale >= 1:
        return grey
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return uint8(cv2.resize(grey, shape, interpolation=cv2.INTER_AREA))


def level(light: Grey) -> Grey:
    """Subtract the paper's own tone, estimated by a grey opening that is wider than any stroke."""
    sketch = uint8(cv2.GaussianBlur(sketch_of(light), (3, 3), 0))
    share = BACKGROUND_WINDOW if separability(sketch) >= TWO_TONES else SHADOW_WINDOW
    window = max(3, round(share * min(sketch.shape)))
    paper = cv2.morphologyEx(sketch, cv2.MORPH_OPEN, np.ones((window, window), np.uint8))
    paper = cv2.blur(paper, (window, window), borderType=cv2.BORDER_REPLICATE)
    return uint8(cv2.subtract(light, cv2.resize(paper, light.shape[::-1], interpolation=cv2.INTER_LINEAR)))


def split_levels(ink: Grey) -> tuple[float, float, float]:
    """Otsu's threshold between paper and ink, the distance between the means of the two, both in grey levels, and their
    separability.
    """
    smooth = uint8(cv2.GaussianBlur(ink, (3, 3), 0))
    threshold, above = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    means = [cv2.mean(smooth, side)[0] for side in (above, cv2.bitwise_not(above))]  # 0 for a side without pixels
    return float(threshold), max(0.0, means[0] - means[1]), separability(smooth)
