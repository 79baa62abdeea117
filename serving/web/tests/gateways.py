"""A gateway on a real port, and a model service that fails as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import httpx
import uvicorn

from serving.local import reserved_ports
from serving.web.app import create_app
from serving.web.connections import configuration

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
        return Service.outputs(data | {"image": [7] * 784, "error": [""]})

    @staticmethod
    def outputs(data):
        outputs = [
            {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values} for name, values in data.items()
        ]
        return httpx.Response(200, json={"model_name": "emnist", "model_version": "v7", "outputs": outputs})

    @staticmethod
    def failed(code, message="in words"):
        data = {"character": [""], "ascii": [0], "confidence": [0.0], "alternatives": [""], "image": [0] * 784}
        return Service.outputs(data | {"error": [json.dumps({"code": code, "message": message})]})

    async def __call__(self, request):
        await request.aread()
        self.requests.append(request)
        answer = self.reply(request)
        return await answer if hasattr(answer, "__await__") else answer


@contextlib.contextmanager
def listening(settings, transport=None, port=None):
    with contextlib.nullcontext([port]) if port else reserved_ports(1) as (own,):
        app = create_app(settings, transport)
        server = uvicorn.Server(configuration(app, "127.0.0.1", own, settings.longest_answer_s))
        server.capture_signals = contextlib.nullcontext  # the tests' own
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{own}"
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)


class Line(httpx.AsyncHTTPTransport):
    """The network to the service, which can be cut; `requests` are those that went through."""

    def __init__(self):
        super().__init__()
        self.cut = threading.Event()
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request):
        if self.cut.is_set():
            raise httpx.ConnectError("cut")
        self.requests.append(request)
        return await super().handle_async_request(request)
