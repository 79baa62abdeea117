"""The gateway as a program: alone, and beside TorchServe and HAProxy as `make serve` and `docker run` start it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import requests

from serving.local import SAMPLES, reserved_ports, running
from serving.service.processes import ServerError

TIMEOUT_S = 30


@pytest.fixture
def ports():
    with reserved_ports(2) as ports:
        yield ports


def test_serve_starts_the_page_and_stops_it_first(root, mar, program, ports):
    port, web_port = ports
    command = [
        sys.executable,
        "-m",
        "serving.local",
        "--mar",
        str(mar),
        "--port",
        str(port),
        "--web-port",
        str(web_port),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "API_KEY": "secret",
        "TS_DEFAULT_WORKERS_PER_MODEL": "1",
    }  # one key for the service and the page
    process = program(
        command, cwd=root.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("curl ")
    url = f"http://127.0.0.1:{web_port}"
    assert "<canvas" in requests.get(url, timeout=TIMEOUT_S).text
    picture = (SAMPLES / "3_clean.png").read_bytes()
    assert requests.post(f"{url}/api/predict", data=picture, timeout=TIMEOUT_S).status_code == 401
    answer = requests.post(f"{url}/api/predict", data=picture, headers={"X-API-Key": "secret"}, timeout=TIMEOUT_S)
    assert answer.json()["character"] == "3"
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert f"the page: {url}\n" in stderr
    assert "secret" not in stderr
    assert '"path": "/api/predict"' in stderr, "its log is among the others"
    assert '"message": "Finished server process' in stderr, "it ended in order"
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_a_taken_port_of_the_page_is_one_line(mar, free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                ServerError, match=f"^port {port} is taken; choose another one: make serve WEB_PORT={port + 1}$"
            ),
            running(mar, web_port=port),
        ):
            pass
    with pytest.raises(ServerError, match=f"WEB_PORT={free_port + 1}$"), running(mar, free_port, web_port=free_port):
        pass


def test_make_serves_the_page_on_its_port(root):
    """What the image does is a container test."""
    for given, web_port in ((), "8000"), (("WEB_PORT=9001",), "9001"):
        done = subprocess.run(
            ["make", "--dry-run", "serve", *given],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        assert f"-m serving.local --port 8080 --web-port {web_port}\n" in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_IN_FLIGHT", "many"),
        ("BODY_TIMEOUT_S", "-1"),
        ("UPSTREAM", "emnist:80"),
        ("API_KEY", ""),
        ("API_KEY", " "),
        ("UPSTREAM_API_KEY", "k\n"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(root, free_port, name, value):
    command = [sys.executable, "-m", "serving.web", "--port", str(free_port)]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"web: {name} must (?:not )?be [^\n]*\n", done.stderr)


def launch(root, port, **environment):
    command = [sys.executable, "-m", "serving.web", "--port", str(port)]
    return subprocess.Popen(command, cwd=root, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def wait_for(url):
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return requests.get(f"{url}/live", timeout=TIMEOUT_S)
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_answers_what_it_has_and_ends(root, start, service, free_port, number):
    """The gateway under test has another gateway as its service, whose answer comes after the signal."""
    asked, free = threading.Event(), threading.Event()

    async def wait(_request):
        asked.set()
        while not free.is_set():
            await asyncio.sleep(0.01)
        return httpx.Response(404)

    service.reply = wait
    behind = start()
    with launch(root, free_port, UPSTREAM=behind) as process, ThreadPoolExecutor(1) as pool, requests.Session() as idle:
        wait_for(f"http://127.0.0.1:{free_port}")
        idle.get(
            f"http://127.0.0.1:{free_port}/live", timeout=TIMEOUT_S
        )  # its connection stays open, and is not waited for
        ready = pool.submit(requests.get, f"http://127.0.0.1:{free_port}/ready", timeout=TIMEOUT_S)
        assert asked.wait(TIMEOUT_S)
        process.send_signal(number)
        time.sleep(0.3)
        free.set()
        assert ready.result().status_code == 503
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert [line["status"] for line in lines if line.get("path") == "/ready"] == [503]
    assert {"time", "level"} <= set(lines[0])


def test_a_taken_port_is_said(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with launch(root, taken.getsockname()[1]) as process:
            _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert "address already in use" in stderr
    assert "Traceback" not in stderr
