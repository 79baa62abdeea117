"""What goes in and out of the API, as its OpenAPI description says it. OpenAPI 3.0, which Swagger UI 4 can show."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

PIXELS = 28 * 28
MAX_PIXELS_BYTES = 64 * 1024  # of JSON; 784 numbers need 4 kB
Pixel = Annotated[int, Field(ge=0, le=255)]
Alphabet = Literal["alnum", "digits", "letters", "vin", "classes"]
# An upright stroke.
EXAMPLE_PIXELS: list[JsonValue] = [255 if 12 <= i % 28 < 16 and 4 <= i // 28 < 24 else 0 for i in range(PIXELS)]


class Parameters(BaseModel):
    """The query parameters."""

    model_config = ConfigDict(extra="forbid")
    alphabet: Alphabet = Field(
        default="alnum",
        description=(
            "What the answer may be: `alnum` 0-9 A-Z, `digits`, `letters`, `vin` (no I, O, Q), `classes` the model's"
            " own, lower case too."
        ),
    )
    top_k: int = Field(
        default=3,
        ge=1,
        le=100,
        description="How many characters the answer holds, with the first; no more than the alphabet has.",
    )


class Pixels(BaseModel):
    """A prepared picture of 28x28: upright, light on black, row by row from the top left."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"pixels": EXAMPLE_PIXELS}})
    pixels: list[Pixel] = Field(min_length=PIXELS, max_length=PIXELS)


class Alternative(BaseModel):
    character: str = Field(min_length=1, max_length=1)
    confidence: float = Field(ge=0, le=1)


class Answer(BaseModel):
    """One character that was read."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "character": "3",
                "ascii": 51,
                "confidence": 0.987414,
                "alphabet": "alnum",
                "alternatives": [
                    {"character": "R", "confidence": 0.000605},
                    {"character": "D", "confidence": 0.000603},
                ],
                "image": EXAMPLE_PIXELS,
                "milliseconds": 9.7,
                "model_version": "43c8ff45074c",
            }
        }
    )
    character: str = Field(min_length=1, max_length=1)
    ascii: int = Field(description="The character's code point.")
    confidence: float = Field(ge=0, le=1, description="The calibrated probability that the character is right.")
    alphabet: Alphabet
    alternatives: list[Alternative] = Field(description="The next best characters, the best first.")
    image: list[Pixel] = Field(
        description="What the network saw: light on black, row by row; 28x28 with the included model."
    )
    milliseconds: float = Field(ge=0, description="How long the model service took.")
    model_version: str


class ErrorDetail(BaseModel):
    code: str
    message: str


class Error(BaseModel):
    """Every error has this form."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"error": {"code": "blank_image", "message": "the picture holds nothing to read"}}
        }
    )
    error: ErrorDetail


BINARY = {"schema": {"type": "string", "format": "binary"}}
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": (
        f"The picture's bytes, at most 16 MiB; or 28x28 prepared pixels as JSON, at most {MAX_PIXELS_BYTES // 1024}"
        " KiB."
    ),
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["data"],
                "properties": {"data": {"type": "string", "format": "binary"}},
            },
        },
        "application/octet-stream": BINARY,
        "image/png": BINARY,
        "image/jpeg": BINARY,
        "application/json": {"schema": {"$ref": "#/components/schemas/Pixels"}},
    },
}
ERRORS = {
    400: ("bad_request", "`bad_request`, `unknown_alphabet` or `invalid_image`"),
    401: ("unauthorized", "`unauthorized`: this service asks for a key, and the request has another one or none"),
    408: ("deadline", "`deadline`: the headers or the first 16 kB took too long"),
    413: ("image_too_large", "`image_too_large`"),
    415: ("unsupported_format", "`unsupported_format`: no picture that is known here"),
    422: ("blank_image", "`blank_image`: nothing is drawn on it"),
    502: ("internal_error", "`internal_error`: the model service broke off"),
    503: ("overloaded", "`overloaded`: send the request again after Retry-After seconds"),
    504: ("deadline", "`deadline`: the model service took too long"),
}
HEADERS: dict[str, Any] = {
    "X-Request-Id": {"description": "The request's name in the logs.", "schema": {"type": "string"}},
    "X-Model-Version": {"description": "The model that answered.", "schema": {"type": "string"}},
}


def error_responses() -> dict[int | str, dict[str, Any]]:
    """The error responses of the API for FastAPI's `responses`."""
    found: dict[int | str, dict[str, Any]] = {}
    for status, (code, description) in ERRORS.items():
        example = {"error": {"code": code, "message": "in words"}}
        found[status] = {
            "model": Error,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
    found[503]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
    return found
