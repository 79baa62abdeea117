"""Files that are small and cost much: what decoders do not bound is looked at before they run.

Each limit is far above what pictures have. What one of them lets through takes at most about 3 s of a core.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# of a progressive JPEG, which have 10 as a rule; each goes over the whole picture, and a file has room for 100,000
MAX_SCANS = 64
MAX_VALUES = 100_000  # of a field of TIFF, of which the offsets of its strips are the longest; each becomes an object
MAX_EXIF_BYTES = 1_000_000  # that of JPEG has 64 kB; all values of a field become objects
MAX_DIRECTORIES = 16  # of one TIFF: its first, and those of EXIF and GPS
DIRECTORIES = {34665, 34853, 40965}  # fields that point to another directory: EXIF, GPS, interoperability
SCAN = b"\xff\xda"
CLASSIC = {b"II*\0": "<", b"MM\0*": ">"}
BIG = {b"II+\0": "<", b"MM\0+": ">"}  # BigTIFF, with numbers of 8 bytes


def too_costly(data: bytes) -> str | None:
    """Why a JPEG or TIFF is not decoded, if it is not."""
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > MAX_SCANS:
        return f"a JPEG of more than {MAX_SCANS} scans"
    if any(count > MAX_VALUES for count in counts(data)):
        return f"a TIFF with more than {MAX_VALUES} values in a field, as of a picture in as many strips"
    return None


def counts(data: bytes) -> Iterator[int]:
    """How many values each field of a TIFF's first directory has, and those of the directories below it."""
    big = data[:4] in BIG
    order = (BIG if big else CLASSIC).get(data[:4])
    if order is None:
        return
    number, field = (
        (order + "Q", struct.Struct(order + "HHQQ")) if big else (order + "I", struct.Struct(order + "HHII"))
    )
    head = struct.Struct(order + ("Q" if big else "H"))
    try:
        todo = list(struct.unpack_from(number, data, 8 if big else 4))
        for _ in range(MAX_DIRECTORIES):
            if not todo:
                return
            start = todo.pop()
            (fields,) = head.unpack_from(data, start)
            for index in range(fields):
                tag, _, count, value = field.unpack_from(data, start + head.size + index * field.size)
                yield count
                if tag in DIRECTORIES:
                    todo.append(value)
    except (struct.error, OverflowError):  # beyond the end: Pillow will say that it is damaged, or read what there is
        return
