"""Small files and small requests that would cost much are refused, and what is read takes the memory of the picture and
little more.
"""

import base64
import io
import json
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from handlers.pictures.decoding import InvalidImage, decode
from handlers.pictures.limits import MAX_SCANS, MAX_VALUES, too_costly
from handlers.protocols.bodies import MAX_PARTS
from handlers.protocols.messages import MAX_REPLY_BYTES
from handlers.protocols.service import answer_rows

# What decoding may take above what was there before: at most 4 bytes a pixel of the picture, 1 of its grey levels, a
# strip.
BYTES_A_PIXEL, STRIP_MB = 5.25, 60


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg_of_scans(count):
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    end = data.rfind(b"\xff\xd9")
    return data[:end] + data[data.rfind(b"\xff\xda") : end] * count + data[end:]


def tiff_of_counts(count, order="<", big=False):
    magic = {"<": b"II", ">": b"MM"}[order]
    if big:
        return magic + struct.pack(order + "HHHQQHHQQ", 43, 8, 0, 16, 1, 273, 4, count, 0)
    return magic + struct.pack(order + "HIHHHII", 42, 8, 1, 273, 4, count, 0)


def png_with_exif(exif):
    data = encoded(Image.new("L", (28, 28)), "PNG")
    chunk = b"eXIf" + exif
    return data[:33] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


BOMBS = {
    "scans": jpeg_of_scans(MAX_SCANS),
    "strips": tiff_of_counts(MAX_VALUES + 1),
    "strips, other order": tiff_of_counts(MAX_VALUES + 1, ">"),
    "strips of BigTIFF": tiff_of_counts(MAX_VALUES + 1, "<", big=True),
    "exif": png_with_exif(b"II*\0" + bytes(1_000_001)),
    "webp": encoded(Image.new("L", (6000, 4001)), "WEBP", lossless=True, method=0),
    "a side": encoded(Image.new("1", (70_000, 2)), "PNG"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_cost_much_are_refused(name):
    with pytest.raises(InvalidImage) as caught:
        decode(BOMBS[name])
    assert caught.value.code == "image_too_large"


def test_usual_pictures_are_no_bombs(root):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    jpeg = encoded(Image.fromarray(noise), "JPEG", progressive=True, quality=95)
    assert len(jpeg) > 100_000, "as much is coded as in a photo"
    assert too_costly(jpeg) is None
    assert too_costly(tiff_of_counts(65_535)) is None
    assert too_costly(b"II+\0" + b"\xff" * 40) is None
    for path in (root / "serving" / "samples").iterdir():
        assert too_costly(path.read_bytes()) is None


@pytest.mark.parametrize("side", [4000, pytest.param(8000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("I", "TIFF"), ("F", "TIFF"), ("RGB", "JPEG")]
)
def test_a_huge_picture_takes_the_memory_of_its_pixels_and_a_strip(root, tmp_path, mode, kind, side):
    """In a process of its own; a pod has 2 GiB for two workers and Java."""
    path = tmp_path / "huge"
    options = (
        {"compression": "tiff_adobe_deflate"}
        if kind == "TIFF"
        else {"progressive": True, "subsampling": 0}
        if kind == "JPEG"
        else {}
    )
    write = f"from PIL import Image; Image.new({mode!r}, ({side}, {side})).save({str(path)!r}, {kind!r}, **{options!r})"
    subprocess.run([sys.executable, "-c", write], check=True)
    program = f"""
import resource, sys
sys.path.insert(0, {str(root)!r})
from handlers.pictures.decoding import decode
data = open({str(path)!r}, "rb").read()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
decode(data)
print(peak() - before)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(said) < BYTES_A_PIXEL * side * side / 2**20 + STRIP_MB


def v2(recognizer, **changes):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
    body = json.dumps({"inputs": [tensor | changes.pop("tensor", {})]} | changes).encode()
    (reply,) = answer_rows(recognizer, [{"body": body}], [{"x-protocol": "v2"}])
    assert len(reply.body) < MAX_REPLY_BYTES
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "i" * 2_000_000},
        {"x" * 2_000_000: 1},
        {"tensor": {"name": "n" * 2_000_000}},
        {"tensor": {"shape": [1] * 99_999}},
    ],
)
def test_errors_do_not_repeat_a_request_at_any_length(recognizer, changes):
    status, said = v2(recognizer, **changes)
    assert status == 400
    assert len(said["error"]) < 400


def test_texts_in_the_place_of_numbers_do_not_each_get_the_room_of_the_longest(recognizer):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, _ = v2(recognizer, tensor={"data": ["a" * 2_000_000, *["a"] * 783]})
    assert status == 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_an_answer_that_would_be_too_long_is_an_error(recognizer):
    """TorchServe would kill the worker, and all requests of its batch with it."""
    picture = base64.b64encode(encoded(Image.fromarray(np.eye(9, dtype=np.uint8) * 255), "PNG")).decode()
    body = json.dumps({"instances": [{"b64": picture}] * 1024, "parameters": {"top_k": 36}}).encode()
    (reply,) = answer_rows(recognizer, [{"body": body}], [{"x-protocol": "v1"}])
    assert reply.status == 400
    assert "top_k" in json.loads(reply.body)["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 300_000,
        b'{"a":' * 99_999,
        b"[" + b'"aa",' * 3_000_000 + b"1]",
        b'{"instances":[' + b"[]," * 300_000 + b"1]}",
    ],
)
def test_json_of_very_many_objects_is_not_parsed(recognizer, body):
    (reply,) = answer_rows(recognizer, [{"body": body}], [{"x-protocol": "v1"}])
    assert reply.status == 400
    assert "more than" in json.loads(reply.body)["error"]


@pytest.mark.parametrize("count", [MAX_PARTS, MAX_PARTS + 1, 5000])
def test_multipart_of_many_parts_is_refused(recognizer, count):
    body = (
        b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % number for number in range(count))
        + b"--b--\r\n"
    )
    (reply,) = answer_rows(recognizer, [{"body": body}], [{"x-content-type": "multipart/form-data; boundary=b"}])
    assert reply.status == 400
    assert ("more than" in json.loads(reply.body)["error"]["message"]) == (count > MAX_PARTS)
