"""The plain form: a picture as the body, or as a multipart field; `alphabet` and `top_k` in the query; one JSON object
back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.alphabets import DEFAULT_ALPHABET
from handlers.protocols.bodies import fields_of, is_multipart
from handlers.protocols.messages import (
    STATUS,
    Failure,
    Model,
    Outcome,
    Reply,
    Request,
    RequestError,
    error_body,
    prediction_body,
    reply,
    shown,
)

PICTURE_FIELDS = ("data", "body")
CONTENT_TYPE_HEADER = (  # where the client said multipart; the edge has TorchServe take every body as it is
    "x-content-type"
)
PARAMETERS = ("alphabet", "top_k")
HOW_TO_SEND = (
    "send the picture's bytes as the body with 'Content-Type: application/octet-stream' (or image/png and the like), or"
    " as the multipart field 'data'"
)


def parse(row: Mapping[str, Any], headers: Mapping[str, str], _model: Model) -> Request:
    """The picture as bytes under `data` or `body`, and the query parameters. Raises RequestError."""
    content_type = headers.get(CONTENT_TYPE_HEADER, "")
    if content_type and is_multipart(content_type) and isinstance(row.get("body"), bytes | bytearray):
        row = {name: value for name, value in row.items() if name != "body"} | fields_of(
            bytes(row["body"]), content_type
        )
    pictures = [row[name] for name in PICTURE_FIELDS if name in row]
    if len(pictures) != 1:
        raise RequestError(
            "bad_request", f"{'no picture' if not pictures else 'two pictures'} in the request: {HOW_TO_SEND}"
        )
    if not isinstance(pictures[0], bytes | bytearray):
        raise RequestError("bad_request", f"the picture did not arrive as bytes but as text or JSON: {HOW_TO_SEND}")
    unknown = sorted(set(row) - set(PICTURE_FIELDS) - set(PARAMETERS))
    if unknown:
        raise RequestError(
            "bad_request", f"unknown parameter '{shown(unknown[0])}'; there are: {', '.join(PARAMETERS)}"
        )
    return Request([bytes(pictures[0])], _text(row, "alphabet") or DEFAULT_ALPHABET, _whole_number(row, "top_k"))


def answer(_request: Request, outcomes: Sequence[Outcome], _model: Model) -> Reply:
    (outcome,) = outcomes
    return error(outcome) if isinstance(outcome, Failure) else reply(200, prediction_body(outcome.prediction))


def error(failure: Failure) -> Reply:
    return reply(STATUS[failure.code], {"error": error_body(failure)})


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
        raise RequestError("bad_request", f"{name} must be a whole number, not '{shown(text)}'")
    return int(text)
