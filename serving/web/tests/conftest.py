"""Gateways on real ports, in front of the real service or of one that fails as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import httpx
import pytest
import uvicorn

from serving.local import free_ports
from serving.web.app import create_app
from serving.web.connections import configuration
from serving.web.settings import Settings

START_TIMEOUT_S = 20


class Service:
    """A model service for what a real one does not do on demand: `reply` is called with each request and returns an answer or raises."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.reply = self.good

    @staticmethod
    def good(_request):
        data = {"character": ["R"], "ascii": [82], "confidence": [0.9], "alternatives": ['[{"character":"K","confidence":0.05}]']}
        return Service.outputs(data | {"image": [7] * 784, "error": [""]})

    @staticmethod
    def outputs(data):
        outputs = [{"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values} for name, values in data.items()]
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


@pytest.fixture
def service():
    return Service()


@contextlib.contextmanager
def listening(settings, transport=None):
    (port,) = free_ports(1)
    server = uvicorn.Server(configuration(create_app(settings, transport), "127.0.0.1", port))
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


@pytest.fixture
def start(service):
    """A function that starts a gateway with the settings given, in front of `service`, and returns its address."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(listening(Settings(**settings), httpx.MockTransport(service)))


@pytest.fixture
def gateway(start):
    return start()


@pytest.fixture(scope="session")
def real(server):
    """The address of a gateway in front of the real service."""
    with listening(Settings(upstream=server.url, model_name=server.model)) as url:
        yield url
