"""The picture in a request: the raw body, the multipart field `data`, or 784 pixels as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.web.errors import TOO_LARGE, ApiError
from serving.web.schemas import Pixels
from serving.web.settings import MAX_PICTURE_BYTES, MAX_PIXELS_BYTES

FIELD = "data"
HOW_TO_SEND = (
    "send a picture as the body (image/png and the like, or application/octet-stream), as the multipart field 'data',"
    " or pixels as JSON"
)


async def content_of(request: Request) -> bytes | list[int]:
    """The bytes of a picture, or 784 numbers. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match kind:
        case "" | "application/octet-stream":
            return await whole(request.stream(), MAX_PICTURE_BYTES, TOO_LARGE)
        case "multipart/form-data":
            return await from_form(request)
        case "application/json":
            return await pixels(request)
        case _ if kind.startswith("image/"):
            return await whole(request.stream(), MAX_PICTURE_BYTES, TOO_LARGE)
    raise ApiError("unsupported_format", f"'{kind:.60}' is not taken: {HOW_TO_SEND}")


async def whole(stream: AsyncIterator[bytes], limit: int, too_large: str) -> bytes:
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > limit:
            raise ApiError("image_too_large", too_large)
    return bytes(body)


async def from_form(request: Request) -> bytes:
    """The one part of the form, the file `data`. Kept in memory: a pod has no disk to write to."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=1)
    parser.spool_max_size = 2 * MAX_PICTURE_BYTES
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError("bad_request", f"this is no form with one picture: {error.message}; {HOW_TO_SEND}") from error
    try:
        parts = form.multi_items()
        if len(parts) != 1 or parts[0][0] != FIELD or not isinstance(parts[0][1], UploadFile):
            raise ApiError("bad_request", f"the form must have one field, '{FIELD}', with the picture as a file")
        picture = await parts[0][1].read()
    finally:
        await form.close()
    if len(picture) > MAX_PICTURE_BYTES:
        raise ApiError("image_too_large", TOO_LARGE)
    return picture


async def pixels(request: Request) -> list[int]:
    body = await whole(request.stream(), MAX_PIXELS_BYTES, f"JSON may have at most {MAX_PIXELS_BYTES // 1024} KiB")
    try:
        return Pixels.model_validate_json(body).pixels
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f'{where or "the JSON"}: {first["msg"].lower()}; send {{"pixels": [784 whole numbers from 0 to 255]}}'
        raise ApiError("bad_request", message) from error
