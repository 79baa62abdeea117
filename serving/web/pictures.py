"""The picture in a request: the raw body, the multipart field `data`, or 784 pixels as JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.web.errors import ApiError
from serving.web.schemas import MAX_PIXELS_BYTES, Pixels

FIELD = "data"
HOW_TO_SEND = (
    "send a picture as the body (image/png and the like, or application/octet-stream), as the multipart field 'data',"
    " or pixels as JSON"
)
# HAProxy refuses a longer body by its Content-Length, and cannot refuse one that comes in chunks.
MAX_BODY_BYTES = 16 * 1024 * 1024


async def content_of(request: Request) -> bytes | list[int]:
    """The bytes of a picture, or 784 numbers. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match kind:
        case "multipart/form-data":
            return await from_form(request)
        case "application/json":
            return await pixels(request)
        case _ if kind in {"", "application/octet-stream"} or kind.startswith("image/"):
            return b"".join([chunk async for chunk in limited(request, MAX_BODY_BYTES)])
    raise ApiError(415, "unsupported_format", f"'{kind:.60}' is not taken: {HOW_TO_SEND}")


async def limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body, chunk by chunk. Raises ApiError once it is longer than `most` bytes."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > most:
            raise ApiError(413, "image_too_large", f"a body of this kind may have at most {most // 1024} KiB")
        yield chunk


async def from_form(request: Request) -> bytes:
    """The one part of the form, the file `data`. Kept in memory: a pod has no disk to write to."""
    parser = MultiPartParser(request.headers, limited(request, MAX_BODY_BYTES), max_files=1, max_fields=1)
    parser.spool_max_size = MAX_BODY_BYTES + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        message = f"this is no form with one picture: {error.message}; {HOW_TO_SEND}"
        raise ApiError(400, "bad_request", message) from error
    try:
        parts = form.multi_items()
        if len(parts) != 1 or parts[0][0] != FIELD or not isinstance(parts[0][1], UploadFile):
            message = f"the form must have one field, '{FIELD}', with the picture as a file"
            raise ApiError(400, "bad_request", message)
        return await parts[0][1].read()
    finally:
        await form.close()


async def pixels(request: Request) -> list[int]:
    body = b"".join([chunk async for chunk in limited(request, MAX_PIXELS_BYTES)])
    try:
        return Pixels.model_validate_json(body).pixels
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f'{where or "the JSON"}: {first["msg"].lower()}; send {{"pixels": [784 whole numbers from 0 to 255]}}'
        raise ApiError(400, "bad_request", message) from error
