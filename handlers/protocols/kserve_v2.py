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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.protocols.kserve_v1 import error
from handlers.protocols.kserve_v2_inputs import DATATYPES, IMAGE, PICTURE, pictures_of
from handlers.protocols.kserve_v2_outputs import COLUMNS, Output, encoded, requested
from handlers.protocols.messages import (
    Failure,
    Model,
    Outcome,
    Reply,
    Request,
    RequestError,
    from_json,
    json_of,
    parameters,
    reply,
    shown,
    without_null,
)

__all__ = ["answer", "error", "metadata", "parse"]

BINARY_HEADER = "inference-header-content-length"  # where the JSON of a body ends and binary tensors begin
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


def answer(request: InferRequest, outcomes: Sequence[Outcome], model: Model) -> Reply:
    """Raises RequestError for a picture that cannot be read, unless the output `error` is asked for."""
    if not any(output.name == "error" for output in request.outputs):
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Failure):
                raise RequestError(outcome.code, f"picture {number}: {outcome.message}")
    tensors = [encoded(output, outcomes, model) for output in request.outputs]
    body = (
        {"model_name": model.name, "model_version": model.version}
        | ({} if request.id is None else {"id": request.id})
        | {"outputs": [described for described, _ in tensors]}
    )
    good = reply(200, body)
    if not any(output.binary for output in request.outputs):
        return good
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(good.body))}
    return Reply(200, good.body + b"".join(binary for _, binary in tensors), headers)
