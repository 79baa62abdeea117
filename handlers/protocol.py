"""Request rows -> answers, as JSON bytes with a status. Knows nothing of the server that brings the rows.

A row maps names to values: the picture as bytes under `data` or `body` (a multipart field or the raw body), and the
query parameters `alphabet` and `top_k`. Every row gets its own answer, and whatever is wrong with one stays with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.labels import DEFAULT_ALPHABET, Fold, UnknownAlphabet
from handlers.picture import InvalidImage
from handlers.preprocessing import read_image
from handlers.recognizer import DEFAULT_TOP_K, Prediction, Recognizer, read

log = logging.getLogger(__name__)

PICTURE_FIELDS = ("data", "body")
PARAMETERS = ("alphabet", "top_k")
HOW_TO_SEND = (
    "send the picture's bytes as the body with 'Content-Type: application/octet-stream' (or image/png and the like), or as the multipart field 'data'"
)
STATUS = {  # HTTP status by error code
    "bad_request": 400,
    "unknown_alphabet": 400,
    "invalid_image": 400,
    "image_too_large": 413,
    "unsupported_format": 415,
    "blank_image": 422,
    "internal_error": 500,
}
DECIMALS = 6  # of a confidence


@dataclass(frozen=True)
class Request:
    """What one row asks for."""

    picture: bytes
    alphabet: str = DEFAULT_ALPHABET
    top_k: int | None = None  # characters in the answer, the first included; None: the default, or all of a small alphabet


@dataclass(frozen=True)
class Reply:
    """What one row gets: an HTTP status and a JSON body."""

    status: int
    body: bytes


class RequestError(ValueError):
    """A row that asks for what cannot be; `code` is a key of STATUS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer_rows(recognizer: Recognizer, rows: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """Read every row's picture, all good ones in one pass of the network; one reply a row, in order."""
    replies: list[Reply | None] = [None] * len(rows)
    prepared: list[tuple[int, npt.NDArray[np.uint8], Fold, int]] = []
    for index, row in enumerate(rows):
        try:
            request = parse_row(row)
            fold, top_k = resolve(recognizer, request)
            prepared.append((index, read_image(request.picture, recognizer.input_size), fold, top_k))
        except (InvalidImage, RequestError) as error:
            replies[index] = error_reply(error.code, str(error))
        except Exception:  # a fault of ours in one row must not cost its neighbours their answers
            log.exception("a row could not be answered")
            replies[index] = error_reply("internal_error", "this picture could not be processed; the server's log says why")
    if prepared:
        probabilities = recognizer.probabilities(np.stack([image for _, image, _, _ in prepared]))
        for (index, _, fold, top_k), row_probabilities in zip(prepared, probabilities, strict=True):
            replies[index] = Reply(200, _json(prediction_body(read(row_probabilities, fold, top_k))))
    return [reply for reply in replies if reply is not None]


def parse_row(row: Mapping[str, Any]) -> Request:
    """Take the picture and the parameters out of a row. Raises RequestError."""
    pictures = [row[name] for name in PICTURE_FIELDS if name in row]
    if len(pictures) != 1:
        raise RequestError("bad_request", f"{'no picture' if not pictures else 'two pictures'} in the request: {HOW_TO_SEND}")
    if not isinstance(pictures[0], bytes | bytearray):
        raise RequestError("bad_request", f"the picture did not arrive as bytes but as text or JSON: {HOW_TO_SEND}")
    unknown = sorted(set(row) - set(PICTURE_FIELDS) - set(PARAMETERS))
    if unknown:
        raise RequestError("bad_request", f"unknown parameter '{unknown[0]}'; there are: {', '.join(PARAMETERS)}")
    return Request(bytes(pictures[0]), _text(row, "alphabet") or DEFAULT_ALPHABET, _whole_number(row, "top_k"))


def resolve(recognizer: Recognizer, request: Request) -> tuple[Fold, int]:
    """The fold and the number of characters that a request means for this model. Raises RequestError."""
    try:
        fold = recognizer.fold(request.alphabet)
    except UnknownAlphabet as error:
        raise RequestError("unknown_alphabet", str(error)) from error
    count = len(fold.characters)
    if request.top_k is None:
        return fold, min(DEFAULT_TOP_K, count)
    if not 1 <= request.top_k <= count:
        raise RequestError("bad_request", f"top_k must be between 1 and {count} for the alphabet '{fold.alphabet}', not {request.top_k}")
    return fold, request.top_k


def prediction_body(prediction: Prediction) -> dict[str, Any]:
    """The body of a good answer. `ascii` is the code point of a one-character answer."""
    return {
        "character": prediction.character,
        "ascii": ord(prediction.character),
        "confidence": round(prediction.confidence, DECIMALS),
        "alphabet": prediction.alphabet,
        "alternatives": [{"character": c, "confidence": round(p, DECIMALS)} for c, p in prediction.alternatives],
    }


def error_reply(code: str, message: str) -> Reply:
    return Reply(STATUS[code], _json({"error": {"code": code, "message": message}}))


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if isinstance(value, bytes | bytearray):
        value = value.decode("utf-8", "replace")
    return value if value is None else str(value)


def _whole_number(row: Mapping[str, Any], name: str) -> int | None:
    text = _text(row, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError("bad_request", f"{name} must be a whole number, not '{text}'")
    return int(text)
