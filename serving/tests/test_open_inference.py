"""KServe's protocols at the service's port, by their own client, and what the edge adds for everybody."""

import base64
import io
import json
import time

import numpy as np
import pytest
import requests
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

TIMEOUT_S = 30
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def samples(root):
    return {path.name[0]: path.read_bytes() for path in sorted((root / "serving" / "samples").iterdir())}


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def pictures_tensor(pictures):
    tensor = triton.InferInput("picture", [len(pictures)], "BYTES")
    return tensor.set_data_from_numpy(np.array(list(pictures), object))


def test_tritonclient_finds_the_server_and_the_model(client, recognizer):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("emnist")
    assert client.is_model_ready("emnist", recognizer.version)
    assert not client.is_model_ready("emnist", "1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("emnist", recognizer.version)
    assert metadata["versions"] == [recognizer.version]
    assert {"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]} in metadata["inputs"]


@pytest.mark.parametrize("version", ["", "this"])
def test_tritonclient_reads_pictures_and_prepared_images(client, samples, recognizer, version):
    version = recognizer.version if version else ""
    result = client.infer("emnist", [pictures_tensor(samples.values())], model_version=version, request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert [text.decode() for text in result.as_numpy("character")] == list(samples)
    assert result.as_numpy("ascii").tolist() == [ord(c) for c in samples]
    assert result.as_numpy("confidence").dtype == np.float32
    outputs = [triton.InferRequestedOutput("image"), triton.InferRequestedOutput("confidence", binary_data=False)]
    seen = client.infer(
        "emnist", [pictures_tensor(samples.values())], outputs=outputs, parameters={"alphabet": "vin", "top_k": 1}
    )
    images = seen.as_numpy("image")
    assert (images.shape, images.dtype) == ((len(samples), 28, 28), np.uint8)
    for binary in (True, False):
        tensor = triton.InferInput("image", list(images.shape), "UINT8").set_data_from_numpy(images, binary_data=binary)
        again = client.infer("emnist", [tensor], model_version=version)
        assert [text.decode() for text in again.as_numpy("character")] == list(samples)
        assert again.as_numpy("confidence") == pytest.approx(result.as_numpy("confidence"), abs=1e-5)


def test_tritonclient_is_told_what_was_expected(client, samples):
    stream = io.BytesIO()
    Image.new("L", (20, 20), 255).save(stream, "PNG")
    images = np.zeros((1, 28, 28), np.float32)
    tensor = triton.InferInput("image", [1, 28, 28], "FP32").set_data_from_numpy(images)
    with pytest.raises(InferenceServerException, match=r"\[400\] bad_request: input 'image' must be of datatype UINT8"):
        client.infer("emnist", [tensor])
    with pytest.raises(InferenceServerException, match=r"\[404\].*no model of that name"):
        client.infer("other", [pictures_tensor(samples.values())])
    with pytest.raises(InferenceServerException, match=r"\[404\].*no such version"):
        client.infer("emnist", [pictures_tensor(samples.values())], model_version="1")
    with pytest.raises(InferenceServerException, match=r"\[415\].*without Content-Encoding"):
        client.infer("emnist", [pictures_tensor(samples.values())], request_compression_algorithm="gzip")
    with pytest.raises(InferenceServerException, match=r"\[422\] blank_image: picture 0"):
        client.infer(
            "emnist",
            [triton.InferInput("picture", [1], "BYTES").set_data_from_numpy(np.array([stream.getvalue()], object))],
        )


def test_v1_names_the_model_and_answers(server, samples):
    assert requests.get(f"{server.url}/v1/models", timeout=TIMEOUT_S).json() == {"models": ["emnist"]}
    assert requests.get(f"{server.url}/v1/models/emnist", timeout=TIMEOUT_S).json() == {"name": "emnist", "ready": True}
    instances = [{"b64": base64.b64encode(data).decode()} for data in [*samples.values(), b"junk"]]
    answer = requests.post(f"{server.url}/v1/models/emnist:predict", json={"instances": instances}, timeout=TIMEOUT_S)
    assert answer.status_code == 200
    *good, bad = answer.json()["predictions"]
    assert [prediction["character"] for prediction in good] == list(samples)
    assert bad["error"]["code"] == "unsupported_format"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/emnist/infer", 405),
        ("PUT", "/v2/models/emnist", 405),
        ("PUT", "/v2/models/emnist/infer", 405),
        ("PUT", "/v1/models/emnist:predict", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/models/emnist/versions/7/ready", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/emnist/config", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("GET", "/v1/models/other", 404),
        ("DELETE", "/v2", 405),
    ],
)
def test_errors_on_kserves_paths_are_one_text(server, method, path, status):
    answer = requests.request(method, server.url + path, timeout=TIMEOUT_S)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_a_body_is_a_picture_whatever_its_content_type_says(server, samples):
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "image/png; charset=x", ""):
        answer = requests.post(
            f"{server.url}/predictions/emnist", data=samples["3"], headers={"Content-Type": kind}, timeout=TIMEOUT_S
        )
        assert (answer.status_code, answer.json()["character"]) == (200, "3"), kind


def test_headers_that_would_kill_a_worker_are_refused(server, samples):
    for headers in ({"X-Name": b"\xff\xfe"}, {"Content-Type": b"image/\xff"}):
        answer = requests.post(
            f"{server.url}/predictions/emnist", data=samples["3"], headers=headers, timeout=TIMEOUT_S
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


def test_a_form_is_chosen_by_the_path_alone(server, samples):
    answer = requests.post(
        f"{server.url}/predictions/emnist", data=samples["3"], headers={"X-Protocol": "v2-metadata"}, timeout=TIMEOUT_S
    )
    assert answer.json()["character"] == "3"


def test_requests_have_an_id_and_hand_on_their_trace(tight, samples):
    url = f"{tight.server.url}/predictions/emnist?alphabet=digits"
    before = tight.log.stat().st_size
    given = requests.post(
        url, data=samples["3"], headers={"X-Request-Id": "order-66", "traceparent": TRACE}, timeout=TIMEOUT_S
    )
    made = requests.post(
        url, data=samples["3"], headers={"X-Request-Id": 'a"b', "traceparent": "00-x"}, timeout=TIMEOUT_S
    )
    requests.get(f"{tight.server.url}/ready", timeout=TIMEOUT_S)
    refused = requests.get(f'{tight.server.url}/no"path', timeout=TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while "no%22path" not in (logged := tight.log.read_bytes()[before:].decode()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    assert given.headers["X-Request-Id"] == "order-66"
    assert len(made.headers["X-Request-Id"]) == 36
    assert refused.headers["X-Request-Id"]
    assert [(line["request_id"], line["status"]) for line in lines] == [
        ("order-66", 200),
        (made.headers["X-Request-Id"], 200),
        (refused.headers["X-Request-Id"], 404),
    ]
    assert [line["traceparent"] for line in lines] == [TRACE, "-", "-"]
    assert [line["path"] for line in lines] == ["/predictions/emnist", "/predictions/emnist", "/no%22path"]
    assert lines[0]["ms"] >= lines[0]["server_ms"] >= 0
    assert "digits" not in logged, "a query may hold what is nobody's business"


def test_answers_are_no_pages_and_no_other_site_may_ask(server, samples):
    answer = requests.post(
        f"{server.url}/predictions/emnist",
        data=samples["3"],
        headers={"Origin": "https://example.org"},
        timeout=TIMEOUT_S,
    )
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
