import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from handlers.pictures.decoding import WORK_SIDE, InvalidImage, decode
from handlers.pictures.framing import resize
from handlers.pictures.pipeline import prepare, read_image
from handlers.pictures.polarity import light_ink
from handlers.pictures.shapes import frame_of


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def boxed(image: np.ndarray, width: int, gap: int) -> np.ndarray:
    """A light-on-dark picture with a box drawn around it."""
    framed = np.pad(image, gap + width)
    for axis in (0, 1):
        view = framed if axis == 0 else framed.T
        view[:width] = view[-width:] = 255
    return framed


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the pixels. Two pictures of one character have above 0.9, of different ones hardly ever above
    0.6.
    """
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


@pytest.fixture(scope="module")
def letter(emnist):
    return emnist.images[int((emnist.labels == emnist.classes.index("R")).nonzero()[0])].numpy()


@pytest.fixture(scope="module")
def paper_picture(letter):
    """Dark on light, 84 pixels: what most files hold."""
    return Image.fromarray(255 - enlarged(letter, 84))


def test_emnist_images_pass_unchanged(emnist):
    for image in emnist.images.numpy():
        assert np.array_equal(read_image(encoded(Image.fromarray(image))), image)


def test_inverted_emnist_images_become_the_originals(emnist):
    for image in emnist.images.numpy():
        assert np.array_equal(read_image(encoded(Image.fromarray(255 - image))), image)


def test_a_framed_28_pixel_picture_is_not_let_through(letter):
    for offset in (0, 1, 2):
        picture = letter.copy()
        for axis in (0, 1):
            view = picture if axis == 0 else picture.T
            view[offset] = view[27 - offset] = 255
        prepared = prepare(picture)
        assert not np.array_equal(prepared, picture)
        assert prepared[0].max() == prepared[-1].max() == 0


@pytest.mark.parametrize("side", [28, 56, 112, 400])
def test_the_answer_hardly_depends_on_the_size(letter, side):
    assert likeness(prepare(255 - enlarged(letter, side)), letter) > 0.93


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        *[(mode, "TIFF") for mode in ("1", "L", "RGB", "CMYK", "I;16", "F")],
        *[(mode, "JPEG") for mode in ("L", "RGB", "CMYK")],
        ("L", "BMP"),
        ("RGB", "BMP"),
        ("P", "GIF"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
    ],
)
def test_every_mode_of_every_format_reads_the_same(paper_picture, mode, kind):
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(paper_picture).astype(np.uint16) * 200)
    elif mode == "F":
        picture = Image.fromarray(np.asarray(paper_picture).astype(np.float32) / 255)
    else:
        picture = paper_picture.convert(mode)
    data = encoded(picture, kind)
    with Image.open(io.BytesIO(data)) as reopened:
        assert reopened.format == kind
    assert likeness(read_image(data), prepare(np.asarray(paper_picture))) > 0.93


def test_the_exif_turn_is_applied(paper_picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    turned = encoded(paper_picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    assert likeness(read_image(turned), prepare(np.asarray(paper_picture))) > 0.93


@pytest.mark.parametrize("ink", [0, 90, 255])
def test_transparent_pictures_show_their_ink(letter, ink):
    canvas = np.full((112, 112, 4), ink, np.uint8)
    canvas[..., 3] = enlarged(letter, 112)
    assert likeness(read_image(encoded(Image.fromarray(canvas))), letter) > 0.93


def test_polarity_is_found_by_shape(emnist):
    for image in emnist.images.numpy()[:100]:
        assert np.array_equal(light_ink(image), image)
        assert np.array_equal(light_ink(255 - image), image)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("dark", [True, False])
def test_a_box_around_the_character_is_removed(letter, width, gap, dark):
    framed = boxed(letter, width, gap)
    assert likeness(prepare(255 - framed if dark else framed), letter) > 0.93


def test_a_character_has_no_frame(emnist):
    for image in emnist.images.numpy():
        assert not frame_of(image > 127).any()


def test_uneven_light_is_levelled(letter):
    light = np.linspace(230, 90, 150)[None, :]
    picture = (light * (1 - 0.7 * enlarged(letter, 150) / 255)).astype(np.uint8)
    assert likeness(prepare(picture), letter) > 0.93


def test_specks_and_neighbours_are_dropped(letter):
    picture = np.full((140, 140), 245, np.uint8)
    picture[20:120, 20:120] = 255 - enlarged(letter, 100)
    clean = prepare(picture)
    picture[5:8, 60:63] = picture[130:133, 30:32] = 0  # specks
    picture[50:90, 0:4] = 20  # the end of a neighbour's stroke
    assert likeness(prepare(picture), clean) > 0.93


def test_the_dot_of_an_i_stays():
    picture = Image.new("L", (120, 160), 255)
    draw = ImageDraw.Draw(picture)
    draw.line((60, 60, 60, 140), fill=0, width=10)
    draw.ellipse((54, 25, 66, 37), fill=0)
    rows = np.flatnonzero(prepare(np.asarray(picture)).max(axis=1))
    assert (np.diff(rows) > 1).any(), "there is a gap between dot and stroke"


def test_another_input_size(letter):
    assert read_image(encoded(Image.fromarray(255 - enlarged(letter, 200))), size=96).shape == (96, 96)


def test_resize_leaves_the_right_size_alone(letter):
    assert resize(letter, 28) is letter


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header of any size, with no pixels behind it."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


BAD = {
    "empty": (b"", "invalid_image"),
    "text": (b"hello, this is no picture", "unsupported_format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    "ppm": (b"P5 2 2 255 abcd", "unsupported_format"),
    "500 megapixels": (png_that_claims(25_000, 20_000), "image_too_large"),
    "100 megapixels": (png_that_claims(10_000, 10_000), "image_too_large"),
    "no pixels": (png_that_claims(28, 28), "invalid_image"),
    "a signature alone": (b"\xff\xd8\xff\xe0", "invalid_image"),
    "white": (encoded(Image.new("L", (50, 50), 255)), "blank_image"),
    "black": (encoded(Image.new("L", (50, 50), 0)), "blank_image"),
    "transparent": (encoded(Image.new("RGBA", (50, 50), (0, 0, 0, 0))), "blank_image"),
    "one pixel": (encoded(Image.new("L", (1, 1), 0)), "blank_image"),
    "faint": (encoded(Image.linear_gradient("L").point(lambda v: 240 + v // 25)), "blank_image"),
    "an empty box": (encoded(Image.fromarray(255 - boxed(np.zeros((60, 60), np.uint8), 3, 0))), "blank_image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_have_a_code_and_a_message(name):
    data, code = BAD[name]
    with pytest.raises(InvalidImage) as caught:
        read_image(data)
    assert caught.value.code == code
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_damaged(paper_picture, kind):
    data = encoded(paper_picture.convert("RGB"), kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(InvalidImage) as caught:
            read_image(data[: int(share * len(data))])
        assert caught.value.code in {"invalid_image", "unsupported_format"}


def test_flipped_bytes_never_raise_anything_else(paper_picture):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        original = np.frombuffer(encoded(paper_picture.convert("RGB"), kind), np.uint8)
        for _ in range(60):
            data = original.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            with contextlib.suppress(InvalidImage):
                assert read_image(data.tobytes()).shape == (28, 28)


def test_small_pictures_end_in_a_picture_or_a_code():
    rng = np.random.default_rng(2)
    for number in range(3000):
        shape = rng.integers(1, 14, 2)
        picture = rng.integers(0, 256, shape) if number % 2 else (rng.random(shape) < 0.3) * 255
        with contextlib.suppress(InvalidImage):
            assert prepare(picture.astype(np.uint8)).shape == (28, 28)


@pytest.mark.parametrize("shape", [(2, 300), (300, 2), (1, 50), (5, 5), (28, 27), (4000, 3), (640, 480)])
def test_odd_shapes_end_in_a_picture_or_a_code(shape):
    rng = np.random.default_rng(1)
    for picture in (rng.integers(0, 256, shape), np.indices(shape).sum(axis=0) % 256, np.eye(*shape) * 255):
        with contextlib.suppress(InvalidImage):
            assert prepare(picture.astype(np.uint8)).shape == (28, 28)


def test_large_jpegs_are_decoded_at_a_reduced_scale(letter):
    photo = Image.fromarray(255 - enlarged(letter, 2400)).convert("RGB")
    assert max(decode(encoded(photo, "JPEG")).shape) <= 4 * WORK_SIDE
    assert likeness(read_image(encoded(photo, "JPEG")), letter) > 0.93
