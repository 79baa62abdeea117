import numpy as np
import pytest
import torch
from PIL import Image

from handlers.pictures.decoding import to_grey
from training.degrade import pool, severities, styles
from training.degrade.strokes import pen, skeleton
from training.evaluation import robustness
from training.reports import sheets

STYLES = {
    **styles.USERS,
    **styles.BLANK,
    **severities.CORRUPTIONS,
    "scene": styles.scene,
    "corrupt": severities.corrupt,
}


@pytest.mark.parametrize("name", STYLES)
def test_a_style_gives_a_picture_and_is_a_function_of_its_generator(name, emnist):
    glyph = emnist.images[100].numpy()
    one, again, *others = (STYLES[name](glyph, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4, 5))
    assert one.dtype == np.uint8
    assert to_grey(Image.fromarray(one)).ndim == 2
    assert np.array_equal(one, again)
    if name in severities.CORRUPTIONS:
        assert one.shape == (28, 28)
    fixed = {
        "clean",
        "inverted",
        "inverse",
        "gaussian_blur",
        "gaussian_blur_3",
        "defocus_blur",
        "zoom_blur",
        "contrast",
        "brightness",
    }
    fixed |= {"saturate", "jpeg_compression", "pixelate", "quantize", "scale", "stripe", "canny_edges"}
    assert all(np.array_equal(one, other) for other in others) == (name in fixed)


def test_a_skeleton_is_one_pixel_wide_and_inside_the_ink(emnist):
    for image in emnist.images[:60].numpy():
        ink = image > 110
        line = skeleton(ink.astype(np.uint8)) > 0
        assert not (line & ~ink).any()
        squares = line[1:, 1:] & line[:-1, 1:] & line[1:, :-1] & line[:-1, :-1]
        assert squares.sum() <= 2  # at a crossing


@pytest.mark.parametrize("width", [1, 3, 6])
def test_a_pen_draws_lines_of_its_width(width):
    bar = np.zeros((28, 28), np.uint8)
    bar[4:24, 12:16] = 255
    row = pen(bar, width)[56] > 127
    assert abs(row.sum() / 4 - width) <= 0.5


def test_boxes_have_straight_lines_on_two_to_four_sides(emnist):
    rng = np.random.default_rng(0)
    counted = set()
    for image in emnist.images[:40].numpy():
        picture = styles.with_box(image, rng)
        rows, columns = (picture > 160).mean(axis=1), (picture > 160).mean(axis=0)
        lines = [(half > 0.6).any() for half in (rows[:8], rows[-8:], columns[:8], columns[-8:])]
        counted.add(sum(lines))
    assert counted >= {2, 3, 4}


def test_degraded_copies_are_kept_and_found_again(emnist, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = emnist.take(torch.arange(60))
    made = pool.degraded(images, 2, seed=3)
    assert made.shape == (2, 60, 28, 28)
    assert (made != images.images).flatten(2).any(dim=2).float().mean() > 0.8
    alone, other = (torch.from_numpy(pool._degrade_chunk(images.images.numpy(), [seed, 1, 0], 28)) for seed in (3, 4))
    assert torch.equal(made[1], alone), "the same copies whatever process makes them"
    assert (alone != other).flatten(1).any(dim=1).float().mean() > 0.8, "other copies by another seed"
    (file,) = (tmp_path / "emnist").iterdir()
    before = file.stat().st_mtime_ns
    assert (pool.degraded(images, 2, seed=3) == made).all()
    assert file.stat().st_mtime_ns == before
    larger = pool.degraded(images.resized(40), 2, seed=4)
    assert larger.shape == (2, 60, 40, 40)
    assert (larger.flatten(2).amax(dim=2) > 200).all()


def test_every_style_is_measured_and_shown(recognizer, emnist, tmp_path):
    rows = robustness.measure_pictures(recognizer, emnist, count=3)
    assert [row["style"] for row in rows] == [*styles.USERS, *severities.CORRUPTIONS, *styles.BLANK]
    assert all(row["n"] == 3 and 0 <= row["accuracy"] <= 1 and row["ms"] > 0 for row in rows)
    assert "| **mean of users** |" in robustness.markdown(rows)
    sheets.contact_sheet(recognizer, emnist, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * sheets.COLUMNS * (sheets.CELL + 2)
    sheets.error_sheet(recognizer, emnist, tmp_path / "errors.png")
    with Image.open(tmp_path / "errors.png") as sheet:
        assert sheet.width == sheets.COLUMNS * sheets.CELL


def test_a_refused_picture_counts_as_wrong(recognizer, emnist, monkeypatch):
    monkeypatch.setattr(robustness, "GROUPS", {"users": {"blank": lambda glyph, _: np.zeros_like(glyph)}})
    (row,) = robustness.measure_pictures(recognizer, emnist, count=5)
    assert (row["accuracy"], row["refused"], row["ece"]) == (0, 1, 0)


def test_the_committed_model_reads_every_style(recognizer, emnist):
    """A floor far below what its card says, for 16 images a style."""
    rows = robustness.measure_pictures(recognizer, emnist, count=16)
    assert robustness.mean_of(rows, "users", "accuracy") >= 0.8
    assert robustness.mean_of(rows, "corruptions", "accuracy") >= 0.74
    assert min(row["accuracy"] for row in rows if row["group"] == "users") >= 0.6
