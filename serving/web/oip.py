"""One picture <-> the Open Inference Protocol (KServe V2) with its binary tensor extension."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

JSON_LENGTH = "Inference-Header-Content-Length"
OUTPUTS = ("character", "ascii", "confidence", "alternatives", "image")


@dataclass(frozen=True)
class Reading:
    """What the service read in one picture."""

    character: str
    ascii: int
    confidence: float
    alternatives: list[dict[str, Any]]
    image: list[int]
    model_version: str


def encode(content: bytes | list[int], alphabet: str, top_k: int, request_id: str) -> tuple[bytes, bytes, bytes]:
    """The body that asks for one picture, in three parts: JSON, what stands before the picture, and the picture.

    A list is 784 pixels, prepared.
    """
    if isinstance(content, bytes):
        length, tensor = len(content).to_bytes(4, "little"), content  # an element of BYTES carries its length
        given: dict[str, Any] = {"name": "picture", "datatype": "BYTES", "shape": [1]}
    else:
        length, tensor = b"", bytes(content)
        given = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
    header = {
        "id": request_id,
        "parameters": {"alphabet": alphabet, "top_k": top_k},
        "inputs": [given | {"parameters": {"binary_data_size": len(length) + len(tensor)}}],
        "outputs": [{"name": name} for name in OUTPUTS],
    }
    return json.dumps(header, separators=(",", ":")).encode(), length, tensor


def decode(body: bytes) -> Reading:
    """The answer for one picture. Raises ValueError if it is none."""
    try:
        answer = json.loads(body)
        data = {output["name"]: output["data"] for output in answer["outputs"]}
        return Reading(
            character=str(data["character"][0]),
            ascii=int(data["ascii"][0]),
            confidence=float(data["confidence"][0]),
            alternatives=json.loads(data["alternatives"][0]),
            image=data["image"],
            model_version=str(answer.get("model_version", "")),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no answer of the Open Inference Protocol: {error!r}") from error
