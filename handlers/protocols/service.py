"""Request rows -> replies, in any of three forms. Knows nothing of the server that brings the rows.

A row maps names to values: the body as bytes under `data` or `body` (a multipart field or the raw body), and the query
parameters. Its headers, by lower-case name, tell the form in `x-protocol`: plain (rest.py), v1, v2, or v2-metadata.
Every row gets its own reply, and whatever is wrong with one stays with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.alphabets import Fold, UnknownAlphabet
from handlers.pictures.decoding import Grey, InvalidImage
from handlers.pictures.pipeline import read_image
from handlers.protocols import kserve_v1, kserve_v2, rest
from handlers.protocols.messages import (
    MAX_REPLY_BYTES,
    Answer,
    Failure,
    Form,
    Model,
    Outcome,
    Reply,
    Request,
    RequestError,
)
from handlers.recognizer import DEFAULT_TOP_K, Recognizer, read

log = logging.getLogger(__name__)

PROTOCOL_HEADER = "x-protocol"
FORMS: dict[str, Form] = {"plain": rest, "v1": kserve_v1, "v2": kserve_v2}
METADATA = "v2-metadata"
FORM_NAMES = (*FORMS, METADATA)
DEFAULT_MODEL = "emnist"
PASS = 64  # pictures in one pass of the network
READING_S = (
    10.0  # for the pictures of all rows; every row has its share of it, and what is not begun by then is refused
)
FIRST_S = (
    20.0  # by then each row's first picture is begun, whatever its share: well before the server's own limit of 30 s
)
HOW_TO_SHORTEN = "send fewer pictures, ask for fewer characters (top_k), or for binary outputs (V2)"
INTERNAL = Failure("internal_error", "this picture could not be processed; the server's log says why")


class Observer:
    """Is told what is done for a batch of requests, and how long it took; this one keeps nothing of it."""

    def begun(self, headers: Sequence[Mapping[str, str]]) -> None:
        """Requests with these headers have arrived."""

    def prepared(self, seconds: float) -> None:
        """A picture was decoded and prepared, or found to be none."""

    def passed(self, pictures: int, seconds: float) -> None:
        """The network has read so many pictures in one pass."""

    def answered(self, character: str, confidence: float) -> None:
        """A picture has its answer."""

    def failed(self, form: str, code: str) -> None:
        """A request has failed, or a picture of one that is answered for the others."""

    def finished(self, forms: Sequence[str], headers: Sequence[Mapping[str, str]]) -> None:
        """All replies are made, to requests in these forms, of FORM_NAMES, and with these headers."""


@dataclass
class Reading:
    """A row that is being answered: what it asks for, and what has come of its pictures."""

    form: str  # a key of FORMS
    request: Request
    fold: Fold
    top_k: int
    images: list[Grey | Failure] = field(default_factory=list)


def answer_rows(
    recognizer: Recognizer,
    rows: Sequence[Mapping[str, Any]],
    headers: Sequence[Mapping[str, str]] | None = None,
    name: str = DEFAULT_MODEL,
    observer: Observer | None = None,
) -> list[Reply]:
    """Read the pictures of all rows, the good ones in one go through the network; one reply a row, in order."""
    headers, observer = headers or [{}] * len(rows), observer or Observer()
    observer.begun(headers)
    model = Model(name, recognizer.version, recognizer.input_size)
    forms = [asked if (asked := head.get(PROTOCOL_HEADER)) in FORM_NAMES else "plain" for head in headers]
    started = time.monotonic()
    begun = [begin(recognizer, model, *row, observer) for row in zip(rows, headers, forms, strict=True)]
    readings = [row for row in begun if isinstance(row, Reading)]
    prepare_rows(readings, recognizer.input_size, started, observer)
    good = [image for row in readings for image in row.images if not isinstance(image, Failure)]
    probabilities = iter(probabilities_of(recognizer, good, observer))
    replies = [row if isinstance(row, Reply) else finish(row, model, probabilities, observer) for row in begun]
    observer.finished(forms, headers)
    return replies


def begin(
    recognizer: Recognizer,
    model: Model,
    row: Mapping[str, Any],
    headers: Mapping[str, str],
    form: str,
    observer: Observer,
) -> Reading | Reply:
    """Parse a row; a Reply if there is nothing to read."""
    if form == METADATA:
        return kserve_v2.metadata(model)
    try:
        request = FORMS[form].parse(row, headers, model)
        fold, top_k = resolve(recognizer, request)
        return Reading(form, request, fold, top_k)
    except RequestError as error:
        return fail(form, Failure(error.code, str(error)), observer)
    except Exception:  # a fault of ours in one row must not cost its neighbours their answers
        log.exception("a row could not be read")
        return fail(form, INTERNAL, observer)


def prepare_rows(rows: Sequence[Reading], size: int, started: float, observer: Observer) -> None:
    """Prepare the pictures of all rows, whose parsing `started` at that time of the monotonic clock.

    A row may take as much time as each of those after it would have then. The rows of fewest pictures come first, and
    what they do not need of theirs passes on to the others: so no request takes the time of those that ask for less.
    """
    waiting = sorted(rows, key=lambda row: len(row.request.pictures))
    for place, row in enumerate(waiting):
        now = time.monotonic()
        until = now + (started + READING_S - now) / (len(waiting) - place)
        for picture in row.request.pictures:
            row.images.append(prepare(picture, size, until if row.images else started + FIRST_S, observer))


def prepare(picture: bytes | Grey, size: int, until: float, observer: Observer) -> Grey | Failure:
    """uint8 (S, S), or why not. A picture that is prepared already passes."""
    if isinstance(picture, np.ndarray):
        return picture
    if time.monotonic() > until:
        return Failure("overloaded", "no time was left to decode this picture; send it again, with fewer in a request")
    started = time.perf_counter()
    try:
        return read_image(picture, size)
    except InvalidImage as error:
        return Failure(error.code, str(error))
    except Exception:
        log.exception("a picture could not be read")
        return INTERNAL
    finally:
        observer.prepared(time.perf_counter() - started)


def probabilities_of(
    recognizer: Recognizer, images: Sequence[Grey], observer: Observer
) -> list[npt.NDArray[np.float32]]:
    """Class probabilities (C,) of each image."""
    found: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(images), PASS):
        batch = np.stack(images[start : start + PASS])
        started = time.perf_counter()
        found.extend(recognizer.probabilities(batch))
        observer.passed(len(batch), time.perf_counter() - started)
    return found


def finish(row: Reading, model: Model, probabilities: Iterator[npt.NDArray[np.float32]], observer: Observer) -> Reply:
    """The reply of a row, whose good pictures are the next ones of `probabilities`."""
    outcomes: list[Outcome] = [
        image if isinstance(image, Failure) else Answer(read(next(probabilities), row.fold, row.top_k), image)
        for image in row.images
    ]
    try:
        reply = FORMS[row.form].answer(row.request, outcomes, model)
        if len(reply.body) > MAX_REPLY_BYTES:
            raise RequestError(
                "bad_request", f"the answer has {len(reply.body)} bytes of at most {MAX_REPLY_BYTES}: {HOW_TO_SHORTEN}"
            )
    except RequestError as error:
        return fail(row.form, Failure(error.code, str(error)), observer)
    except Exception:
        log.exception("a row could not be answered")
        return fail(row.form, INTERNAL, observer)
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            observer.failed(row.form, outcome.code)
        else:
            observer.answered(outcome.prediction.character, outcome.prediction.confidence)
    return reply


def fail(form: str, failure: Failure, observer: Observer) -> Reply:
    """The reply to a request that failed as a whole."""
    observer.failed(form, failure.code)
    return FORMS[form].error(failure)


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
        raise RequestError(
            "bad_request",
            f"top_k must be between 1 and {count} for the alphabet '{fold.alphabet}', not {request.top_k}",
        )
    return fold, request.top_k
