"""What the gateway takes and answers, and what it asks of the model service."""

import http.client
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import requests

from serving.web import oip
from serving.web.app import STATIC, create_app
from serving.web.upstream import Upstream

TIMEOUT_S = 30
PIXELS = [i % 256 for i in range(784)]
NEVER_IMPORTED = {"torch", "cv2", "numpy", "PIL", "handlers", "training", "jinja2", "ts", "requests"}


def post(url, query="", **options):
    return requests.post(f"{url}/api/predict{query}", timeout=TIMEOUT_S, **options)


def asked(service):
    """The JSON and the binary part of the one request that the service got."""
    (request,) = service.requests
    length = int(request.headers[oip.JSON_LENGTH])
    return json.loads(request.content[:length]), request.content[length:]


@pytest.mark.parametrize(
    "options",
    [
        {"data": b"picture"},
        {"data": b"picture", "headers": {"Content-Type": "application/octet-stream"}},
        {"data": b"picture", "headers": {"Content-Type": "Image/PNG; a=b"}},
        {"files": {"data": b"picture"}},
        {"data": iter([b"pict", b"ure"])},
    ],
)
def test_a_picture_goes_to_the_service_as_it_came(gateway, service, options):
    response = post(gateway, "?alphabet=vin&top_k=2", **options)
    assert response.status_code == 200
    header, tensor = asked(service)
    assert header["parameters"] == {"alphabet": "vin", "top_k": 2}
    assert header["inputs"] == [
        {"name": "picture", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 11}}
    ]
    assert [output["name"] for output in header["outputs"]] == [
        "character",
        "ascii",
        "confidence",
        "alternatives",
        "image",
    ]
    assert tensor == b"\x07\x00\x00\x00picture"
    assert service.requests[0].url.path == "/v2/models/emnist/infer"


def test_pixels_go_to_the_service_as_they_came(gateway, service):
    assert post(gateway, json={"pixels": PIXELS}).status_code == 200
    header, tensor = asked(service)
    assert header["parameters"] == {"alphabet": "alnum", "top_k": 3}
    assert header["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "parameters": {"binary_data_size": 784}}
    ]
    assert list(tensor) == PIXELS


def test_the_answer_is_that_of_the_contract_and_what_the_network_saw(gateway):
    response = post(gateway, data=b"picture")
    body = response.json()
    assert body.pop("milliseconds") > 0
    assert body == {
        "character": "R",
        "ascii": 82,
        "confidence": 0.9,
        "alphabet": "alnum",
        "alternatives": [{"character": "K", "confidence": 0.05}],
        "image": [7] * 784,
        "model_version": "v7",
    }
    assert response.headers["X-Model-Version"] == "v7"


def refusing(status, body, **headers):
    return lambda _: (
        httpx.Response(status, json=body, headers=headers)
        if isinstance(body, dict)
        else httpx.Response(status, text=body)
    )


def raising(error):
    def reply(_request):
        raise error

    return reply


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (refusing(400, {"error": "unknown_alphabet: no 'x': there are more"}), 400, "unknown_alphabet"),
        (refusing(422, {"error": "blank_image: picture 0: nothing to read"}), 422, "blank_image"),
        (refusing(413, {"error": "image_too_large: 16 MiB"}), 413, "image_too_large"),
        (refusing(413, "too large"), 502, "internal_error"),
        (refusing(503, {"error": "overloaded: no worker is free"}, **{"Retry-After": "7"}), 503, "overloaded"),
        (refusing(504, {"error": "deadline: too late"}), 504, "deadline"),
        (refusing(500, {"error": "internal_error: the log says why"}), 500, "internal_error"),
        (refusing(404, {"error": ["?"]}), 502, "internal_error"),
        (refusing(200, {"outputs": []}), 502, "internal_error"),
        (refusing(200, "junk"), 502, "internal_error"),
        (raising(httpx.ConnectError("refused")), 502, "internal_error"),
        (raising(httpx.ReadTimeout("slow")), 502, "internal_error"),
        (raising(ArithmeticError("a fault of ours")), 500, "internal_error"),
    ],
)
def test_what_the_service_refuses_is_handed_on_in_the_form_of_rest(gateway, service, reply, status, code):
    service.reply = reply
    response = post(gateway, data=b"picture")
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert len(response.json()["error"]["message"]) > 5
    assert "a fault of ours" not in response.text
    assert "picture 0" not in response.text
    assert response.headers.get("Retry-After") == ("7" if status == 503 else None)


def test_a_request_keeps_its_names(gateway, service):
    sent = {"X-Request-Id": "order-7.a", "traceparent": "00-a-b-01", "tracestate": "a=b"}
    assert post(gateway, data=b"picture", headers=sent | {"X-API-Key": "secret", "Cookie": "a=b"}).status_code == 200
    (request,) = service.requests
    assert {name: request.headers[name] for name in sent} == sent
    assert not {"x-api-key", "cookie"} & set(request.headers)
    assert asked(service)[0]["id"] == "order-7.a"


MEBIBYTE = 1024 * 1024
OCTETS = {"Content-Type": "application/octet-stream"}


def test_a_body_in_chunks_ends_where_haproxy_would_end_a_longer_one(gateway, service):
    largest = b"x" * 16 * MEBIBYTE
    assert post(gateway, data=iter([largest]), headers=OCTETS).status_code == 200
    taken = len(service.requests)
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n'
    for body, headers in (
        (iter([largest, b"x"]), OCTETS),
        (iter([part, largest, b"\r\n--b--\r\n"]), boundary),
        (b'{"pixels": [' + b" " * 65536, {"Content-Type": "application/json"}),
    ):
        response = post(gateway, data=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "image_too_large")
    assert len(service.requests) == taken


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?alphabet=greek", "unknown_alphabet"),
        ("?alphabet=", "unknown_alphabet"),
        ("?top_k=0", "bad_request"),
        ("?top_k=101", "bad_request"),
        ("?top_k=x", "bad_request"),
        ("?alphbet=vin", "bad_request"),
    ],
)
def test_wrong_parameters_are_refused_here(gateway, service, query, code):
    response = post(gateway, query, data=b"picture")
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert query[1:].split("=")[0] in response.json()["error"]["message"]
    assert service.requests == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"pixels": "x"}',
        json.dumps({"pixels": PIXELS[:-1]}),
        json.dumps({"pixels": [*PIXELS, 0]}),
        json.dumps({"pixels": [256, *PIXELS[1:]]}),
        json.dumps({"pixels": [-1, *PIXELS[1:]]}),
        json.dumps({"pixels": [1.5, *PIXELS[1:]]}),
        json.dumps({"pixels": ["1", *PIXELS[1:]]}),
        json.dumps({"pixels": [True, *PIXELS[1:]]}),
        json.dumps({"pixels": [PIXELS]}),
        json.dumps({"pixels": PIXELS, "more": 1}),
    ],
)
def test_wrong_pixels_are_refused(gateway, service, body):
    response = post(gateway, data=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
    assert service.requests == []


FORM = {"Content-Type": "multipart/form-data"}


@pytest.mark.parametrize(
    "options",
    [
        {"files": {"picture": b"x"}},
        {"files": [("data", b"x"), ("data", b"y")]},
        {"files": [("data", b"x"), ("other", b"y")]},
        {"files": {"data": b"x"}, "data": {"alphabet": "vin"}},
        {"files": {"data": (None, b"x")}},
        {"data": b"--b\r\n", "headers": FORM},
        {"data": b"no such boundary", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        {
            "data": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
            "headers": {"Content-Type": "multipart/form-data; boundary=b"},
        },
        {"data": b"--b\r\n\x00:\r\n\r\nx\r\n--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
    ],
)
def test_wrong_forms_are_refused(gateway, service, options):
    response = post(gateway, **options)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
    assert service.requests == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "imagine/png"])
def test_other_content_types_are_refused(gateway, service, kind):
    response = post(gateway, data=b"picture", headers={"Content-Type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_format")
    assert service.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/static/nothing.js", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/api/predict", 405),
        ("POST", "/", 405),
        ("POST", "/static/main.js", 405),
    ],
)
def test_what_the_framework_refuses_has_the_same_form(gateway, method, path, status):
    # It leaves paths as they are.
    connection = http.client.HTTPConnection(gateway.removeprefix("http://"), timeout=TIMEOUT_S)
    connection.request(method, path)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, error["code"]) == (status, "bad_request")
    assert (response.headers["Allow"] is not None) == (status == 405)


def test_the_description_is_whole():
    description = create_app(Upstream("emnist", Path("none"))).openapi()
    assert description["openapi"] == "3.0.3"
    operation = description["paths"]["/api/predict"]["post"]
    assert set(operation["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "502", "503", "504"}
    assert set(operation["requestBody"]["content"]) >= {
        "multipart/form-data",
        "application/octet-stream",
        "application/json",
    }
    assert operation["security"] == [{"APIKeyHeader": []}, {"HTTPBearer": []}]
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)))
    assert names <= set(description["components"]["schemas"])
    assert "HTTPValidationError" not in json.dumps(description)
    assert not {"$defs", "const", "prefixItems", "examples"} & set(
        re.findall(r'"(\$?\w+)":', json.dumps(description))
    ), "words of OpenAPI 3.1"


def test_the_docs_are_served_from_here(gateway):
    page = requests.get(f"{gateway}/docs", timeout=TIMEOUT_S)
    assert "no-cache" in page.headers["Cache-Control"]
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert requests.get(f"{gateway}/{address}", timeout=TIMEOUT_S).status_code == 200
    assert requests.get(f"{gateway}/openapi.json", timeout=TIMEOUT_S).json()["info"]["title"]


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere():
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.|@import", text), file
        if file.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", text), file


def test_the_gateway_is_light():
    names = f"import serving.web.__main__, sys; print(*sorted(sys.modules)); print({sorted(NEVER_IMPORTED)!r})"
    done = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    modules = done.stdout.splitlines()[0].split()
    assert not NEVER_IMPORTED & set(modules)
    ours = {name for name in modules if name.split(".")[0] == "serving"}
    assert {name for name in ours if not name.startswith("serving.web")} == {"serving"}
