"""The contract over HTTP, and that REST, batch and evaluator say the same."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import requests
import torch
from PIL import Image

from serving.batch import __main__ as batch
from serving.client.answers import ServiceError
from serving.client.client import Client
from serving.local import running
from serving.package import package
from serving.service.processes import ServerError

TIMEOUT_S = 30


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def url(server):
    return f"{server.url}/predictions/emnist"


@pytest.fixture(scope="module")
def picture(emnist):
    return png(255 - emnist.images[int((emnist.labels == emnist.classes.index("S")).nonzero()[0])].numpy())


def test_rest_batch_and_evaluator_say_the_same(server, emnist, recognizer, model_path, tmp_path):
    """Every test image of the fixture, saved as PNG: class and probability, unfolded and folded, within 1e-4."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(emnist.images.numpy()):
        (pictures / f"{number:04d}.png").write_bytes(png(image))
    evaluated = recognizer.probabilities(emnist.images.numpy())
    output = tmp_path / "out.csv"
    assert (
        batch.main(
            ["--input", str(pictures), "--output", str(output), "--model", str(model_path), "--alphabet", "classes"]
        )
        == 0
    )
    rows = list(csv.DictReader(output.open(newline="")))
    assert len(rows) == len(emnist)
    with Client(server.url) as client:
        for number, row in enumerate(rows):
            rest = client.predict((pictures / f"{number:04d}.png").read_bytes(), alphabet="classes", top_k=47)
            best = int(evaluated[number].argmax())
            assert rest.character == row["character"] == emnist.classes[best]
            assert float(row["confidence"]) == pytest.approx(evaluated[number, best], abs=1e-4)
            said = {a.character: a.confidence for a in (rest, *rest.alternatives)}
            assert np.allclose([said[c] for c in emnist.classes], evaluated[number], atol=1e-4)


def test_the_three_ways_to_send_a_picture(url, picture, recognizer):
    ways = [
        requests.post(url, data=picture, headers={"Content-Type": "application/octet-stream"}, timeout=TIMEOUT_S),
        requests.post(url, data=picture, headers={"Content-Type": "image/png"}, timeout=TIMEOUT_S),
        requests.post(url, files={"data": picture}, timeout=TIMEOUT_S),
    ]
    assert len({way.text for way in ways}) == 1
    for way in ways:
        assert way.status_code == 200
        assert way.headers["Content-Type"] == "application/json"
        assert way.headers["X-Model-Version"] == recognizer.version
        assert way.json()["character"] == "S"


def test_query_parameters_reach_the_handler(url, picture):
    body = requests.post(f"{url}?alphabet=digits&top_k=2", files={"data": picture}, timeout=TIMEOUT_S).json()
    assert body["alphabet"] == "digits"
    assert body["character"] in "0123456789"
    assert len(body["alternatives"]) == 1


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        (b"", "", 400, "invalid_image"),
        (b"junk", "", 415, "unsupported_format"),
        (png(np.zeros((50, 50), np.uint8)), "", 422, "blank_image"),
        (None, "?alphabet=greek", 400, "unknown_alphabet"),
        (None, "?top_k=0", 400, "bad_request"),
        (None, "?top_k=99", 400, "bad_request"),
        (None, "?alphbet=vin", 400, "bad_request"),
        (b"x" * (16 * 1024 * 1024 + 1), "", 413, "image_too_large"),
    ],
)
def test_errors_have_their_status_code_and_message(url, picture, recognizer, body, query, status, code):
    headers = {"Content-Type": "application/octet-stream"}
    response = requests.post(url + query, data=picture if body is None else body, headers=headers, timeout=TIMEOUT_S)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert len(response.json()["error"]["message"]) > 10
    assert response.headers["X-Model-Version"] == recognizer.version


def test_what_the_edge_answers_itself_has_the_same_form(server, url, picture):
    def chunks():
        for _ in range(17):
            yield b"x" * 1024 * 1024

    answers = [
        (requests.get(url, timeout=TIMEOUT_S), 405),
        (requests.get(f"{server.url}/models", timeout=TIMEOUT_S), 404),
        (requests.post(f"{server.url}/predictions/other", files={"data": picture}, timeout=TIMEOUT_S), 404),
        *(
            (
                requests.post(
                    url, data=chunks(), headers={"Content-Type": "application/octet-stream"}, timeout=TIMEOUT_S
                ),
                413,
            )
            for _ in range(10)
        ),
    ]
    for response, status in answers:
        assert response.status_code == status
        assert set(response.json()["error"]) == {"code", "message"}
        assert response.headers["X-Model-Version"]


def test_neighbours_of_bad_pictures_get_their_answers(server, picture):
    """Enough at once that TorchServe batches good and bad together."""

    def send(number):
        with Client(server.url) as client:
            try:
                return client.predict(b"junk" if number % 3 == 0 else picture).character
            except ServiceError as error:
                return error.code

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(120)))
    assert answers == ["unsupported_format" if number % 3 == 0 else "S" for number in range(120)]


def test_the_client_says_what_went_wrong(server, picture, free_port):
    with Client(server.url) as client:
        with pytest.raises(ServiceError, match="unknown alphabet 'greek'") as caught:
            client.predict(picture, alphabet="greek")
        assert (caught.value.code, caught.value.status) == ("unknown_alphabet", 400)
    nobody = f"http://127.0.0.1:{free_port}"
    with Client(nobody) as client, pytest.raises(ServiceError, match="cannot be reached") as caught:
        client.predict(picture)
    assert (caught.value.code, caught.value.status) == ("unreachable", None)


def test_a_taken_port_and_a_missing_archive_are_refused(server, mar, tmp_path):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ServerError, match=f"port {port} is taken"), running(mar, port):
        pass
    with pytest.raises(ServerError, match="make mar"), running(tmp_path / "missing.mar"):
        pass
    (tmp_path / "junk.mar").write_bytes(b"junk")
    with pytest.raises(ServerError, match="is no model archive"), running(tmp_path / "junk.mar"):
        pass


def descendants(pid):
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.slow
def test_serve_stops_everything_it_started(root, mar, program, free_port):
    """At Ctrl-C; SIGTERM is tried in serving/web/tests."""
    command = [sys.executable, "-m", "serving.local", "--mar", str(mar), "--port", str(free_port)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = program(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline().strip()
    assert line.startswith("curl ")
    answer = subprocess.run(line, shell=True, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert json.loads(answer.stdout)["character"] == "3"
    children = descendants(process.pid)
    assert len(children) >= 5, "Java, two workers, the gateway and HAProxy"
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


@pytest.mark.usefixtures("one_worker")
def test_a_server_that_dies_is_reported(root, mar, program, free_port):
    command = [sys.executable, "-m", "serving.local", "--mar", str(mar), "--port", str(free_port)]
    process = program(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    (java,) = [child for child in psutil.Process(process.pid).children() if "java" in child.name()]
    children = descendants(process.pid)
    java.kill()
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "java ended by itself" in stderr
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


@pytest.mark.usefixtures("one_worker")
def test_a_model_that_cannot_load_is_one_line(mar, tmp_path):
    broken = tmp_path / "emnist.mar"
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"broken" if name == "emnist.pt" else source.read(name))
    with (
        pytest.raises(ServerError, match=r"^the model cannot be loaded: .*is not a model made by [^\n]*$"),
        running(broken),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(model_path, tmp_path):
    package(model_path, tmp_path / "emnist.mar", device="gpu")
    started = time.monotonic()
    with (
        pytest.raises(ServerError, match=r"^the model cannot be loaded: [^\n]*no GPU is visible to this worker$"),
        running(tmp_path / "emnist.mar"),
    ):
        pass
    assert time.monotonic() - started < TIMEOUT_S
