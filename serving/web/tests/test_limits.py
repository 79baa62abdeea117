"""The gateway's duties as an edge: limits, deadlines, keys, other origins, headers, logs, and its end."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from gateways import listening

from serving.web import connections, uploads
from serving.web.settings import Settings

TIMEOUT_S = 30
MEBIBYTE = 1024 * 1024
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OCTETS = {"Content-Type": "application/octet-stream"}


def post(url, **options):
    given = options if "files" in options else {"data": b"picture"} | options
    return requests.post(f"{url}/api/predict", timeout=TIMEOUT_S, **given)


def code(response):
    return response.status_code, response.json()["error"]["code"]


def talk(url, *parts, pause_s=0.0, may_break=False):
    """Send bytes as they are, and return all that comes back until the gateway closes, and after how many seconds."""
    host, port = url.removeprefix("http://").split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), TIMEOUT_S) as s:
        with contextlib.suppress(*[OSError] if may_break else []):
            for part in parts:
                s.sendall(part)
                time.sleep(pause_s)
        answer = b"".join(iter(lambda: s.recv(65536), b""))
    return answer, time.monotonic() - started


def logged(caplog, count):
    """The fields of so many lines of the access log, which come when the answer has gone already."""
    deadline = time.monotonic() + TIMEOUT_S
    while len(found := [record.fields for record in caplog.records if record.name == "serving.web.access"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def head(length):
    return (
        f"POST /api/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n".encode()
    )


def chunks(mebibytes):
    for _ in range(mebibytes):
        yield b"x" * MEBIBYTE


def test_the_largest_picture_passes_and_a_larger_one_does_not(gateway, service):
    url = gateway
    largest = b"x" * (16 * MEBIBYTE - 1024)
    assert post(url, data=largest).status_code == 200
    assert post(url, data=iter([largest[:5], largest[5:]]), headers=OCTETS).status_code == 200
    assert post(url, files={"data": largest}).status_code == 200
    taken = len(service.requests)
    for options in (
        {"data": b"x" * (16 * MEBIBYTE - 8)},
        {"data": b"x" * (16 * MEBIBYTE + 1)},
        {"data": b"x" * 40 * MEBIBYTE},
        {"data": chunks(17)},
        {"data": chunks(40)},
        {"files": {"data": b"x" * (16 * MEBIBYTE + 1)}},
        {"data": b'{"pixels": [' + b" " * 65536, "headers": {"Content-Type": "application/json"}},
    ):
        assert code(post(url, **options)) == (413, "image_too_large")
    assert len(service.requests) == taken


def test_a_body_that_is_too_large_is_refused_before_it_is_here(gateway, monkeypatch):
    monkeypatch.setattr(uploads, "LINGER_S", 1)
    answer, seconds = talk(gateway, head(17 * MEBIBYTE), *chunks(3), pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 413"), (
        "and nothing that is sent meanwhile resets the connection, which loses the answer"
    )
    assert b"connection: close" in answer.lower()
    assert seconds < 5


def test_a_slow_upload_gets_408_and_its_connection_is_closed(start, service, monkeypatch):
    monkeypatch.setattr(uploads, "LINGER_S", 0.3)
    answer, seconds = talk(start(body_timeout_s=0.5), head(1000), *[b"x"] * 10, pause_s=0.1, may_break=True)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"deadline"' in answer
    assert seconds < 5
    assert service.requests == []


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /live HTTP/1.1\r\nHost: x\r\n\r\nGET /live"]
)
def test_slow_headers_end_the_connection(start, sent, monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT_S", 0.4)
    monkeypatch.setattr(connections, "IDLE_CONNECTION_S", 1)
    answer, seconds = talk(start(), sent)
    assert answer.startswith(b"HTTP/1.1 200") == (b"live" in sent)
    assert 0.3 < seconds < 5


def test_large_bodies_together_are_limited_and_small_ones_are_not(start):
    url = start(max_held_bytes=3 * MEBIBYTE, body_timeout_s=20)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as slow:
        slow.sendall(head(4 * MEBIBYTE) + b"x" * 2 * MEBIBYTE)
        deadline = time.monotonic() + TIMEOUT_S
        while (response := post(url, data=b"x" * 2 * MEBIBYTE)).status_code == 200:
            assert time.monotonic() < deadline  # until the gateway has read what was sent
        assert code(response) == (503, "overloaded")
        assert response.headers["Retry-After"] == "1"
        assert post(url, data=b"x" * 200_000).status_code == 200
    while post(url, data=b"x" * 2 * MEBIBYTE).status_code != 200:
        assert time.monotonic() < deadline, "what a client held is given back when it has gone"


def test_more_than_the_service_may_have_is_refused_at_once(start, service):
    free = threading.Event()

    async def wait(request):
        while not free.is_set():
            await asyncio.sleep(0.01)
        return service.good(request)

    service.reply = wait
    url = start(max_in_flight=2)
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(post, url) for _ in range(2)]
        while len(service.requests) < 2:
            time.sleep(0.01)
        refused = post(url)
        assert code(refused) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert refused.elapsed.total_seconds() < 5
        assert requests.get(f"{url}/live", timeout=TIMEOUT_S).status_code == 200
        free.set()
        assert [response.result().status_code for response in busy] == [200, 200]
    assert post(url).status_code == 200


def test_a_service_that_never_answers_is_a_deadline(start, service):
    async def never(_request):
        await asyncio.sleep(60)

    service.reply = never
    response = post(start(answer_timeout_s=0.3))
    assert code(response) == (504, "deadline")
    assert response.elapsed.total_seconds() < 5


def test_nobody_is_there_at_the_address_of_the_service(free_port):
    with listening(Settings(upstream=f"http://127.0.0.1:{free_port}")) as url:
        assert code(post(url)) == (502, "upstream_unreachable")
        assert code(requests.get(f"{url}/ready", timeout=TIMEOUT_S)) == (503, "not_ready")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"X-API-Key": "käse".encode()},
        {"Authorization": "Basic c2VjcmV0"},
    ],
)
def test_without_the_key_there_is_no_answer(start, service, given):
    response = post(start(api_key="secret"), headers=given)
    assert code(response) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert service.requests == []


@pytest.mark.parametrize("given", [{"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}])
def test_with_the_key_there_is(start, service, caplog, given):
    caplog.set_level("INFO")
    url = start(api_key="secret", upstream_api_key="another")
    assert post(url, headers=given).status_code == 200
    assert service.requests[0].headers["X-API-Key"] == "another"
    assert "authorization" not in service.requests[0].headers
    for path in ("/", "/docs", "/openapi.json", "/live", "/ready"):
        assert requests.get(url + path, timeout=TIMEOUT_S).status_code == 200
    assert "secret" not in caplog.text


def test_other_origins_are_let_in_by_name_alone(gateway, start):
    origin = {"Origin": "https://one.example.org"}
    preflight = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key,content-type",
    }
    closed, opened = gateway, start(cors_origins=("https://one.example.org",), api_key="secret")
    for response in (
        post(closed, headers=origin),
        requests.options(f"{closed}/api/predict", headers=preflight, timeout=TIMEOUT_S),
    ):
        assert "Access-Control-Allow-Origin" not in response.headers
    allowed = requests.options(f"{opened}/api/predict", headers=preflight, timeout=TIMEOUT_S)
    assert allowed.status_code == 200, "a browser sends no key with it"
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://one.example.org"
    assert post(opened, headers=origin).headers["Access-Control-Allow-Origin"] == "https://one.example.org", (
        "errors are read as well"
    )
    other = post(opened, headers={"Origin": "https://two.example.org", "X-API-Key": "secret"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_every_answer_has_the_security_headers(start, service):
    def broken(_request):
        raise ArithmeticError

    url = start(api_key="secret")
    answers = [
        requests.get(url + path, timeout=TIMEOUT_S)
        for path in ("/", "/static/main.js", "/docs", "/openapi.json", "/live", "/nothing")
    ]
    answers += [
        post(url),
        post(url, headers={"X-API-Key": "secret"}),
        post(url, data=chunks(17), headers={"X-API-Key": "secret"}),
    ]
    service.reply = broken
    answers.append(post(url, headers={"X-API-Key": "secret"}))
    assert [answer.status_code for answer in answers] == [200] * 5 + [404, 401, 200, 413, 500]
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "camera=()" in answer.headers["Permissions-Policy"]
        assert answer.headers["Cache-Control"] == ("no-cache" if answer in answers[:3] else "no-store")
        assert "Server" not in answer.headers
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])


def test_a_request_keeps_its_names(gateway, service):
    sent = {"X-Request-Id": "order-7.a", "traceparent": TRACEPARENT, "tracestate": "a=b"}
    assert post(gateway, headers=sent).headers["X-Request-Id"] == "order-7.a"
    assert {name: service.requests[0].headers[name] for name in sent} == sent
    assert json.loads(service.requests[0].content.split(b"}", 1)[0].split(b",")[0] + b"}")["id"] == "order-7.a"


@pytest.mark.parametrize("name", ["a b", "x" * 129, "", "ä".encode(), 'a"b'])
@pytest.mark.parametrize(
    "trace",
    [f"00-{'0' * 32}-b7ad6b7169203331-01", TRACEPARENT.upper(), TRACEPARENT + "-x", f"ff{TRACEPARENT[2:]}", "junk"],
)
def test_names_that_are_none_are_replaced(gateway, service, name, trace):
    given = post(gateway, headers={"X-Request-Id": name, "traceparent": trace, "tracestate": "a=b"}).headers[
        "X-Request-Id"
    ]
    assert re.fullmatch(r"[0-9a-f]{32}", given)
    assert service.requests[0].headers["X-Request-Id"] == given
    assert "traceparent" not in service.requests[0].headers
    assert "tracestate" not in service.requests[0].headers


def test_each_request_is_one_line_of_the_log(gateway, caplog):
    caplog.set_level("INFO", "serving.web.access")
    url = gateway
    response = post(url, params={"alphabet": "vin"}, headers={"traceparent": TRACEPARENT})
    requests.get(f"{url}/nothing?token=secret", timeout=TIMEOUT_S)
    first, second = logged(caplog, 2)
    assert first.pop("ms") > 0
    assert first == {
        "method": "POST",
        "path": "/api/predict",
        "status": 200,
        "bytes": len(response.content),
        "request_id": response.headers["X-Request-Id"],
        "trace_id": TRACE,
        "client": "127.0.0.1",
    }
    assert (second["path"], second["status"], second["trace_id"]) == ("/nothing", 404, "")
    assert "secret" not in str(second)


def test_a_client_that_goes_away_is_logged_as_such(gateway, caplog):
    caplog.set_level("INFO", "serving.web.access")
    host, port = gateway.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as s:
        s.sendall(head(1000) + b"x")
        time.sleep(0.2)
    assert logged(caplog, 1)[0]["status"] == 499
