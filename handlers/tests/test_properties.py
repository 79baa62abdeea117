"""What holds for all inputs: parsers answer 4xx or 200 whatever they are given, and a picture is read or has a code."""

import base64
import contextlib
import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from handlers.pictures.decoding import InvalidImage, decode, strips, to_grey
from handlers.pictures.pipeline import prepare, read_image
from handlers.protocols.bodies import fields_of
from handlers.protocols.messages import MAX_REPLY_BYTES, RequestError
from handlers.protocols.service import answer_rows

settings.register_profile("stable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("stable")

ANSWERS = {200, 400, 413, 415, 422}
CODES = {"invalid_image", "unsupported_format", "image_too_large", "blank_image"}  # of a picture that cannot be read
SMALL = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))
KEYS = st.sampled_from(
    [
        "instances",
        "b64",
        "parameters",
        "alphabet",
        "top_k",
        "inputs",
        "name",
        "datatype",
        "shape",
        "data",
        "outputs",
        "id",
        "binary_data_size",
        "image",
        "picture",
        "UINT8",
        "BYTES",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12) | KEYS,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), part, max_size=5),
    max_leaves=25,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "picture"]) | JSON,
        "datatype": st.sampled_from(["UINT8", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-2, 3) | st.just(28) | st.just(2**64), max_size=4) | JSON,
        "data": st.lists(st.integers(-1, 256), max_size=5) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 900) | JSON}) | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSOR, max_size=2) | JSON,
        "instances": st.lists(st.fixed_dictionaries({"b64": st.text(max_size=8) | JSON}) | JSON, max_size=3) | JSON,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["character", "error", "image"]) | JSON}) | JSON, max_size=3
        ),
        "parameters": JSON,
        "id": JSON,
    },
)
FORM = st.sampled_from(["plain", "v1", "v2", "v2-metadata", "other"])


def ask(recognizer, row, headers):
    (reply,) = answer_rows(recognizer, [row], [headers])
    assert reply.status in ANSWERS, reply.body
    assert len(reply.body) <= MAX_REPLY_BYTES
    length = int(reply.headers.get("Inference-Header-Content-Length", len(reply.body)))
    return reply, json.loads(reply.body[:length])


@given(st.binary(max_size=300), FORM, st.none() | st.text(max_size=6) | st.integers(-3, 310).map(str))
def test_any_body_has_an_answer_in_any_form(recognizer, body, form, length):
    headers = {"x-protocol": form} | ({} if length is None else {"inference-header-content-length": length})
    ask(recognizer, {"body": body}, headers)


@given(REQUEST | JSON, st.sampled_from(["v1", "v2"]), st.binary(max_size=40), st.booleans())
def test_any_json_has_an_answer(recognizer, request_, form, rest, binary):
    head = json.dumps(request_).encode()
    headers = {"x-protocol": form} | ({"inference-header-content-length": str(len(head))} if binary else {})
    ask(recognizer, {"body": head + rest if binary else head}, headers)


@given(
    st.dictionaries(
        st.sampled_from(["data", "body", "alphabet", "top_k"]) | st.text(max_size=5),
        st.binary(max_size=20) | st.text(max_size=8) | JSON,
    ),
    FORM,
)
def test_any_row_has_an_answer(recognizer, row, form):
    ask(recognizer, row, {"x-protocol": form})


@given(
    st.dictionaries(st.sampled_from(["data", "body", "alphabet", "ä b"]), st.binary(max_size=200), min_size=1),
    st.sampled_from(["b", "-" * 70, "a'()+_,./:=?"]),
)
def test_multipart_fields_come_back(fields, boundary):
    if any(b"\r\n--" + boundary.encode() in b"\r\n" + content for content in fields.values()):
        return  # a boundary may not be in what it bounds
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in fields.items()
    ]
    assert (
        fields_of(b"".join(parts) + f"--{boundary}--\r\n".encode(), f'multipart/form-data; boundary="{boundary}"')
        == fields
    )


@given(
    st.lists(
        st.sampled_from([b"--b", b"\r\n", b"--", b"Content-Disposition: form-data", b'; name="data"', b":", b"\xff"])
        | st.binary(max_size=9),
        max_size=40,
    ),
    st.text(max_size=30),
)
def test_any_multipart_is_read_or_refused(pieces, parameter):
    for kind in ("multipart/form-data; boundary=b", f"multipart/form-data; {parameter}"):
        with contextlib.suppress(RequestError):
            fields = fields_of(b"".join(pieces), kind)
            assert all(isinstance(name, str) and isinstance(content, bytes) for name, content in fields.items())


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.booleans())
def test_v2_hands_on_pictures_as_they_were_sent(recognizer, pictures, binary):
    """What comes of each, by an encoder of our own, is what comes of it in the plain form."""
    tensor = {"name": "picture", "datatype": "BYTES", "shape": [len(pictures)]}
    rest = b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures) if binary else b""
    tensor |= (
        {"parameters": {"binary_data_size": len(rest)}}
        if binary
        else {"data": [base64.b64encode(picture).decode() for picture in pictures]}
    )
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "error"}]}).encode()
    headers = {"x-protocol": "v2"} | ({"inference-header-content-length": str(len(head))} if binary else {})
    _, said = ask(recognizer, {"body": head + rest}, headers)
    plain = [ask(recognizer, {"body": picture}, {})[1]["error"] for picture in pictures]
    assert [json.loads(text) for text in said["outputs"][0]["data"]] == plain


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(28), st.just(28))),
    st.sampled_from(["nested", "flat", "binary"]),
)
def test_v2_images_are_what_the_network_sees(recognizer, images, form):
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
    tensor |= (
        {"parameters": {"binary_data_size": images.size}}
        if form == "binary"
        else {"data": (images if form == "nested" else images.ravel()).tolist()}
    )
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "image"}]}).encode()
    headers = {"x-protocol": "v2"} | ({"inference-header-content-length": str(len(head))} if form == "binary" else {})
    _, said = ask(recognizer, {"body": head + (images.tobytes() if form == "binary" else b"")}, headers)
    assert np.array_equal(np.array(said["outputs"][0]["data"]).reshape(images.shape), images)


def read(data):
    try:
        image = read_image(data)
    except InvalidImage as error:
        code, message = error.code, str(error)
    else:
        code, message = "", ""
    if code:
        assert code in CODES
        assert message
        return code
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    return image


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def same(one, other):
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@given(
    st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"II*\0", b"II+\0\x08\0\0\0", b"RIFF"]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_are_a_picture_or_have_a_code(start, rest):
    read(start + rest)


@given(SMALL)
def test_any_grey_picture_is_read_or_has_a_code(grey):
    read(png(grey))


@given(SMALL)
def test_files_without_loss_read_as_the_array_does(grey):
    """And so do grey levels said in colours, and with an opaque canvas."""
    try:
        direct = prepare(grey)
    except InvalidImage as error:
        direct = error.code
    assert same(read(png(grey)), direct)
    assert same(read(png(np.stack([grey] * 3, axis=2))), direct)
    assert same(read(png(np.dstack([grey, grey, grey, np.full_like(grey, 255)]))), direct)


def whole(image):
    """Grey levels by one computation over the whole picture, as it was before it went by strips."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        grey = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L"))
        return grey if np.ptp(grey) >= 6 else 255 - np.asarray(rgba.getchannel("A"))
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        return np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.asarray(image.convert("L"))


def random_picture(mode, size, rng):
    if mode == "F":
        return Image.fromarray((rng.standard_normal(size[::-1]) * 10.0 ** rng.integers(-30, 30)).astype(np.float32))
    if mode in {"I", "I;16", "I;16B"}:
        kind = {"I": np.int32, "I;16": np.uint16, "I;16B": ">u2"}[mode]
        return Image.fromarray(
            rng.integers(-(2**31) if mode == "I" else 0, 2**31 if mode == "I" else 2**16, size[::-1]).astype(kind)
        )
    image = Image.frombytes(mode, size, rng.bytes(len(Image.new(mode, size).tobytes())))
    if mode == "P":
        image.putpalette(rng.bytes(768))
        image.info["transparency"] = rng.bytes(256) if rng.random() < 0.5 else int(rng.integers(256))
    if mode == "RGB" and rng.random() < 0.5:
        image.info["transparency"] = image.getpixel((0, 0))
    return image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "I;16B", "F"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (640, 480), (1500, 1400), (3, 500_000), (2_100_000, 2)])
def test_a_picture_in_strips_is_grey_as_the_whole_is(mode, size):
    rng = np.random.default_rng(len(mode) + size[0])
    image = random_picture(mode, size, rng)
    assert np.array_equal(to_grey(image), whole(image))
    assert (len(list(strips(image))) > 1) == (size[0] * size[1] > 2_000_000 or size == (3, 500_000))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "TIFF", "WEBP", "JPEG"):
        stream, exif = io.BytesIO(), Image.Exif()
        exif[274] = orientation
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(rng.integers(0, 256, (37, 53), dtype=np.uint8)).save(stream, kind, exif=exif, **options)
        with Image.open(stream) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("L"))
        assert np.array_equal(decode(stream.getvalue()), expected), kind
