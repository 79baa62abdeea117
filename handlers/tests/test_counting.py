"""What is counted for which requests, by one worker and by those that follow it. The service's tests see it through the
edge.
"""

import base64
import io
import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from prometheus_client import values
from prometheus_client.multiprocess import MultiProcessCollector

from handlers import telemetry
from handlers.protocols.service import Observer, answer_rows
from handlers.telemetry import Metrics, Workers, since_start, start, take_number


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this process counts; the library's choice of a way to count is its process's."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv(telemetry.FOLDER_VARIABLE, str(tmp_path))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv(telemetry.PORT_VARIABLE, str(s.getsockname()[1]))
    return tmp_path


@pytest.fixture
def pictures(emnist):
    streams = [io.BytesIO() for _ in range(3)]
    for stream, image in zip(streams, emnist.images.numpy(), strict=False):
        Image.fromarray(image).save(stream, "PNG")
    return [stream.getvalue() for stream in streams]


def counted(folder):
    """Every series that is not 0, but for buckets and sums, by name and labels."""
    found = MultiProcessCollector.merge([str(path) for path in folder.glob("*.db")])
    samples = [sample for metric in found for sample in metric.samples if not sample.name.endswith(("_bucket", "_sum"))]
    return {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples if sample.value}


def test_a_batch_is_counted_by_what_became_of_it(folder, recognizer, pictures):
    observer = start("emnist", recognizer)
    assert isinstance(observer, Metrics)
    good, bad = base64.b64encode(pictures[0]).decode(), base64.b64encode(b"junk").decode()
    v1 = json.dumps({"instances": [{"b64": good}, {"b64": bad}, {"b64": good}]}).encode()
    v2 = json.dumps({"inputs": [{"name": "picture", "datatype": "BYTES", "shape": [2], "data": [good, bad]}]}).encode()
    rows = [
        {"body": pictures[1]},
        {"body": b"junk"},
        {"body": v1},
        {"body": v2},
        {"body": b"[]"},
        {"body": pictures[1], "alphabet": b"x"},
        {},
    ]
    forms = ["plain", "plain", "v1", "v2", "v2", "no such form", "v2-metadata"]
    headers = [{"x-protocol": form, "x-handed-on": f"{time.time_ns() // 1000};an-id"} for form in forms]
    headers[0].pop("x-handed-on")
    replies = answer_rows(recognizer, rows, headers, observer=observer)
    assert [reply.status for reply in replies] == [200, 415, 200, 415, 400, 400, 200]
    plain, first = json.loads(replies[0].body)["character"], json.loads(replies[2].body)["predictions"][0]["character"]
    expected = {
        ("emnist_model_info", *sorted(["emnist", recognizer.version])): 1,
        ("emnist_batch_requests_count",): 1,
        ("emnist_queue_seconds_count",): 6,
        ("emnist_preparation_seconds_count",): 7,
        ("emnist_model_seconds_count",): 1,
        ("emnist_model_pictures_count",): 1,
        ("emnist_confidence_count",): 3,
        ("emnist_errors_total", "plain", "unsupported_format"): 1,
        ("emnist_errors_total", "plain", "unknown_alphabet"): 1,
        ("emnist_errors_total", "unsupported_format", "v1"): 1,
        ("emnist_errors_total", "unsupported_format", "v2"): 1,
        ("emnist_errors_total", "bad_request", "v2"): 1,
        ("emnist_request_seconds_count", "plain"): 2,
        ("emnist_request_seconds_count", "v1"): 1,
        ("emnist_request_seconds_count", "v2"): 2,
        ("emnist_request_seconds_count", "v2-metadata"): 1,
        ("emnist_answers_total", first): 2,
    }
    expected[("emnist_answers_total", plain)] = expected.get(("emnist_answers_total", plain), 0) + 1
    assert counted(folder) == expected


@pytest.mark.parametrize("alphabet", ["alnum", "digits", "letters", "vin", "classes"])
def test_every_character_that_can_be_answered_has_a_series(folder, recognizer, alphabet):
    observer = start("emnist", recognizer)
    for character in recognizer.fold(alphabet).characters:
        observer.answered(character, 0.5)
    assert counted(folder)["emnist_confidence_count",] == len(recognizer.fold(alphabet).characters)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1000000;an-id", 9.0),
        ("10500000;", 0.0),
        ("1000000", 9.0),
        *((text, None) for text in (";1", "", "-5", "1e3", "9" * 30, "\u0663")),
    ],
)
def test_time_since_the_edge_is_never_negative_and_needs_its_header(text, seconds):
    assert since_start({"x-handed-on": text}, 10.0) == seconds
    assert since_start({}, 10.0) is None


def test_a_worker_goes_on_with_the_files_of_a_dead_one(folder):
    count = f"""
import pathlib, sys
from prometheus_client import values
from handlers.telemetry import Metrics, take_number
number, kept = take_number(pathlib.Path({str(folder)!r}))
values.ValueClass = values.MultiProcessValue(lambda: number)
Metrics("emnist", "v", "K").answered("K", 0.9)
print(number, flush=True)
sys.stdin.read()
"""
    seen = []
    for _ in range(2):
        pair = [
            subprocess.Popen([sys.executable, "-c", count], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        seen.append(sorted(process.stdout.readline().strip() for process in pair))
        (gauge,) = Workers(folder).collect()
        assert gauge.samples[0].value == 2
        for process in pair:
            process.kill()
            process.communicate()
    assert seen == [["0", "1"]] * 2
    assert counted(folder)["emnist_answers_total", "K"] == 4
    assert len(list(folder.glob("counter_*"))) == 2
    (gauge,) = Workers(folder).collect()
    assert gauge.samples[0].value == 0


def test_numbers_are_taken_once(tmp_path):
    first, second = take_number(tmp_path), take_number(tmp_path)
    assert (first[0], second[0]) == (0, 1)
    first[1].close()
    assert take_number(tmp_path)[0] == 0


def test_without_a_folder_or_with_a_port_that_is_taken_nothing_is_counted_and_all_is_answered(
    folder, recognizer, monkeypatch, caplog
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(telemetry.PORT_VARIABLE, str(taken.getsockname()[1]))
        assert type(start("emnist", recognizer)) is Observer
    assert "there are no metrics of this worker" in caplog.text
    monkeypatch.setenv(telemetry.FOLDER_VARIABLE, str(folder / "missing"))
    assert type(start("emnist", recognizer)) is Observer
    monkeypatch.delenv(telemetry.FOLDER_VARIABLE)
    assert type(start("emnist", recognizer)) is Observer
    image = np.zeros((28, 28), np.uint8)
    assert answer_rows(recognizer, [{"body": image.tobytes()}], observer=Observer())[0].status == 415
