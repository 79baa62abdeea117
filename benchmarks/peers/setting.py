"""What every server of the comparison is told, by environment variables, and the model that each of its workers
loads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from handlers.recognizer import Recognizer

PATH = "/predictions/emnist"  # where ours takes pictures, and so all of them
TIMEOUT_S = 30  # for an answer, as ours


@dataclass(frozen=True)
class Setting:
    """Worker processes, the most pictures of a batch, and how long a batch that is not full waits."""

    workers: int
    batch: int
    delay_ms: int

    @classmethod
    def from_environment(cls) -> Setting:
        return cls(*(int(os.environ[name]) for name in ("PEER_WORKERS", "PEER_BATCH", "PEER_DELAY_MS")))

    def to_environment(self, model: Path) -> dict[str, str]:
        values = {
            "PEER_WORKERS": self.workers,
            "PEER_BATCH": self.batch,
            "PEER_DELAY_MS": self.delay_ms,
            "PEER_MODEL": model.resolve(),
        }
        # torch.set_num_threads does not reach the OpenMP of the threads in which some read their batches.
        return {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in values.items()}


def load_model(batch: int) -> Recognizer:
    """PEER_MODEL on one thread, for the workers are as many as the cores, with every batch size run once: what our
    handler does.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    recognizer = Recognizer(os.environ["PEER_MODEL"])
    for count in range(1, batch + 1):
        recognizer.probabilities(np.zeros((count, recognizer.input_size, recognizer.input_size), np.uint8))
    return recognizer
