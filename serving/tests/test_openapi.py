"""The service is what openapi.yaml says: requests made from the file, its examples, and its paths at the edge."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from handlers.alphabets import ALPHABET_NAMES
from handlers.protocols.messages import STATUS

FILE = Path(__file__).resolve().parents[1] / "service" / "openapi.yaml"
SAMPLE = FILE.parents[1] / "samples" / "3_clean.png"
SPECIFICATION = yaml.safe_load(FILE.read_text())
TIMEOUT_S = 60
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
# What a picture's bytes may be is not told by a schema, and a query's name that is not known is refused whatever its
# value.
REJECTING = [*CHECKS, negative_data_rejection]
QUIET = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
OPERATIONS = [(path, method) for path, item in SPECIFICATION["paths"].items() for method in item]

schema = schemathesis.openapi.from_path(FILE)


def ask(case, url):
    response = case.call(base_url=url, timeout=TIMEOUT_S)
    case.validate_response(response, checks=REJECTING if case.path == "/v1/models/emnist:predict" else CHECKS)


@schema.parametrize()
@settings(QUIET, max_examples=25)
def test_requests_made_from_the_file_are_answered_as_it_says(case, server):
    ask(case, server.url)


@pytest.mark.slow
@schema.parametrize()
@settings(QUIET, max_examples=200)
def test_many_requests_made_from_the_file_are_answered_as_it_says(case, server):
    ask(case, server.url)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_path_of_the_file_is_routed(server, path, method):
    """And by its own method alone: another one is told which it is."""
    body = SAMPLE.read_bytes() if path.startswith("/predictions") else None
    answer = requests.request(
        method, server.url + path, data=body, json={} if method == "post" and body is None else None, timeout=TIMEOUT_S
    )
    assert answer.status_code == (400 if method == "post" and body is None else 200), (
        "an empty request reaches its parser"
    )
    assert answer.headers["X-Model-Version"]
    assert answer.headers["X-Request-Id"]
    other = requests.request("DELETE", server.url + path, timeout=TIMEOUT_S)
    assert other.status_code == 405
    assert other.headers["Allow"] == {"get": "GET, HEAD", "post": "POST"}[method]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_files_examples_are_what_is_answered(server, recognizer, path, method):
    operation = SPECIFICATION["paths"][path][method]
    shown = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("example")
    if shown is None:
        pytest.skip("no example")
    sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    data = SAMPLE.read_bytes() if path.startswith("/predictions") else None
    said = requests.request(method, server.url + path, data=data, json=sent, timeout=TIMEOUT_S).json()
    if "confidence" in shown:
        assert said.pop("confidence") == pytest.approx(shown.pop("confidence"), abs=1e-3)
        assert [a["character"] for a in said.pop("alternatives")] == [a["character"] for a in shown.pop("alternatives")]
    if "model_version" in shown:
        assert said.pop("model_version") == recognizer.version
        assert len(shown.pop("model_version")) == len(recognizer.version)
    assert said == shown


def test_the_file_tells_all_codes_alphabets_and_tensors(server):
    schemas = SPECIFICATION["components"]["schemas"]
    assert set(schemas["Code"]["enum"]) == set(STATUS) | {"unauthorized", "deadline"}
    assert schemas["Alphabet"]["enum"] == list(ALPHABET_NAMES)
    metadata = requests.get(f"{server.url}/v2/models/emnist", timeout=TIMEOUT_S).json()
    properties = schemas["InferRequest"]["properties"]
    assert properties["inputs"]["items"]["properties"]["name"]["enum"] == [
        tensor["name"] for tensor in metadata["inputs"]
    ]
    assert properties["outputs"]["items"]["properties"]["name"]["enum"] == [
        tensor["name"] for tensor in metadata["outputs"]
    ]
