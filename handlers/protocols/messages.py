"""What a request asks for and what it gets, whatever the form it comes in (plain.py, v1.py, v2.py)."""

from __future__ import annotations

import base64
import binascii
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from handlers.alphabets import DEFAULT_ALPHABET
from handlers.pictures.decoding import Grey
from handlers.recognizer import Prediction

STATUS = {  # HTTP status by error code
    "bad_request": 400,
    "unknown_alphabet": 400,
    "invalid_image": 400,
    "image_too_large": 413,
    "unsupported_format": 415,
    "blank_image": 422,
    "internal_error": 500,
    "overloaded": 503,
}
MAX_PICTURES = 1024  # in one request
MAX_MARKS = (
    200_000  # of [ { : " in a request of JSON, each the start of an object: 1,024 pictures of 96 rows have 99,000
)
MAX_REPLY_BYTES = 1024 * 1024  # max_response_size of config.properties: TorchServe kills a worker that answers more
SHOWN = 60  # characters of a request in the message of an error
DECIMALS = 6  # of a confidence
ENCODER = json.JSONEncoder(separators=(",", ":"))


class RequestError(ValueError):
    """A request that asks for what cannot be; `code` is a key of STATUS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Model:
    """What answers say of the model."""

    name: str
    version: str
    input_size: int  # S: pixels a side of a prepared picture


@dataclass(frozen=True)
class Request:
    """Pictures to read, each an encoded file or prepared already: uint8 (S, S), upright, light on black."""

    pictures: Sequence[bytes | Grey]
    alphabet: str = DEFAULT_ALPHABET
    top_k: int | None = (
        None  # characters in an answer, the first included; None: the default, or all of a small alphabet
    )


@dataclass(frozen=True)
class Answer:
    """What was read, and what the network saw: uint8 (S, S)."""

    prediction: Prediction
    image: Grey


@dataclass(frozen=True)
class Failure:
    """Why a picture was not read; `code` is a key of STATUS."""

    code: str
    message: str


Outcome: TypeAlias = Answer | Failure


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Form(Protocol):
    """A form of requests and replies; modules are such."""

    def parse(self, row: Mapping[str, Any], headers: Mapping[str, str], model: Model, /) -> Request:
        """What a row asks for. Raises RequestError."""

    def answer(self, request: Any, outcomes: Sequence[Outcome], model: Model, /) -> Reply:
        """The reply to a request, given what came of each of its pictures. Raises RequestError."""

    def error(self, failure: Failure, /) -> Reply:
        """The reply to a request that failed as a whole."""


def reply(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Reply:
    """A body of JSON, under the headers that its status asks for."""
    retry = {"Retry-After": "1"} if status == STATUS["overloaded"] else {}
    return Reply(status, to_json(body), {"Content-Type": "application/json"} | retry | dict(headers or {}))


def to_json(body: object) -> bytes:
    return ENCODER.encode(body).encode()


def from_json(data: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is. Raises RequestError."""

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is no number of JSON")

    if sum(map(data.count, (b"[", b"{", b":", b'"'))) > MAX_MARKS:
        raise RequestError("bad_request", f"the JSON has more than {MAX_MARKS} lists, objects, names and texts")
    try:
        body = json.loads(data.decode(), parse_constant=no_number)
    except RecursionError as error:
        raise RequestError("bad_request", "the JSON is nested too deeply") from error
    except ValueError as error:
        raise RequestError("bad_request", f"the request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("bad_request", "the request's JSON must be an object")
    return body


def shown(value: object) -> str:
    """A part of a request as the message of an error may quote it: not at any length."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def json_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request: bytes, or what TorchServe has read already. Raises RequestError."""
    body = row.get("body", row.get("data", b""))
    if isinstance(body, dict):
        return body
    if isinstance(body, bytes | bytearray):
        return from_json(bytes(body))
    raise RequestError("bad_request", "the request's body must be a JSON object")


def from_base64(text: str, where: str) -> bytes:
    """Raises RequestError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as wrong:
        raise RequestError("bad_request", f"{where} is no base64: {wrong}") from wrong


def parameters(given: object, others: Sequence[str] = ()) -> tuple[str, int | None]:
    """`alphabet` and `top_k` of a JSON object, which may hold `others` as well. Raises RequestError."""
    if not isinstance(given, dict):
        raise RequestError("bad_request", "'parameters' must be an object")
    unknown = sorted(set(given) - {"alphabet", "top_k", *others})
    if unknown:
        raise RequestError("bad_request", f"unknown parameter '{shown(unknown[0])}'; there are: alphabet, top_k")
    alphabet, top_k = given.get("alphabet", DEFAULT_ALPHABET), given.get("top_k")
    if not isinstance(alphabet, str):
        raise RequestError("bad_request", "the parameter 'alphabet' must be a string")
    if top_k is not None and type(top_k) is not int:
        raise RequestError("bad_request", "the parameter 'top_k' must be a whole number")
    return alphabet, top_k


def check_count(count: int) -> None:
    """Raises RequestError if a request may not hold so many pictures."""
    if not 1 <= count <= MAX_PICTURES:
        raise RequestError("bad_request", f"a request holds 1 to {MAX_PICTURES} pictures, not {count}")


def without_null(given: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object without the names that stand for nothing: some clients write null for what they leave out."""
    return {name: value for name, value in given.items() if value is not None}


def prediction_body(prediction: Prediction) -> dict[str, Any]:
    """A good answer. `ascii` is the code point of a one-character answer."""
    return {
        "character": prediction.character,
        "ascii": ord(prediction.character),
        "confidence": round(prediction.confidence, DECIMALS),
        "alphabet": prediction.alphabet,
        "alternatives": alternatives(prediction),
    }


def alternatives(prediction: Prediction) -> list[dict[str, Any]]:
    return [{"character": c, "confidence": round(p, DECIMALS)} for c, p in prediction.alternatives]


def error_body(failure: Failure) -> dict[str, str]:
    return {"code": failure.code, "message": failure.message}
