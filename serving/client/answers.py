"""What the service says, typed: an answer, or the error in its place. For `serving/client/client.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

MODEL_VERSION = "X-Model-Version"
SHOWN = 200  # bytes of a body that is no answer
REFUSALS = frozenset(
    {"bad_request", "unknown_alphabet", "invalid_image", "image_too_large", "unsupported_format", "blank_image"}
)


class ServiceError(Exception):
    """No answer for a picture. `status` is None where the service has not answered at all.

    `code` is one of the REST contract's, or the client's own: `unreachable` (no connection, or one that broke),
    `timeout` (no answer in time), `unreadable` (a file), `unexpected` (an answer in no form of the contract).
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status

    @property
    def refused(self) -> bool:
        """Whether this picture, or what is asked of it, cannot be read: to send it again is of no use."""
        return self.code in REFUSALS


@dataclass(frozen=True)
class Alternative:
    character: str
    confidence: float


@dataclass(frozen=True)
class Answer:
    """What the service reads in a picture."""

    character: str
    ascii: int
    confidence: float  # 0 to 1
    alphabet: str
    alternatives: tuple[Alternative, ...]  # the next best, the likeliest first
    model_version: str | None  # the model file's short hash


@dataclass(frozen=True)
class Result:
    """What became of one of many pictures: either `answer` or `error`."""

    picture: bytes | Path  # as it was given
    answer: Answer | None
    error: ServiceError | None
    seconds: float  # with all that was tried again


def read_answer(response: requests.Response) -> Answer:
    """Raises ServiceError for all that is not an answer of the contract."""
    try:
        body = response.json()
    except (ValueError, RecursionError):  # no JSON, or a thousand brackets
        body = None
    if response.status_code == 200:
        try:
            best = _alternative(body)
            others = tuple(_alternative(other) for other in body["alternatives"])
            return Answer(
                best.character,
                int(body["ascii"]),
                best.confidence,
                str(body["alphabet"]),
                others,
                response.headers.get(MODEL_VERSION),
            )
        except (LookupError, TypeError, ValueError):
            pass
    raise _error(response, body)


def _alternative(scored: Any) -> Alternative:
    character, confidence = scored["character"], float(scored["confidence"])
    if not (isinstance(character, str) and len(character) == 1 and 0 <= confidence <= 1):
        raise ValueError("neither a character nor its probability")
    return Alternative(character, confidence)


def _error(response: requests.Response, body: Any) -> ServiceError:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("code"), str) and isinstance(error.get("message"), str):
        return ServiceError(error["code"], error["message"], response.status_code)
    text = response.content[:SHOWN].decode("utf-8", "replace")
    return ServiceError(
        "unexpected", f"status {response.status_code} and no answer of this service: {text!r}", response.status_code
    )
