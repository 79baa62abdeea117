"""KServe's V1 protocol: {"instances": [{"b64": "..."}, ...]} -> {"predictions": [...]}, in the same order.

A picture that cannot be read has {"error": {"code", "message"}} in its place. `parameters` may hold `alphabet` and
`top_k`. https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.protocols.messages import (
    STATUS,
    Failure,
    Model,
    Outcome,
    Reply,
    Request,
    RequestError,
    check_count,
    error_body,
    from_base64,
    json_of,
    parameters,
    prediction_body,
    reply,
    shown,
)


def parse(row: Mapping[str, Any], _headers: Mapping[str, str], _model: Model) -> Request:
    """Raises RequestError."""
    body = json_of(row)
    instances = body.get("instances")
    if not isinstance(instances, list):
        raise RequestError("bad_request", '\'instances\' must be a list of pictures: {"instances": [{"b64": "..."}]}')
    check_count(len(instances))
    unknown = sorted(set(body) - {"instances", "parameters"})
    if unknown:
        raise RequestError("bad_request", f"unknown name '{shown(unknown[0])}'; there are: instances, parameters")
    given = body.get("parameters")
    alphabet, top_k = parameters({} if given is None else given)
    return Request([_picture(number, instance) for number, instance in enumerate(instances)], alphabet, top_k)


def _picture(number: int, instance: object) -> bytes:
    if not isinstance(instance, dict) or list(instance) != ["b64"] or not isinstance(instance["b64"], str):
        raise RequestError("bad_request", f'instance {number} must be {{"b64": "..."}}, a picture in base64')
    return from_base64(instance["b64"], f"instance {number}")


def answer(_request: Request, outcomes: Sequence[Outcome], _model: Model) -> Reply:
    predictions = [
        {"error": error_body(o)} if isinstance(o, Failure) else prediction_body(o.prediction) for o in outcomes
    ]
    return reply(200, {"predictions": predictions})


def error(failure: Failure) -> Reply:
    return reply(STATUS[failure.code], {"error": f"{failure.code}: {failure.message}"})
