"""TorchServe's side of the service: rows from its context into `protocol`, replies back. The only file that imports
ts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

from handlers import telemetry
from handlers.protocols import service
from handlers.recognizer import Recognizer


class EmnistHandler(BaseHandler):  # type: ignore[misc]  # ts has no types; and a handler's module must define one class only
    """Reads characters; one bad picture is its own 4xx, never its neighbours'."""

    def initialize(self, context: Any) -> None:
        """Load the archive's model and run every batch size once, so that no request pays for it."""
        properties = context.system_properties
        wanted = (context.model_yaml_config or {}).get("deviceType", "cpu")
        gpu = properties.get("gpu_id")
        if wanted == "gpu" and (gpu is None or not torch.cuda.is_available()):
            raise RuntimeError("model-config.yaml asks for deviceType gpu, and no GPU is visible to this worker")
        # TorchServe's worker prints a line for each batch, which Java reads.
        logging.getLogger().setLevel(logging.WARNING)
        torch.set_num_threads(1)  # the workers are as many as the cores
        cv2.setNumThreads(1)
        model = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.name = str(context.manifest["model"]["modelName"])
        self.recognizer = Recognizer(model, f"cuda:{gpu}" if wanted == "gpu" else "cpu")
        size = self.recognizer.input_size
        for count in range(1, int(properties.get("batch_size") or 1) + 1):
            self.recognizer.probabilities(np.zeros((count, size, size), np.uint8))
        self.observer = telemetry.start(self.name, self.recognizer)
        self.initialized = True

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch of requests, each with its own status."""
        headers = [
            {str(name).lower(): value for name, value in context.get_all_request_header(i).items()}
            for i in range(len(data))
        ]
        replies = service.answer_rows(self.recognizer, data, headers, self.name, self.observer)
        for index, reply in enumerate(replies):
            context.set_response_status(code=reply.status, idx=index)
            for name, value in reply.headers.items():
                context.set_response_header(index, name, value)
            context.set_response_header(index, "X-Model-Version", self.recognizer.version)
        return [reply.body for reply in replies]
