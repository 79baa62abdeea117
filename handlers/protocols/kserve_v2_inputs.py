"""The inputs of the Open Inference Protocol: a tensor of a request, in JSON or binary, -> pictures."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from handlers.pictures.decoding import Grey
from handlers.protocols.messages import Model, RequestError, check_count, from_base64, shown

PICTURE, IMAGE = "picture", "image"
DATATYPES = {PICTURE: "BYTES", IMAGE: "UINT8"}


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
