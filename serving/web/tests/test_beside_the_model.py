"""The gateway as a process beside TorchServe and HAProxy, as `make serve` and `docker run` start it."""

import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import requests

from serving.local import SAMPLES, free_ports, running
from serving.processes import ServerError

TIMEOUT_S = 30


def test_serve_starts_the_page_and_stops_it_first(root, mar):
    port, web_port = free_ports(2)
    command = [sys.executable, "-m", "serving.local", "--mar", str(mar), "--port", str(port), "--web-port", str(web_port)]
    environment = os.environ | {"PYTHONPATH": str(root), "API_KEY": "secret"}  # one key for the service and the page
    with subprocess.Popen(command, cwd=root.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
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


def test_a_taken_port_of_the_page_is_one_line(mar):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServerError, match=f"^port {port} is taken; choose another one: make serve WEB_PORT={port + 1}$"),
            running(mar, web_port=port),
        ):
            pass
    (port,) = free_ports(1)
    with pytest.raises(ServerError, match=f"WEB_PORT={port + 1}$"), running(mar, port, web_port=port):
        pass


def test_make_and_the_image_start_the_page(root):
    make = (root / "Makefile").read_text()
    assert re.search(r"-m serving\.local --port \$\(PORT\) --web-port \$\(WEB_PORT\)", make)
    assert re.search(r"^WEB_PORT\s*\?= 8000$", make, re.MULTILINE)
    image = (root / "Dockerfile.serve").read_text()
    assert '"--web-port", "8000"]' in image
    assert re.search(r"^EXPOSE .*\b8000\b", image, re.MULTILINE)
