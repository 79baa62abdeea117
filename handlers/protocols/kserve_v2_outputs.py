"""The outputs of the Open Inference Protocol: what a request asks for, and the outcomes of a model -> tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from handlers.protocols.kserve_v2_inputs import IMAGE
from handlers.protocols.messages import (
    Answer,
    Failure,
    Model,
    Outcome,
    RequestError,
    alternatives,
    error_body,
    shown,
    to_json,
    without_null,
)

Tensor: TypeAlias = npt.NDArray[Any] | list[bytes]


@dataclass(frozen=True)
class Output:
    name: str
    binary: bool


def requested(outputs: object, binary: bool) -> tuple[Output, ...]:
    """The outputs that a request names, or the usual ones. Raises RequestError."""
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise RequestError("bad_request", "'outputs' must be a list of objects with a 'name'")
    found = []
    for output in outputs or [{"name": name} for name, column in COLUMNS.items() if column.usual]:
        name, given = output.get("name"), without_null(output).get("parameters", {})
        if not isinstance(name, str) or name not in COLUMNS:
            raise RequestError("bad_request", f"there is no output '{shown(name)}'; there are: {', '.join(COLUMNS)}")
        if (
            not isinstance(given, dict)
            or set(given) - {"binary_data"}
            or not isinstance(given.get("binary_data", False), bool)
        ):
            raise RequestError(
                "bad_request", f"of output '{name}': 'parameters' may hold 'binary_data', true or false, alone"
            )
        found.append(Output(name, given.get("binary_data", binary)))
    if len({output.name for output in found}) < len(found):
        raise RequestError("bad_request", "an output is asked for twice")
    return tuple(found)


@dataclass(frozen=True)
class Column:
    """An output: how its tensor follows from the outcomes of a model."""

    datatype: str
    tensor: Callable[[Sequence[Outcome], Model], Tensor]
    usual: bool = True  # is in an answer to a request that names no outputs


def _texts(of: Callable[[Answer], bytes]) -> Callable[[Sequence[Outcome], Model], Tensor]:
    return lambda outcomes, _: [of(outcome) if isinstance(outcome, Answer) else b"" for outcome in outcomes]


def _numbers(of: Callable[[Answer], float], dtype: str) -> Callable[[Sequence[Outcome], Model], Tensor]:
    return lambda outcomes, _: np.array(
        [of(outcome) if isinstance(outcome, Answer) else 0 for outcome in outcomes], dtype
    )


def _images(outcomes: Sequence[Outcome], model: Model) -> Tensor:
    black = np.zeros((model.input_size, model.input_size), np.uint8)
    return np.stack([outcome.image if isinstance(outcome, Answer) else black for outcome in outcomes])


def _errors(outcomes: Sequence[Outcome], _: Model) -> Tensor:
    return [to_json(error_body(outcome)) if isinstance(outcome, Failure) else b"" for outcome in outcomes]


COLUMNS = {
    "character": Column("BYTES", _texts(lambda answer: answer.prediction.character.encode())),
    "ascii": Column("INT32", _numbers(lambda answer: ord(answer.prediction.character), "<i4")),
    "confidence": Column("FP32", _numbers(lambda answer: answer.prediction.confidence, "<f4")),
    "alternatives": Column("BYTES", _texts(lambda answer: to_json(alternatives(answer.prediction)))),
    IMAGE: Column("UINT8", _images, usual=False),
    "error": Column("BYTES", _errors, usual=False),
}


def encoded(output: Output, outcomes: Sequence[Outcome], model: Model) -> tuple[dict[str, Any], bytes]:
    """An output as JSON describes it, and its bytes behind the JSON; none for one that is in the JSON whole."""
    column = COLUMNS[output.name]
    tensor = column.tensor(outcomes, model)
    described: dict[str, Any] = {"name": output.name, "datatype": column.datatype, "shape": [len(tensor)]}
    if not isinstance(tensor, list):
        described["shape"] = list(tensor.shape)
    if not output.binary:
        return described | {"data": _in_json(tensor)}, b""
    binary = _in_binary(tensor)
    return described | {"parameters": {"binary_data_size": len(binary)}}, binary


def _in_json(tensor: Tensor) -> list[Any]:
    return [text.decode() for text in tensor] if isinstance(tensor, list) else tensor.ravel().tolist()


def _in_binary(tensor: Tensor) -> bytes:
    if isinstance(tensor, list):
        return b"".join(struct.pack("<I", len(text)) + text for text in tensor)
    return tensor.tobytes()
