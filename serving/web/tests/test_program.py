"""The gateway as a program: beside TorchServe and HAProxy as `make serve` starts it, and alone as a pod runs it."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import requests

from serving.local import SAMPLES
from serving.service import pod

TIMEOUT_S = 30


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("one_worker")
def test_serve_starts_the_page_and_stops_it_in_order(root, mar, program, free_port):
    command = [sys.executable, "-m", "serving.local", "--mar", str(mar), "--port", str(free_port)]
    environment = os.environ | {"PYTHONPATH": str(root), "API_KEY": "secret"}
    process = program(
        command, cwd=root.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("curl ")
    url = f"http://127.0.0.1:{free_port}"
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
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_make_serves_the_page_on_the_port_of_the_service(root):
    """What the image does is a container test."""
    command = ["make", "--dry-run", "serve", "PORT=9001"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert "-m serving.local --port 9001\n" in done.stdout


def test_a_gateway_that_ends_is_started_again_and_its_pod_does_not_notice(root, program, tmp_path, monkeypatch):
    monkeypatch.setenv("SOCKETS", str(tmp_path))
    assert pod.main(["answers"]) == 1
    process = program(
        [sys.executable, "-m", "serving.service.pod", "web"],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: pod.main(["answers"]) == 0)
    (gateway,) = psutil.Process(process.pid).children()
    gateway.kill()
    wait_until(lambda: pod.main(["answers"]) == 1)
    wait_until(lambda: pod.main(["answers"]) == 0)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert re.search(r"^web: the gateway ended with exit code -9; starting it again$", stderr, re.MULTILINE)
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_gateway_that_hangs_is_noticed(root, program, tmp_path, monkeypatch):
    monkeypatch.setenv("SOCKETS", str(tmp_path))
    monkeypatch.setattr(pod, "SOCKET_TIMEOUT_S", 0.5)
    process = program([sys.executable, "-m", "serving.web", "--sockets", str(tmp_path)], cwd=root)
    wait_until(lambda: pod.main(["answers"]) == 0)
    process.send_signal(signal.SIGSTOP)
    assert pod.main(["answers"]) == 1
    process.send_signal(signal.SIGCONT)
    assert pod.main(["answers"]) == 0
