"""Pictures that are made to do harm, from a seed: bombs of every format, damaged samples, files of two kinds at
once.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path

from PIL import Image

SAMPLES = sorted((Path(__file__).resolve().parents[1] / "samples").iterdir())
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def zeros(count: int) -> bytes:
    """So many zeros, deflated."""
    deflate, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [deflate.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, deflate.compress(bytes(count & 0xFFFFF)), deflate.flush()])


def png(
    width: int,
    height: int,
    depth: int = 8,
    colour: int = 0,
    interlaced: int = 0,
    extra: bytes = b"",
    data: bytes | None = None,
) -> bytes:
    """A black PNG; `extra` chunks come before its pixels, `data` stands for them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(256)) if colour == 3 else b""
    if data is None:
        data = zeros(height * (1 + (width * depth * CHANNELS[colour] + 7) // 8) + 16 * (width + height) * interlaced)
    return SIGNATURE + header + extra + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def encoded(kind: str, mode: str, width: int, height: int, options: tuple[tuple[str, object], ...] = ()) -> bytes:
    stream = io.BytesIO()
    image = Image.new(mode, (width, height))
    image.paste(image.getpixel((0, 0)) if mode in "IF1P" else tuple([200] * len(mode)), (0, 0, width // 2, height // 2))
    image.save(stream, kind, **dict(options))
    return stream.getvalue()


def tiff(
    width: int, height: int, fields: list[tuple[int, int, int, int]], tail: bytes = b"", order: str = "<"
) -> bytes:
    """A TIFF of one directory: width, height, and fields (tag, type, count, value)."""
    entries = sorted([(256, 4, 1, width), (257, 4, 1, height), *fields])
    directory = (
        struct.pack(order + "H", len(entries))
        + b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
        + bytes(4)
    )
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + directory + tail


@cache
def tiff_of_strips(rows: int) -> bytes:
    fields = [
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (278, 4, 1, 1),
        (273, 4, rows, 110),
        (279, 4, rows, 110 + 4 * rows),
    ]
    return tiff(32, rows, fields, struct.pack("<I", 8) * rows + struct.pack("<I", 32) * rows)


@cache
def exif_of_objects(count: int) -> bytes:
    """EXIF whose orientation is a list of fractions."""
    return b"II*\0" + struct.pack("<IHHHIIl", 8, 1, 274, 5, count, 26, 0) + struct.pack("<II", 6, 1) * count


@cache
def jpeg_of_scans(scans: int, side: int) -> bytes:
    data = encoded("JPEG", "L", side, side, (("progressive", True),))
    end = data.rfind(b"\xff\xd9")
    return data[:end] + data[data.rfind(b"\xff\xda") : end] * scans + data[end:]


@cache
def bmp_of_runs(side: int) -> bytes:
    """RLE8 with a run of one pixel each, which Pillow reads in Python."""
    pixels = (b"\x01\x05\x01\xff" * (side // 2) + b"\0\0") * side
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 1078 + len(pixels), 0, 0, 1078)
        + header
        + b"".join(bytes([i, i, i, 0]) for i in range(256))
        + pixels
    )


@cache
def rgba(side: int) -> bytes:
    return encoded("WEBP", "RGBA", side, side, (("lossless", True), ("method", 0)))


DEFLATED, LZW = (("compression", "tiff_adobe_deflate"),), (("compression", "tiff_lzw"),)
CHEAP_BOMBS = [  # refused before they are decoded, or soon
    lambda: png(8001, 8000, data=b""),
    lambda: png(25_000, 25_000, data=b""),
    lambda: png(2**31 - 1, 2**31 - 1, data=b""),
    lambda: png(1, 64_000_001, data=b""),
    lambda: png(0, 0, data=b""),
    lambda: png(1, 64_000_000),
    lambda: png(64_000_000, 1, 8, 6),
    lambda: png(28, 28, extra=chunk(b"IDAT", b"") * 100_000),
    lambda: png(28, 28, data=zeros(1 << 26)),
    lambda: png(28, 28, extra=chunk(b"zTXt", b"a\0\0" + zeros(1 << 26))),
    lambda: png(28, 28, extra=chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(1 << 20)) * 100),
    lambda: png(28, 28, extra=chunk(b"tEXt", b"a\0" + bytes(900_000)) * 15),
    lambda: png(28, 28, extra=chunk(b"iCCP", b"a\0\0" + zeros(1 << 26))),
    lambda: png(28, 28, extra=chunk(b"eXIf", exif_of_objects(1_500_000))),
    lambda: png(28, 28, extra=chunk(b"eXIf", exif_of_objects(50_000))),
    lambda: png(28, 28, extra=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    lambda: png(28, 28, extra=chunk(b"ABCD", b"")),
    lambda: (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0)
        + bytes(768)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x08\0"
    ),
    lambda: b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"!\xfe\xff" * 200_000,
    lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 32, 0, 0, 0, 0, 0, 0),
    lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 8000, -8000, 1, 24, 0, 0, 0, 0, 2**31 - 1, 0),
    lambda: b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\xff\xff\xff\x0f" + bytes(16),
    lambda: rgba(5000),
    lambda: tiff_of_strips(2_000_000),
    lambda: tiff_of_strips(150_000),
    lambda: tiff(2**31, 2**31, [(273, 4, 2**31, 8), (279, 4, 2**31, 8)]),
    lambda: tiff(28, 28, [(330, 4, 1, 8), (34665, 4, 1, 8), (34853, 4, 1, 8)]),
    lambda: tiff(28, 28, [(258, 3, 60_000, 8), (34665, 5, 99_999, 8)], bytes(800_000), ">"),
    lambda: jpeg_of_scans(100_000, 64),
    lambda: jpeg_of_scans(100, 4000),
]
HEAVY_BOMBS = [  # just within the limits, so that they are decoded: a second or two of a core each
    lambda: png(8000, 8000),
    lambda: png(8000, 8000, 1, 0),
    lambda: png(8000, 8000, 16, 0),
    lambda: png(8000, 8000, 8, 3),
    lambda: png(8000, 8000, 8, 4),
    lambda: png(8000, 8000, 8, 6),
    lambda: png(8000, 8000, 16, 6),
    lambda: png(8000, 8000, 8, 2, 1),
    lambda: png(976, 65_535, 8, 4),
    lambda: png(65_535, 976, 8, 6),
    lambda: encoded("GIF", "P", 8000, 8000),
    lambda: encoded("TIFF", "F", 8000, 8000, DEFLATED),
    lambda: encoded("TIFF", "I", 8000, 8000, DEFLATED),
    lambda: encoded("TIFF", "RGBA", 8000, 8000, LZW),
    lambda: encoded("TIFF", "CMYK", 8000, 8000, DEFLATED),
    lambda: encoded("TIFF", "1", 8000, 8000, (("compression", "group4"),)),
    lambda: rgba(4890),
    lambda: encoded("JPEG", "RGB", 8000, 8000, (("progressive", True), ("subsampling", 0))),
    lambda: jpeg_of_scans(50, 8000),
    lambda: bmp_of_runs(2800),
    lambda: tiff_of_strips(65_535),
]


def cheap_bomb(rng: random.Random) -> bytes:
    return rng.choice(CHEAP_BOMBS)()


def heavy_bomb(rng: random.Random) -> bytes:
    return rng.choice(HEAVY_BOMBS)()


@cache
def sample_as(number: int, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.open(SAMPLES[number]).convert("RGB").save(stream, kind)
    return stream.getvalue()


def damaged(rng: random.Random) -> bytes:
    """A sample in any format: cut off, with flipped bits, or with a part that is another's."""
    data = bytearray(sample_as(rng.randrange(len(SAMPLES)), rng.choice(FORMATS)))
    if rng.random() < 0.4:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.choice([0, 1, 8, 64]) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2 and data:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randrange(1, 2000))
    if rng.random() < 0.2:
        head = rng.randrange(min(64, len(data)) + 1)  # where sizes and offsets stand
        data[head : head + 4] = struct.pack(
            rng.choice("<>") + "I", rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
        )
    return bytes(data)


def polyglot(rng: random.Random) -> bytes:
    """A picture that is also something else."""
    picture = sample_as(rng.randrange(len(SAMPLES)), rng.choice(FORMATS))
    other = rng.choice(
        [
            b"%PDF-1.7\n",
            b"PK\x03\x04",
            b"<script>alert(1)</script>",
            b"#!/bin/sh\nid\n",
            b"\x80\x05cos\nsystem\n.",
            b"MZ\x90\0",
            picture,
        ]
    )
    return picture + other if rng.random() < 0.6 else other + picture


def junk(rng: random.Random) -> bytes:
    start = rng.choice(
        [
            b"",
            SIGNATURE,
            b"\xff\xd8\xff\xe0",
            b"BM",
            b"GIF89a",
            b"II*\0",
            b"MM\0*",
            b"II+\0",
            b"RIFF",
            b"<svg>",
            b"\0\0\0\x0cjP  ",
        ]
    )
    return start + rng.randbytes(rng.randrange(3000))
