"""A Triton server with a stand-in for the model, for test_conformance.py: `python triton_server.py PORT`, in
.venv-triton.

Its inputs and outputs are those of handlers/protocols/kserve_v2.py. It takes every picture for a K and answers prepared
images as they came.
"""

import sys

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

INPUTS = [
    Tensor(name="picture", dtype=bytes, shape=(-1,), optional=True),
    Tensor(name="image", dtype=np.uint8, shape=(-1, 28, 28), optional=True),
]
OUTPUTS = [
    Tensor(name="character", dtype=bytes, shape=(-1,)),
    Tensor(name="ascii", dtype=np.int32, shape=(-1,)),
    Tensor(name="confidence", dtype=np.float32, shape=(-1,)),
    Tensor(name="alternatives", dtype=bytes, shape=(-1,)),
    Tensor(name="image", dtype=np.uint8, shape=(-1, 28, 28)),
    Tensor(name="error", dtype=bytes, shape=(-1,)),
]


def answers(requests):
    return [answer(**request.data) for request in requests]


def answer(picture=(), image=None):
    count = len(picture) if image is None else len(image)
    return {
        "character": np.array([b"K"] * count, object),
        "ascii": np.full(count, ord("K"), np.int32),
        "confidence": np.full(count, 0.5, np.float32),
        "alternatives": np.array([b"[]"] * count, object),
        "image": np.zeros((count, 28, 28), np.uint8) if image is None else image,
        "error": np.array([b""] * count, object),
    }


if __name__ == "__main__":
    settings = TritonConfig(http_address="127.0.0.1", http_port=int(sys.argv[1]), allow_grpc=False, allow_metrics=False)
    with Triton(config=settings) as server:
        server.bind("emnist", answers, INPUTS, OUTPUTS, config=ModelConfig(batching=False))
        server.serve()
