"""The steps between a decoded picture and a framed glyph, each on pictures made for it."""

import cv2
import numpy as np
import pytest

from handlers.pictures.decoding import InvalidImage
from handlers.pictures.framing import even_stroke, stroke_width, whole
from handlers.pictures.pipeline import level, prepare, split_levels
from handlers.pictures.polarity import light_ink, separability
from handlers.pictures.shapes import frame_of, keep_character


def canvas(height: int = 120, width: int = 120) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


def cross(picture: np.ndarray, thickness: int = 8) -> np.ndarray:
    """A + in the middle, over half of the picture."""
    height, width = picture.shape
    cv2.line(picture, (width // 4, height // 2), (3 * width // 4, height // 2), 255, thickness)
    cv2.line(picture, (width // 2, height // 4), (width // 2, 3 * height // 4), 255, thickness)
    return picture


def test_separability_is_1_for_two_tones_and_less_for_a_ramp():
    assert separability(cross(canvas())) == pytest.approx(1, abs=1e-6)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (10, 1))
    assert separability(ramp) == pytest.approx(0.75, abs=0.01)  # of a uniform distribution: 1 - (1/12/4) / (1/12)
    assert separability(canvas()) == 0


@pytest.mark.parametrize("margin", [0, 6, 14])
@pytest.mark.parametrize("width", [2, 8, 14])
def test_the_paper_is_found_inside_a_box_with_and_without_a_margin(margin, width):
    picture = cross(canvas())
    cv2.rectangle(picture, (margin, margin), (119 - margin, 119 - margin), 255, width)
    assert light_ink(picture) is picture
    assert np.array_equal(light_ink(255 - picture), picture)


def test_dark_ink_is_found_under_a_hard_shadow():
    """Where paper in the shadow is darker than ink in the light."""
    light = np.full((120, 120), 230.0)
    light[:, 60:] = 90
    picture = (light * (1 - 0.5 * cross(canvas()) / 255)).astype(np.uint8)
    assert picture[60, 40] > picture[10, 100]
    assert np.array_equal(light_ink(picture), 255 - picture)


@pytest.mark.parametrize("sides", ["tblr", "tbl", "tl", "lr"])
@pytest.mark.parametrize("margin", [0, 10])
def test_a_box_is_marked_whole_and_alone(sides, margin):
    character = cross(canvas()) > 0
    box = np.zeros_like(character)
    near, far = slice(margin, margin + 5), slice(115 - margin, 120 - margin)
    along = slice(margin, 120 - margin)
    for side, part in {"t": (near, along), "b": (far, along), "l": (along, near), "r": (along, far)}.items():
        if side in sides:
            box[part] = True
    if margin and sides == "lr":
        pytest.skip("two lines apart, with paper around them, may be two strokes")
    frame = frame_of(character | box)
    assert (frame & box).sum() >= 0.99 * box.sum()
    assert not (frame & character).any()


@pytest.mark.parametrize("letter", ["L", "E", "H", "I", "T", "D"])
def test_a_drawn_letter_is_no_box(letter):
    picture = canvas(160, 140)
    cv2.putText(picture, letter, (20, 130), cv2.FONT_HERSHEY_SIMPLEX, 4.5, 255, 12)
    turned = cv2.warpAffine(picture, cv2.getRotationMatrix2D((70, 80), 3, 1), (140, 160))
    assert turned.any()
    assert not frame_of(turned > 127).any()


def test_a_shadow_is_levelled_and_the_threshold_parts_ink_from_paper():
    ramp = np.linspace(0, 120, 120)[None, :]
    picture = (ramp + 100.0 * cross(canvas()) / 255).astype(np.uint8)
    ink = level(picture)
    threshold, contrast, _ = split_levels(ink)
    mask = cross(canvas()) > 0
    assert contrast > 60
    assert ((ink > threshold) == mask).mean() > 0.97


def test_parts_of_one_character_stay_and_specks_go():
    picture = canvas()
    cv2.line(picture, (60, 45), (60, 100), 255, 8)
    cv2.circle(picture, (60, 25), 5, 255, -1)  # the dot of an i
    picture[10:12, 100:102] = 255  # a speck
    kept = keep_character(picture > 0)
    assert kept[25, 60]
    assert not kept[10:12, 100:102].any()


def test_nothing_but_specks_is_nothing():
    rng = np.random.default_rng(0)
    assert not keep_character(rng.random((200, 200)) < 0.01).any()


@pytest.mark.parametrize(("drawn", "expected"), [(2, 5.5), (3, 5.5), (7, 7), (11, 11), (17, 9)])
def test_hairlines_and_markers_are_brought_near_the_usual_width(drawn, expected):
    glyph = canvas(50, 50)
    glyph[:, 25 - drawn // 2 : 25 - drawn // 2 + drawn] = 255
    assert stroke_width(glyph) == pytest.approx(drawn, rel=0.2)
    assert stroke_width(even_stroke(glyph)) == pytest.approx(expected, rel=0.25)


def test_a_whole_picture_keeps_its_place_and_has_the_full_range():
    ink = canvas(40, 20)
    ink[10, 5] = 200
    small = whole(ink, 28)
    assert small.shape == (28, 28)
    y, x = np.unravel_index(int(small.argmax()), small.shape)
    assert abs(y - 7) <= 1  # row 10 of 40
    assert abs(x - 10.5) <= 1  # column 5 of 20, in the middle of a square of 40


@pytest.mark.parametrize("seed", range(5))
def test_paper_alone_is_blank(seed):
    rng = np.random.default_rng(seed)
    paper = np.clip(rng.normal(220, 5, (150, 150)) - np.linspace(0, 60, 150), 0, 255).astype(np.uint8)
    with pytest.raises(InvalidImage) as caught:
        prepare(paper)
    assert caught.value.code == "blank_image"
