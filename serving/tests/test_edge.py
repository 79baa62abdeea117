"""What the edge does that only shows with settings of its own: overload, and the end of a pod."""

import contextlib
import http.client
import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from PIL import Image
from watch import java_of

from serving.local import reserved_ports, running
from serving.service import pod
from serving.service.processes import haproxy_command, web_command

TIMEOUT_S = 30


@pytest.fixture
def picture(emnist):
    """A large one, so that requests meet."""
    stream = io.BytesIO()
    Image.fromarray(emnist.images[0].numpy()).resize((2000, 2000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def samples(root):
    return sorted((root / "serving" / "samples").iterdir())


def refused(server):
    """How many requests each backend has refused."""
    told = requests.get(f"{server.probes_url}/metrics", timeout=TIMEOUT_S).text
    found = re.findall(r'http_responses_total\{proxy="(shed|torchserve_streamed)",code="5xx"\} (\d+)', told)
    return {backend: int(count) for backend, count in found}


@pytest.fixture
def ports():
    with reserved_ports(4) as ports:
        yield ports


@pytest.fixture
def edge(program, ports, tmp_path, monkeypatch):
    """A function that starts HAProxy without TorchServe and returns its port; pod.py finds its admin socket."""

    def start(**settings):
        port, probes, management, metrics = ports
        addresses = {"EDGE_ADDRESS": f"127.0.0.1:{port}", "PROBE_HOST": "127.0.0.1", "PROBE_PORT": str(probes)}
        addresses |= {"MANAGEMENT_PORT": str(management), "MODEL_METRICS_PORT": str(metrics)}
        addresses["SOCKETS"] = str(tmp_path)
        monkeypatch.setenv("ADMIN_SOCKET", str(tmp_path / "haproxy.sock"))
        program(haproxy_command(), env=os.environ | addresses | settings)
        wait_until((tmp_path / "haproxy.sock").exists)
        return port

    return start


@pytest.fixture
def management():
    """A function that starts a management API which reports workers of these statuses, and returns its address."""
    with contextlib.ExitStack() as stack:

        def start(statuses):
            class Api(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps([{"workers": [{"status": status} for status in statuses]}]).encode())

            api = http.server.HTTPServer(("127.0.0.1", 0), Api)
            threading.Thread(target=api.serve_forever, daemon=True).start()
            stack.callback(api.server_close)
            stack.callback(api.shutdown)
            return f"127.0.0.1:{api.server_port}"

        yield start


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_too_much_is_refused_at_once_and_the_rest_answered(tight, picture):
    server = tight.server
    before = refused(server)

    def send(_):
        headers = {"Content-Type": "application/octet-stream"}
        return requests.post(f"{server.url}/predictions/emnist", data=picture, headers=headers, timeout=TIMEOUT_S)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(send, range(60)))
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["X-Model-Version"]
    assert server.ready(), "a service that has too much to do is still ready"
    counted = {backend: count - before[backend] for backend, count in refused(server).items()}
    assert sum(counted.values()) == sum(answer.status_code == 503 for answer in answers)
    assert counted["shed"] > 0


def test_draining_sends_clients_elsewhere_takes_no_more_and_waits_for_the_last_answer(mar, samples, monkeypatch):
    for name, value in (("QUEUE_TIMEOUT", "500ms"), ("ANSWER_TIMEOUT", "20s"), ("TS_DEFAULT_WORKERS_PER_MODEL", "1")):
        monkeypatch.setenv(name, value)
    picture = samples[0].read_bytes()
    with running(mar) as server, requests.Session() as idle, ThreadPoolExecutor(2) as pool:
        monkeypatch.setenv("ADMIN_SOCKET", str(server.admin_socket))
        monkeypatch.setenv("DRAIN_SECONDS", "2")
        assert pod.longest_answer_s() == 20.5
        assert idle.get(f"{server.url}/ready", timeout=TIMEOUT_S).ok
        client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=TIMEOUT_S)

        def send():
            client.request("POST", "/predictions/emnist", picture, {"Content-Type": "application/octet-stream"})
            response = client.getresponse()
            body = json.loads(response.read())
            return response.status, body["character"], (response.getheader("Connection") or "keep-alive").lower()

        right = samples[0].name[0]
        assert send() == (200, right, "keep-alive")
        draining = pool.submit(pod.main, ["drain", "--mar", str(mar)])
        time.sleep(0.5)
        assert send() == (200, right, "close")
        assert send() == (200, right, "close"), "for a while, new connections are still taken"
        (worker,) = java_of(server).children(recursive=True)
        worker.suspend()
        last = pool.submit(send)
        wait_until(lambda: pod.requests_in_flight() == 1)
        page = half_a_request(server, picture)
        time.sleep(2.5)
        with pytest.raises(ConnectionRefusedError):
            requests_once(server)
        assert not draining.done(), "an answer is still to come"
        page.sendall(picture[100:])
        worker.resume()
        assert b"200 OK" in page.recv(65536), "the gateway still finds TorchServe"
        page.close()
        assert last.result() == (200, right, "close")
        assert draining.result(timeout=3) == 0, "the idle connection is not waited for"


def half_a_request(server, picture):
    """To the page's API, whose gateway asks for an answer once all of the picture is there."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    head = f"POST /api/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n"
    client.sendall(head.encode() + picture[:100])
    return client


def requests_once(server):
    host, port = server.url.removeprefix("http://").split(":")
    socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()


def test_draining_waits_no_longer_than_for_the_longest_answer(edge, monkeypatch):
    port = edge(QUEUE_TIMEOUT="500ms", ANSWER_TIMEOUT="1s")
    monkeypatch.setenv("DRAIN_SECONDS", "0")
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as client:
        # HAProxy waits 10 s for the rest.
        client.sendall(b"POST /predictions/emnist HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nslow")
        wait_until(lambda: pod.requests_in_flight() == 1)
        started = time.monotonic()
        assert pod.main(["drain"]) == 0
        assert 1.5 <= time.monotonic() - started < 3


@pytest.mark.parametrize(("text", "expected"), [("30s", 30), ("500ms", 0.5), ("1500", 1.5), ("2m", 120)])
def test_times_are_read_as_haproxy_reads_them(text, expected):
    assert pod.seconds(text) == expected


def test_with_a_key_only_its_holders_are_let_in(edge):
    """The key holds a comma. Whoever is let in is told that there is no TorchServe."""
    host = f"http://127.0.0.1:{edge(API_KEY='one,two')}"
    url = f"{host}/predictions/emnist"
    for headers in (
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "one,tw"},
        {"Authorization": "Bearer one,two3"},
        {"X-Handed-On": "1"},
    ):
        answer = requests.post(url, data=b"picture", headers=headers, timeout=TIMEOUT_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), headers
    assert requests.get(f"{host}/v2/health/live", timeout=TIMEOUT_S).status_code == 200
    assert requests.get(f"{host}/v2/models/emnist", timeout=TIMEOUT_S).status_code == 401
    statuses = {}
    for key in ("one,two", "one", "two"):
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            answer = requests.post(url, data=b"picture", headers=headers, timeout=TIMEOUT_S)
            statuses[key, *headers] = answer.status_code
    right = {("one,two", "X-API-Key"), ("one,two", "Authorization")}
    assert statuses == {given: 503 if given in right else 401 for given in statuses}
    answer = requests.post(url, data=b"picture", headers={"Authorization": "one,two"}, timeout=TIMEOUT_S)
    assert answer.status_code == 401, "a bearer token is named as one"


def test_the_page_is_loaded_without_the_key_and_its_api_asks_for_it(edge):
    """There is no gateway, so that whoever is let in gets 503."""
    host = f"http://127.0.0.1:{edge(API_KEY='secret')}"
    for path in ("/", "/docs", "/docs/swagger-ui.css", "/static/main.js", "/openapi.json"):
        assert requests.get(host + path, timeout=TIMEOUT_S).status_code == 503, path
        assert requests.post(host + path, data=b"x", timeout=TIMEOUT_S).status_code == 401, path
    for path in ("/api/predict", "/api/", "/static", "/v2", "/v1/models", "/predictions/emnist", "/elsewhere"):
        for method in ("GET", "POST"):
            answer = requests.request(method, host + path, timeout=TIMEOUT_S)
            assert answer.status_code == 401, (method, path)
    answer = requests.post(f"{host}/api/predict", data=b"x", headers={"X-API-Key": "secret"}, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")


def test_a_page_that_is_down_is_told_on_its_own_paths_and_leaves_the_pod_ready(edge, management):
    host = f"http://127.0.0.1:{edge(MANAGEMENT_PORT=management(['READY']).rpartition(':')[2])}"
    wait_until(lambda: requests.get(f"{host}/ready", timeout=TIMEOUT_S).ok)
    for path in ("/", "/docs", "/api/predict"):
        answer = requests.get(host + path, timeout=TIMEOUT_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert "the page is busy or starting" in answer.json()["error"]["message"]
        assert answer.headers["Retry-After"] == "1"
    assert requests.get(f"{host}/ready", timeout=TIMEOUT_S).ok


def test_the_edge_listens_on_every_address_that_it_is_given(edge, ports, free_port):
    edge(EDGE_ADDRESS=f"127.0.0.1:{ports[0]},127.0.0.1:{free_port}")
    for port in (ports[0], free_port):
        assert requests.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=TIMEOUT_S).ok


def test_every_answer_of_the_page_has_the_security_headers(server):
    answers = [
        requests.get(server.url + path, timeout=TIMEOUT_S)
        for path in ("/", "/static/main.js", "/docs", "/openapi.json", "/static/nothing")
    ]
    answers.append(requests.post(f"{server.url}/api/predict", data=b"junk", timeout=TIMEOUT_S))
    assert [answer.status_code for answer in answers] == [200] * 4 + [404, 415]
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "camera=()" in answer.headers["Permissions-Policy"]
        assert answer.headers["Cache-Control"] == ("no-cache" if answer in answers[:3] else "no-store")
        assert not {"Server", "Access-Control-Allow-Origin"} & set(answer.headers)


def test_a_picture_sent_by_the_page_is_one_line_of_the_log_and_keeps_its_names(tight, samples):
    before = tight.log.stat().st_size
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    names = {"X-Request-Id": "order-7.a", "traceparent": trace}
    url = f"{tight.server.url}/api/predict?alphabet=alnum&top_k=2"
    answer = requests.post(url, files={"data": samples[0].read_bytes()}, headers=names, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.headers["X-Request-Id"]) == (200, "order-7.a")
    wait_until(lambda: b"order-7.a" in tight.log.read_bytes()[before:])
    requests.get(f"{tight.server.url}/after-it", timeout=TIMEOUT_S)
    wait_until(lambda: b"/after-it" in tight.log.read_bytes()[before:])
    (line,) = [line for line in tight.log.read_bytes()[before:].splitlines() if b"order-7.a" in line]
    assert b"(gateway/" not in tight.log.read_bytes(), "HAProxy's own line for what the gateway asked"
    told = json.loads(line)
    assert (told["path"], told["status"], told["server"], told["traceparent"]) == ("/api/predict", 200, "web", trace)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/docs/..%2fapi/predict", "/static/../api/predict", "//api/predict"],
)
def test_no_path_leads_around_the_rules_of_another(server, method, path):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=TIMEOUT_S)  # paths as they are
    connection.request(method, path, b"junk" if method == "POST" else None)
    response = connection.getresponse()
    code = json.loads(response.read())["error"]["code"]
    connection.close()
    assert response.status in {404, 405}
    assert code == "bad_request"


@pytest.mark.parametrize("key", ["", " ", "secret\n"])
def test_a_key_by_which_nobody_could_get_in_is_refused_at_the_start(mar, root, free_port, key):
    environment = os.environ | {"API_KEY": key}
    for program in (["serving.service.pod", "edge"], ["serving.local", "--port", str(free_port)]):
        command = [sys.executable, "-m", *program, "--mar", str(mar)]
        options = {"capture_output": True, "text": True, "timeout": TIMEOUT_S}
        done = subprocess.run(command, cwd=root, env=environment, check=False, **options)
        assert done.returncode == 1
        assert re.fullmatch(r"\w+: API_KEY must not be empty [^\n]*", done.stderr.splitlines()[-1])
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_pod_whose_torchserve_dies_refuses_what_it_had_and_sends_its_clients_elsewhere(mar, monkeypatch, root):
    """Its workers are stopped first, so that it has something. The edge says so at once, and not after a time limit."""
    samples = sorted((root / "serving" / "samples").iterdir())
    with running(mar) as broken, ThreadPoolExecutor(len(samples)) as pool:

        def send(sample, path="predictions/emnist"):
            headers = {"Content-Type": "application/octet-stream"}
            return requests.post(f"{broken.url}/{path}", data=sample.read_bytes(), headers=headers, timeout=TIMEOUT_S)

        java = java_of(broken)
        workers = java.children(recursive=True)
        for worker in workers:
            worker.suspend()
        answers = [pool.submit(send, sample) for sample in samples]
        time.sleep(1)
        for process in (*workers, java):
            process.kill()
        for answer in (*(answer.result() for answer in answers), send(samples[0]), send(samples[0], "api/predict")):
            assert answer.status_code == 503
            assert (answer.json()["error"]["code"], answer.headers["Retry-After"]) == ("overloaded", "1")
        assert send(samples[0]).headers["Connection"] == "close"
        assert not broken.ready()
        assert requests.get(broken.url, timeout=TIMEOUT_S).status_code == 200, "the page is there to say so"
        monkeypatch.setattr(pod, "MANAGEMENT_ADDRESS", broken.management_address)
        assert pod.main(["alive", "--mar", str(mar)]) == 1


@pytest.mark.parametrize(
    ("statuses", "alive", "started"),
    [(["READY", "READY"], 0, 0), (["UNLOADED", "READY"], 0, 1), (["UNLOADED", "LOADING"], 1, 1), ([], 1, 1)],
)
def test_a_pod_lives_while_one_worker_is_ready(management, monkeypatch, statuses, alive, started):
    monkeypatch.setattr(pod, "MANAGEMENT_ADDRESS", management(statuses))
    assert (pod.main(["alive"]), pod.main(["started"])) == (alive, started)


def test_what_probes_torchserve_asks_torchserve_alone(mar, server, root, free_port, monkeypatch):
    """The manifest's commands, with this service's address: no HAProxy is needed; a TorchServe that is away is dead."""
    deployment = yaml.safe_load((root / "k8s" / "40-deployment.yaml").read_text())["spec"]["template"]["spec"]
    (torchserve,) = [found for found in deployment["initContainers"] if found["name"] == "torchserve"]
    for probe in ("startupProbe", "livenessProbe"):
        program, option, module, command = torchserve[probe]["exec"]["command"]
        assert (program, option, module) == ("python", "-m", "serving.service.pod")
        for address, code in ((server.management_address, 0), (f"127.0.0.1:{free_port}", 1)):
            monkeypatch.setattr(pod, "MANAGEMENT_ADDRESS", address)
            assert pod.main([command, "--mar", str(mar)]) == code


def test_a_worker_that_dies_leaves_the_others_serving(server, root):
    picture = (root / "serving" / "samples" / "3_clean.png").read_bytes()
    statuses = []
    stop = threading.Event()

    def send():
        with requests.Session() as session:
            while not stop.is_set():
                headers = {"Content-Type": "image/png"}
                statuses.append(
                    session.post(
                        f"{server.url}/predictions/emnist", data=picture, headers=headers, timeout=TIMEOUT_S
                    ).status_code
                )

    thread = threading.Thread(target=send)
    thread.start()
    try:
        time.sleep(0.5)
        before = len(statuses)
        java_of(server).children(recursive=True)[0].kill()
        time.sleep(1)
    finally:
        stop.set()
        thread.join()
    server.wait_until_ready()
    assert 0 < before < len(statuses) - 10
    assert statuses[:before] == [200] * before
    assert statuses.count(200) >= len(statuses) - 1
    assert set(statuses) <= {200, 502}


def test_a_pod_without_its_archive_says_so(tmp_path, capsys):
    for command in ("torchserve", "edge"):
        assert pod.main([command, "--mar", str(tmp_path / "emnist.mar")]) == 1
        assert "is no model archive" in capsys.readouterr().err
    assert pod.main(["started", "--mar", str(tmp_path / "emnist.mar")]) == 1


def test_many_large_bodies_at_once_do_not_cost_the_service_its_memory(server, recognizer):
    """Forty of 15 MiB are more than Java's whole heap; the edge lets a few in at a time."""
    body = b"\x89PNG\r\n\x1a\n" + bytes(15 * 1024 * 1024)
    headers = {"Content-Type": "application/octet-stream"}
    with ThreadPoolExecutor(40) as pool:
        answers = list(
            pool.map(
                lambda _: requests.post(f"{server.url}/predictions/emnist", data=body, headers=headers, timeout=60),
                range(40),
            )
        )
    assert {answer.status_code for answer in answers} <= {400, 503}
    assert sum(answer.status_code == 400 for answer in answers) >= 4
    assert {answer.headers["X-Model-Version"] for answer in answers} == {recognizer.version}
    assert server.ready()


def test_many_large_pictures_at_once_do_not_cost_the_gateway_its_memory(server, root):
    """The limit is its container's. The process has been through the other tests, so its peak may be theirs."""
    manifest = yaml.safe_load((root / "k8s" / "40-deployment.yaml").read_text())
    (web,) = [c for c in manifest["spec"]["template"]["spec"]["initContainers"] if c["name"] == "web"]
    limit_mib = int(web["resources"]["limits"]["memory"].removesuffix("Mi"))
    picture = b"\x89PNG\r\n\x1a\n" + bytes(16 * 1024 * 1024 - 2000)
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(
                lambda _: requests.post(f"{server.url}/api/predict", files={"data": picture}, timeout=60), range(12)
            )
        )
    assert {answer.status_code for answer in answers} <= {400, 503}
    assert sum(answer.status_code == 400 for answer in answers) >= 4
    command = web_command(server.admin_socket.parent, server.model)
    (gateway,) = [child for child in psutil.Process().children() if child.cmdline() == command]
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    peak_mib = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    assert 16 < peak_mib < 0.75 * limit_mib


def test_clients_that_send_large_bodies_slowly_take_no_place_from_the_others(tight, samples):
    server = tight.server
    with contextlib.ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        for length in [100_000] * 12 + [1_000_000] * 12:
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=TIMEOUT_S))
            client.sendall(
                f"POST /predictions/emnist HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
                + bytes(20_000)
            )
        time.sleep(0.5)
        for sample in samples:
            answer = requests.post(f"{server.url}/predictions/emnist", data=sample.read_bytes(), timeout=TIMEOUT_S)
            assert (answer.status_code, answer.json().get("character")) == (200, sample.name[0])
