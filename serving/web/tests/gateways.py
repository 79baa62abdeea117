"""A gateway on a real port, and a model service that fails as a test wants it to."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import httpx
import uvicorn

from serving.local import reserved_ports
from serving.web.app import create_app
from serving.web.upstream import Upstream

START_TIMEOUT_S = 20


class Service:
    """A model service for what a real one does not do on demand: `reply` is called with each request and returns an
    answer or raises.
    """

    def __init__(self):
        self.forget()

    def forget(self):
        self.requests: list[httpx.Request] = []
        self.reply = self.good

    @staticmethod
    def good(_request):
        data = {
            "character": ["R"],
            "ascii": [82],
            "confidence": [0.9],
            "alternatives": ['[{"character":"K","confidence":0.05}]'],
        }
        return Service.outputs(data | {"image": [7] * 784})

    @staticmethod
    def outputs(data):
        outputs = [
            {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values} for name, values in data.items()
        ]
        return httpx.Response(200, json={"model_name": "emnist", "model_version": "v7", "outputs": outputs})

    async def __call__(self, request):
        await request.aread()
        self.requests.append(request)
        answer = self.reply(request)
        return await answer if hasattr(answer, "__await__") else answer


@contextlib.contextmanager
def listening(service):
    """The address of a gateway that asks `service`. In the service it listens on a socket, behind HAProxy."""
    app = create_app(Upstream("emnist", Path("none"), httpx.MockTransport(service)))
    with reserved_ports(1) as (port,):
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
        server.capture_signals = contextlib.nullcontext  # the tests' own
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)
