"""The Open Inference Protocol (KServe V2) with the extension for binary tensors.

Input, one of: `picture` BYTES [N], encoded pictures (in JSON as base64), or `image` UINT8 [N, S, S], prepared pictures,
upright and light on black. Parameters: `alphabet`, `top_k`. Outputs, all [N]: `character` BYTES, `ascii` INT32,
`confidence` FP32, `alternatives` BYTES (each a list of JSON); and on request `image` UINT8 [N, S, S], what the network
saw, and `error` BYTES, "" or an object of JSON: who asks for it gets "", 0 and zeros in the place of a picture that
cannot be read, which fails the whole request otherwise.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from handlers.pictures.decoding import Grey
from handlers.protocols.kserve_v1 import error
from handlers.protocols.messages import (
    Answer,
    Failure,
    Model,
    Outcome,
    Reply,
    Request,
    RequestError,
    alternatives,
    check_count,
    error_body,
    from_base64,
    from_json,
    json_of,
    parameters,
    reply,
    shown,
    to_json,
    without_null,
)

__all__ = ["answer", "error", "metadata", "parse"]

BINARY_HEADER = "inference-header-content-length"  # where the JSON of a body ends and binary tensors begin
PICTURE, IMAGE = "picture", "image"
DATATYPES = {PICTURE: "BYTES", IMAGE: "UINT8"}
# Parameters of Triton's clients.
OTHERS = (
    "binary_data_output",
    "priority",
    "timeout",
    "sequence_id",
    "sequence_start",
    "sequence_end",
)
PARTS = {"id", "inputs", "outputs", "parameters"}
MAX_ID = 1024  # characters; it comes back
OF_THE_PATH = {"model_name", "model_version"}  # the binary extension's examples have them in the body as well
Tensor: TypeAlias = npt.NDArray[Any] | list[bytes]


@dataclass(frozen=True)
class Output:
    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest(Request):
    id: str | None = None
    outputs: tuple[Output, ...] = ()


def metadata(model: Model) -> Reply:
    """The answer to GET /v2/models/NAME."""
    pixels = [-1, model.input_size, model.input_size]
    shapes = {IMAGE: pixels}
    inputs = [
        {"name": name, "datatype": datatype, "shape": shapes.get(name, [-1])} for name, datatype in DATATYPES.items()
    ]
    outputs = [
        {"name": name, "datatype": column.datatype, "shape": shapes.get(name, [-1])} for name, column in COLUMNS.items()
    ]
    body = {
        "name": model.name,
        "versions": [model.version],
        "platform": "pytorch_torchscript",
        "inputs": inputs,
        "outputs": outputs,
    }
    return reply(200, body)


def parse(row: Mapping[str, Any], headers: Mapping[str, str], model: Model) -> InferRequest:
    """Raises RequestError."""
    body, rest = split(row, headers)
    body = without_null(body)
    unknown = sorted(set(body) - PARTS - OF_THE_PATH)
    if unknown:
        raise RequestError("bad_request", f"unknown name '{shown(unknown[0])}'; there are: {', '.join(sorted(PARTS))}")
    identity = body.get("id")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= MAX_ID):
        raise RequestError("bad_request", f"'id' must be a string of at most {MAX_ID} characters")
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(
            "bad_request",
            f"'inputs' must hold one tensor: {PICTURE} BYTES [N] or {IMAGE} UINT8 [N, {model.input_size},"
            f" {model.input_size}]",
        )
    given = body.get("parameters", {})
    alphabet, top_k = parameters(given, OTHERS)
    binary = given.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise RequestError("bad_request", "the parameter 'binary_data_output' must be true or false")
    return InferRequest(
        pictures_of(without_null(inputs[0]), rest, model),
        alphabet,
        top_k,
        identity,
        requested(body.get("outputs", []), binary),
    )


def split(row: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[dict[str, Any], bytes | None]:
    """The JSON of a request, and the bytes behind it. Raises RequestError."""
    if BINARY_HEADER not in headers:
        return json_of(row), None
    length, body = headers[BINARY_HEADER], row.get("body", row.get("data", b""))
    if not (
        isinstance(body, bytes | bytearray)
        and length.isascii()
        and length.isdigit()
        and len(length) < 10
        and int(length) <= len(body)
    ):
        raise RequestError(
            "bad_request",
            f"Inference-Header-Content-Length must be a number of bytes within the body, not '{shown(length)}'",
        )
    return from_json(bytes(body[: int(length)])), bytes(body[int(length) :])


def requested(outputs: object, binary: bool) -> tuple[Output, ...]:
    """The outputs that a request names, or the usual ones. Raises RequestError."""
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise RequestError("bad_request", "'outputs' must be a list of objects with a 'name'")
    found = []
    for output in outputs or [{"name": name} for name, column in COLUMNS.items() if column.usual]:
        name, given = output.get("name"), without_null(output).get("parameters", {})
        if not isinstance(name, str) or name not in COLUMNS:
            raise RequestError("bad_request", f"there is no output '{shown(name)}'; there are: {', '.join(COLUMNS)}")
        if (
            not isinstance(given, dict)
            or set(given) - {"binary_data"}
            or not isinstance(given.get("binary_data", False), bool)
        ):
            raise RequestError(
                "bad_request", f"of output '{name}': 'parameters' may hold 'binary_data', true or false, alone"
            )
        found.append(Output(name, given.get("binary_data", binary)))
    if len({output.name for output in found}) < len(found):
        raise RequestError("bad_request", "an output is asked for twice")
    return tuple(found)


def pictures_of(tensor: Mapping[str, Any], rest: bytes | None, model: Model) -> Sequence[bytes | Grey]:
    """The pictures of the input, from its JSON or from `rest`. Raises RequestError."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    expected: dict[str, list[Any]] = {PICTURE: ["N"], IMAGE: ["N", model.input_size, model.input_size]}
    if not isinstance(name, str) or name not in expected:
        raise RequestError("bad_request", f"there is no input '{shown(name)}'; there are: {', '.join(expected)}")
    if datatype != DATATYPES[name]:
        raise RequestError(
            "bad_request", f"input '{name}' must be of datatype {DATATYPES[name]}, not {shown(datatype)}"
        )
    if (
        not isinstance(shape, list)
        or not all(type(side) is int for side in shape)
        or not shape
        or shape[1:] != expected[name][1:]
    ):
        raise RequestError(
            "bad_request",
            f"input '{name}' must be of shape {str(expected[name]).replace(chr(39), '')}, not {shown(shape)}",
        )
    check_count(shape[0])
    given = tensor.get("parameters", {})
    size = given.get("binary_data_size") if isinstance(given, dict) else None
    if (size is None) == ("data" not in tensor):
        raise RequestError("bad_request", f"input '{name}' must have either 'data' or the parameter 'binary_data_size'")
    if size is None:
        if rest:
            raise RequestError("bad_request", f"{len(rest)} bytes follow the JSON, and no input claims them")
        return from_list(name, shape, tensor["data"])
    if type(size) is not int or rest is None or size != len(rest):
        raise RequestError(
            "bad_request",
            f"binary_data_size of input '{name}' is {shown(size)}, and {len(rest or b'')} bytes follow the JSON",
        )
    return from_bytes(name, shape, rest)


def from_list(name: str, shape: Sequence[int], data: object) -> Sequence[bytes | Grey]:
    """Pictures from JSON: base64, or grey levels, nested or flat. Raises RequestError."""
    if name == PICTURE:
        if not isinstance(data, list) or len(data) != shape[0] or not all(isinstance(text, str) for text in data):
            raise RequestError(
                "bad_request", f"'data' of input '{name}' must be {shape[0]} strings, each a picture in base64"
            )
        return [from_base64(text, f"picture {number}") for number, text in enumerate(data)]
    while isinstance(data, list) and data and all(isinstance(part, list) for part in data):
        data = list(chain.from_iterable(data))
    # Not by np.asarray: of a list of texts it makes an array in which each has the room of the longest.
    if (
        not isinstance(data, list)
        or len(data) != prod(shape)
        or not all(type(value) is int and 0 <= value <= 255 for value in data)
    ):
        raise RequestError("bad_request", f"'data' of input '{name}' must be {prod(shape)} whole numbers from 0 to 255")
    return list(np.frombuffer(bytes(data), np.uint8).reshape(shape))


def from_bytes(name: str, shape: Sequence[int], rest: bytes) -> Sequence[bytes | Grey]:
    """Pictures from a binary tensor; each element of BYTES follows its length, 4 bytes, little-endian. Raises
    RequestError.
    """
    if name == IMAGE:
        if len(rest) != prod(shape):
            raise RequestError(
                "bad_request", f"input '{name}' of shape {list(shape)} has {prod(shape)} bytes, not {len(rest)}"
            )
        return list(np.frombuffer(rest, np.uint8).reshape(shape))
    found: list[bytes] = []
    start = 0
    while start + 4 <= len(rest) and len(found) < shape[0]:
        (length,) = struct.unpack_from("<I", rest, start)
        found.append(rest[start + 4 : start + 4 + length])
        start += 4 + length
    if start != len(rest) or len(found) != shape[0]:
        raise RequestError(
            "bad_request",
            f"input '{name}' must hold {shape[0]} element(s), as its shape says, each after its length in 4 bytes",
        )
    return found


@dataclass(frozen=True)
class Column:
    """An output: how its tensor follows from the outcomes of a model."""

    datatype: str
    tensor: Callable[[Sequence[Outcome], Model], Tensor]
    usual: bool = True  # is in an answer to a request that names no outputs


def _texts(of: Callable[[Answer], bytes]) -> Callable[[Sequence[Outcome], Model], Tensor]:
    return lambda outcomes, _: [of(outcome) if isinstance(outcome, Answer) else b"" for outcome in outcomes]


def _numbers(of: Callable[[Answer], float], dtype: str) -> Callable[[Sequence[Outcome], Model], Tensor]:
    return lambda outcomes, _: np.array(
        [of(outcome) if isinstance(outcome, Answer) else 0 for outcome in outcomes], dtype
    )


def _images(outcomes: Sequence[Outcome], model: Model) -> Tensor:
    black = np.zeros((model.input_size, model.input_size), np.uint8)
    return np.stack([outcome.image if isinstance(outcome, Answer) else black for outcome in outcomes])


def _errors(outcomes: Sequence[Outcome], _: Model) -> Tensor:
    return [to_json(error_body(outcome)) if isinstance(outcome, Failure) else b"" for outcome in outcomes]


COLUMNS = {
    "character": Column("BYTES", _texts(lambda answer: answer.prediction.character.encode())),
    "ascii": Column("INT32", _numbers(lambda answer: ord(answer.prediction.character), "<i4")),
    "confidence": Column("FP32", _numbers(lambda answer: answer.prediction.confidence, "<f4")),
    "alternatives": Column("BYTES", _texts(lambda answer: to_json(alternatives(answer.prediction)))),
    IMAGE: Column("UINT8", _images, usual=False),
    "error": Column("BYTES", _errors, usual=False),
}


def answer(request: InferRequest, outcomes: Sequence[Outcome], model: Model) -> Reply:
    """Raises RequestError for a picture that cannot be read, unless the output `error` is asked for."""
    if not any(output.name == "error" for output in request.outputs):
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Failure):
                raise RequestError(outcome.code, f"picture {number}: {outcome.message}")
    described, binary = [], b""
    for output in request.outputs:
        column = COLUMNS[output.name]
        tensor = column.tensor(outcomes, model)
        shape = [len(tensor)] if isinstance(tensor, list) else list(tensor.shape)
        content: dict[str, Any]
        if output.binary:
            data = (
                b"".join(struct.pack("<I", len(text)) + text for text in tensor)
                if isinstance(tensor, list)
                else tensor.tobytes()
            )
            content = {"parameters": {"binary_data_size": len(data)}}
            binary += data
        else:
            content = {
                "data": [text.decode() for text in tensor] if isinstance(tensor, list) else tensor.ravel().tolist()
            }
        described.append({"name": output.name, "datatype": column.datatype, "shape": shape} | content)
    body = (
        {"model_name": model.name, "model_version": model.version}
        | ({} if request.id is None else {"id": request.id})
        | {"outputs": described}
    )
    good = reply(200, body)
    if not any(output.binary for output in request.outputs):
        return good
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(good.body))}
    return Reply(200, good.body + binary, headers)
