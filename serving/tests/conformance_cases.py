"""The requests of test_conformance.py, by name. `{version}` in a path stands for the version that a server has of its
model.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zlib
from dataclasses import dataclass, field

from PIL import Image

MODEL = "/v2/models/emnist"
INFER = f"{MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"
BRIEF = [{"name": "character"}, {"name": "ascii"}]  # outputs that a stand-in for the model can answer as the model does


@dataclass(frozen=True)
class Case:
    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def infer(body, binary=None, path=INFER, method="POST", **headers):
    """What is not bytes is sent as JSON; `binary` follows it."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    usual = (
        {"Content-Type": "application/json"}
        if binary is None
        else {"Content-Type": "application/octet-stream", LENGTH: str(len(encoded))}
    )
    return Case(
        method,
        path,
        encoded + (binary or b""),
        usual | {name.replace("_", "-"): value for name, value in headers.items()},
    )


def bytes_tensor(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def cases(letter):
    """Of one prepared picture, uint8 (28, 28)."""
    flat, raw, file = letter.ravel().tolist(), letter.tobytes(), png(letter)
    image = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8"}
    picture = {"name": "picture", "shape": [1], "datatype": "BYTES"}
    text = picture | {"data": [base64.b64encode(file).decode()]}
    given = image | {"data": flat}
    asked = {"inputs": [given], "outputs": BRIEF}

    def sized(tensor, size):
        return tensor | {"parameters": {"binary_data_size": size}}

    def binary(name, **more):
        return {"name": name, "parameters": {"binary_data": True} | more}

    two = image | {"shape": [2, 28, 28]}
    in_binary = {"inputs": [sized(image, 784)], "outputs": BRIEF}
    good = json.dumps(asked).encode()
    return {
        # What is known of the server and the model.
        "live": Case("GET", "/v2/health/live"),
        "ready": Case("GET", "/v2/health/ready"),
        "server": Case("GET", "/v2"),
        "server, slash": Case("GET", "/v2/"),
        "metadata": Case("GET", MODEL),
        "metadata of the version": Case("GET", MODEL + "/versions/{version}"),
        "metadata of another version": Case("GET", MODEL + "/versions/7"),
        "metadata of a version that is no number": Case("GET", MODEL + "/versions/x"),
        "metadata of another model": Case("GET", "/v2/models/other"),
        "metadata, slash": Case("GET", MODEL + "/"),
        "model ready": Case("GET", MODEL + "/ready"),
        "model ready, version": Case("GET", MODEL + "/versions/{version}/ready"),
        "model ready, another version": Case("GET", MODEL + "/versions/7/ready"),
        "model ready, another model": Case("GET", "/v2/models/other/ready"),
        "no such path": Case("GET", "/v2/nothing"),
        "live, HEAD": Case("HEAD", "/v2/health/live"),
        "ready, HEAD": Case("HEAD", "/v2/health/ready"),
        "metadata, HEAD": Case("HEAD", MODEL),
        "live, slash": Case("GET", "/v2/health/live/"),
        "live, POST": Case("POST", "/v2/health/live", b""),
        "server, POST": Case("POST", "/v2", b""),
        "metadata, POST": Case("POST", MODEL, b""),
        "infer, GET": Case("GET", INFER),
        "infer, PUT": infer(asked, method="PUT"),
        # What is answered.
        "image": infer(asked),
        "image, nested": infer({"inputs": [image | {"data": [letter.tolist()]}], "outputs": BRIEF}),
        "image, all outputs": infer({"inputs": [given]}),
        "image back": infer({"inputs": [given], "outputs": [{"name": "image"}]}),
        "picture": infer({"inputs": [text], "outputs": BRIEF}),
        "version": infer(asked, path=MODEL + "/versions/{version}/infer"),
        "binary in": infer(in_binary, raw),
        "binary out": infer({"inputs": [given], "outputs": [binary("character"), binary("ascii"), binary("image")]}),
        "binary in and out": infer(
            {"inputs": [sized(image, 784)], "outputs": [binary("character"), binary("image")]}, raw
        ),
        "binary picture": infer({"inputs": [sized(picture, len(file) + 4)], "outputs": BRIEF}, bytes_tensor(file)),
        "two in binary": infer(
            {"inputs": [sized(two, 2 * 784)], "outputs": [{"name": "ascii"}, binary("image")]}, raw * 2
        ),
        "two pictures in binary": infer(
            {
                "inputs": [sized(picture | {"shape": [2]}, 2 * len(file) + 8)],
                "outputs": [binary("character"), {"name": "ascii"}],
            },
            bytes_tensor(file, file),
        ),
        "binary and JSON outputs": infer(
            {"inputs": [given], "outputs": [binary("character"), {"name": "ascii"}, binary("image")]}
        ),
        "binary_data_output": infer(asked | {"parameters": {"binary_data_output": True}}),
        "binary_data_output of all": infer({"inputs": [given], "parameters": {"binary_data_output": True}}),
        "binary_data_output, overridden": infer(
            {
                "inputs": [given],
                "outputs": [{"name": "character", "parameters": {"binary_data": False}}, {"name": "ascii"}],
                "parameters": {"binary_data_output": True},
            }
        ),
        "binary_data_output false": infer(asked | {"parameters": {"binary_data_output": False}}),
        "id": infer(asked | {"id": "seven"}),
        "id, binary out": infer({"id": "seven", "inputs": [given], "outputs": [binary("image")]}),
        "id that is not ASCII": infer({"id": "\u65e5\u672c", "inputs": [given], "outputs": [binary("image")]}),
        "empty id": infer(asked | {"id": ""}),
        "order of outputs": infer({"inputs": [given], "outputs": [{"name": "image"}, {"name": "ascii"}]}),
        "order of binary outputs": infer({"inputs": [given], "outputs": [binary("image"), binary("ascii")]}),
        "no outputs named": infer({"inputs": [given], "outputs": []}),
        "null for what is optional": infer(
            {"id": None, "parameters": None, "inputs": [given | {"parameters": None}], "outputs": None}
        ),
        "empty parameters": infer(
            {"inputs": [given | {"parameters": {}}], "outputs": [{"name": "ascii", "parameters": {}}], "parameters": {}}
        ),
        "names of the request in its body": infer(asked | {"model_name": "emnist", "model_version": "1"}),
        "length of JSON alone": infer(asked, b""),
        "content type text": infer(asked, Content_Type="text/plain"),
        "no content type": Case("POST", INFER, good),
        "parameters of ours": infer(asked | {"parameters": {"alphabet": "classes", "top_k": 1}}),
        "priority and timeout": infer(asked | {"parameters": {"priority": 1, "timeout": 10_000_000}}),
        "sequence": infer(asked | {"parameters": {"sequence_id": 5, "sequence_start": True, "sequence_end": True}}),
        "gzip": infer(gzip.compress(good), Content_Encoding="gzip"),
        "deflate": infer(zlib.compress(good), Content_Encoding="deflate"),
        "gzip asked for": infer(asked, Accept_Encoding="gzip"),
        "query": infer(asked, path=INFER + "?x=1"),
        "chunked": infer(asked, Transfer_Encoding="chunked"),
        "expect 100": infer(asked, Expect="100-continue"),
        # What is wrong.
        "another version": infer(asked, path=MODEL + "/versions/7/infer"),
        "another model": infer(asked, path="/v2/models/other/infer"),
        "slash": infer(asked, path=INFER + "/"),
        "unknown field": infer(asked | {"more": 1}),
        "unknown field of an input": infer({"inputs": [given | {"more": 1}], "outputs": BRIEF}),
        "unknown field of an output": infer({"inputs": [given], "outputs": [{"name": "ascii", "more": 1}]}),
        "unknown parameter": infer(asked | {"parameters": {"more": "x"}}),
        "unknown parameter of an input": infer({"inputs": [given | {"parameters": {"more": 1}}], "outputs": BRIEF}),
        "unknown parameter of an output": infer(
            {"inputs": [given], "outputs": [{"name": "ascii", "parameters": {"more": 1}}]}
        ),
        "classification": infer(
            {"inputs": [given], "outputs": [{"name": "confidence", "parameters": {"classification": 2}}]}
        ),
        "parameter of an object": infer(asked | {"parameters": {"alphabet": {"x": 1}}}),
        "parameter of another type": infer(asked | {"parameters": {"alphabet": 3}}),
        "parameter a fraction": infer(asked | {"parameters": {"top_k": 1.5}}),
        "parameters a list": infer(asked | {"parameters": [1]}),
        "binary_data_output a number": infer(asked | {"parameters": {"binary_data_output": 1}}),
        "binary_data a text": infer(
            {"inputs": [given], "outputs": [{"name": "ascii", "parameters": {"binary_data": "yes"}}]}
        ),
        "id a number": infer(asked | {"id": 7}),
        "unknown output": infer(asked | {"outputs": [{"name": "digit"}]}),
        "output twice": infer(asked | {"outputs": [{"name": "ascii"}, {"name": "ascii"}]}),
        "outputs an object": infer(asked | {"outputs": {"name": "ascii"}}),
        "outputs by name alone": infer(asked | {"outputs": ["ascii"]}),
        "output without a name": infer(asked | {"outputs": [{}]}),
        "input without a name": infer({"inputs": [{"shape": [1, 28, 28], "datatype": "UINT8", "data": flat}]}),
        "no datatype": infer({"inputs": [{"name": "image", "shape": [1, 28, 28], "data": flat}]}),
        "unknown input": infer({"inputs": [given | {"name": "pixels"}]}),
        "input twice": infer({"inputs": [given, given]}),
        "both inputs": infer({"inputs": [given, text], "outputs": BRIEF}),
        "no inputs": infer({"outputs": BRIEF}),
        "empty inputs": infer({"inputs": []}),
        "wrong datatype": infer({"inputs": [image | {"datatype": "FP32", "data": flat}]}),
        "unknown datatype": infer({"inputs": [image | {"datatype": "BYTE", "data": flat}]}),
        "wrong shape": infer({"inputs": [image | {"shape": [1, 784], "data": flat}]}),
        "negative shape": infer({"inputs": [image | {"shape": [-1, 28, 28], "data": flat}]}),
        "shape of fractions": infer({"inputs": [image | {"shape": [1.5, 28, 28], "data": flat}]}),
        "no shape": infer({"inputs": [{"name": "image", "datatype": "UINT8", "data": flat}]}),
        "no pictures": infer({"inputs": [image | {"shape": [0, 28, 28], "data": []}], "outputs": BRIEF}),
        "no pictures in binary": infer({"inputs": [sized(image | {"shape": [0, 28, 28]}, 0)], "outputs": BRIEF}, b""),
        "no data": infer({"inputs": [image]}),
        "too few values": infer({"inputs": [image | {"data": flat[1:]}]}),
        "too many values": infer({"inputs": [image | {"data": [*flat, 0]}]}),
        "a value of 256": infer({"inputs": [image | {"data": [256, *flat[1:]]}]}),
        "a value of -1": infer({"inputs": [image | {"data": [-1, *flat[1:]]}]}),
        "fractions": infer({"inputs": [image | {"data": [0.5, *flat[1:]]}], "outputs": BRIEF}),
        "texts for numbers": infer({"inputs": [image | {"data": ["0"] * 784}]}),
        "binary too short": infer({"inputs": [sized(image, 784)]}, raw[1:]),
        "binary too long": infer(in_binary, raw + b"\0"),
        "binary of another size than the shape's": infer({"inputs": [sized(image, 783)]}, raw[1:]),
        "binary and data": infer({"inputs": [sized(given, 784)], "outputs": BRIEF}, raw),
        "binary without its length": infer({"inputs": [sized(image, 784)]}),
        "length of an element beyond the end": infer({"inputs": [sized(picture, 8)]}, struct.pack("<I", 9) + b"1234"),
        "length beyond the body": infer(in_binary, raw, Inference_Header_Content_Length="9999"),
        "length negative": infer(in_binary, raw, Inference_Header_Content_Length="-1"),
        "length of 0, a raw tensor": infer(b"", raw),
        "length no number": infer(in_binary, raw, Inference_Header_Content_Length="x"),
        "length too small": infer(in_binary, raw, Inference_Header_Content_Length="9"),
        "invalid JSON": infer(good[:-1]),
        "JSON and more": infer(good + b"x"),
        "a list": infer(b"[]"),
        "NaN": infer(good.replace(b'"shape"', b'"x": NaN, "shape"', 1)),
        "empty body": infer(b""),
    }
