"""Picture bytes -> grey levels. Pillow decodes: it knows the formats, EXIF and alpha."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from handlers.pictures.limits import MAX_EXIF_BYTES, too_costly

Grey: TypeAlias = npt.NDArray[np.uint8]  # (H, W)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
# How files of these formats begin.
SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"BM",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"RIFF",
)
MAX_PIXELS = 64_000_000  # a picture of more is refused before it is decoded
MAX_SIDE = 65_535  # pixels, as in JPEG and GIF; every row costs 8 bytes more than its pixels
# Its decoder holds every pixel five times over: 20 bytes a pixel, and 4 of the others.
MAX_PIXELS_OF = {"WEBP": 24_000_000}
STRIP_PIXELS = (
    1_000_000  # of a picture on its way to grey at a time: what is computed there takes up to 16 bytes a pixel
)
TURNS: dict[int, Callable[[Grey], Grey]] = {  # by EXIF's orientation
    2: lambda grey: grey[:, ::-1],
    3: lambda grey: grey[::-1, ::-1],
    4: lambda grey: grey[::-1],
    5: lambda grey: grey.T,
    6: lambda grey: grey[::-1].T,
    7: lambda grey: grey[::-1, ::-1].T,
    8: lambda grey: grey.T[::-1],
}
WORK_SIDE = 256  # pixels; larger pictures are shrunk to this long side
MAX_REASON = 200  # characters of what Pillow says of a file
FAINT = 6  # grey levels; the same for a picture of two clear tones


class InvalidImage(ValueError):
    """A picture that cannot be read as a character. `code` is one of the error codes of the REST contract."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def decode(data: bytes) -> Grey:
    """Picture bytes -> grey levels uint8 (H, W): EXIF turn applied, transparent parts white. Raises InvalidImage.

    Large JPEG files are decoded at a reduced scale. Of animations and multi-page files the first picture is taken.
    """
    if not data:
        raise InvalidImage("invalid_image", "the picture is empty (0 bytes)")
    bomb = too_costly(data)
    if bomb:
        raise InvalidImage("image_too_large", bomb)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            most = MAX_PIXELS_OF.get(str(image.format), MAX_PIXELS)
            if width * height > most:
                raise InvalidImage(
                    "image_too_large", f"{width}x{height} pixels; at most {most // 1_000_000} million are read"
                )
            if max(width, height) > MAX_SIDE:
                raise InvalidImage("image_too_large", f"{width}x{height} pixels; a side may have {MAX_SIDE}")
            image.draft("L", (2 * WORK_SIDE, 2 * WORK_SIDE))
            image.load()  # where TIFF is turned by itself, and its EXIF says so no more
            if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
                raise InvalidImage("image_too_large", f"EXIF data of more than {MAX_EXIF_BYTES // 1_000_000} MB")
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            grey = to_grey(image)
            return np.ascontiguousarray(turn(grey)) if turn else grey
    except InvalidImage:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidImage(
            "image_too_large", f"too many pixels; at most {MAX_PIXELS // 1_000_000} million are read"
        ) from error
    except UnidentifiedImageError as error:
        if data.startswith(SIGNATURES):
            raise InvalidImage("invalid_image", "the picture is damaged: its header cannot be read") from error
        raise InvalidImage(
            "unsupported_format", f"not a picture in one of these formats: {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InvalidImage("invalid_image", f"the picture is damaged: {str(error)[:MAX_REASON]}") from error


def to_grey(image: Image.Image) -> Grey:
    """Grey levels uint8 (H, W), transparent parts white. Beside the picture itself and the result, it takes little
    memory.
    """
    if image.has_transparency_data:
        grey = by_strips(image, on_white)
        # White ink on a transparent canvas vanishes on white; then the opacity is the ink.
        if int(grey.max()) - int(grey.min()) < FAINT:
            for rows, strip in strips(image):
                grey[rows] = 255 - np.asarray(strip.convert("RGBA").getchannel("A"))
        return grey
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: the picture's own range becomes 0..255
        ends = [end(numbers(strip)) for _, strip in strips(image) for end in (np.min, np.max)]
        low, high = float(min(ends)), float(max(ends))
        if not np.isfinite(ends).all():
            raise InvalidImage("invalid_image", "the picture has pixels that are not finite numbers")
        return by_strips(
            image, lambda strip: np.round((numbers(strip) - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
        )
    return by_strips(image, lambda strip: np.asarray(strip if strip.mode == "L" else strip.convert("L")))


def strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Rows of a picture, so many that they have STRIP_PIXELS, and where they stand in it."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def by_strips(image: Image.Image, grey_of: Callable[[Image.Image], Grey]) -> Grey:
    width, height = image.size
    grey = np.empty((height, width), np.uint8)
    for rows, strip in strips(image):
        grey[rows] = grey_of(strip)
    return grey


def on_white(strip: Image.Image) -> Grey:
    rgba = strip.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L"))


def numbers(strip: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(strip, dtype=np.float64)


def uint8(array: npt.NDArray[Any]) -> Grey:
    return np.asarray(array, np.uint8)
