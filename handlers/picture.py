"""Picture bytes -> grey levels. Pillow decodes: it knows the formats, EXIF and alpha."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Grey: TypeAlias = npt.NDArray[np.uint8]  # (H, W)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")  # how files of these formats begin
MAX_PIXELS = 64_000_000  # a picture of more is refused before it is decoded
WORK_SIDE = 256  # pixels; larger pictures are shrunk to this long side
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
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InvalidImage("image_too_large", f"{width}x{height} pixels; at most {MAX_PIXELS // 1_000_000} million are read")
            image.draft("L", (2 * WORK_SIDE, 2 * WORK_SIDE))
            ImageOps.exif_transpose(image, in_place=True)
            return to_grey(image)
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


def to_grey(image: Image.Image) -> Grey:
    """Grey levels uint8 (H, W), transparent parts white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        white = Image.new("RGBA", rgba.size, "white")
        grey = np.asarray(Image.alpha_composite(white, rgba).convert("L"))
        # White ink on a transparent canvas vanishes on white; then the opacity is the ink.
        return grey if np.ptp(grey) >= FAINT else 255 - np.asarray(alpha)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: the picture's own range becomes 0..255
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise InvalidImage("invalid_image", "the picture has pixels that are not finite numbers")
        return np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def uint8(array: npt.NDArray[Any]) -> Grey:
    return np.asarray(array, np.uint8)
