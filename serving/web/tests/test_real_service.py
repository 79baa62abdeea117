"""The gateway behind the real service's edge."""

import io

import numpy as np
import pytest
import requests
from PIL import Image

from serving.local import SAMPLES

TIMEOUT_S = 30


def post(url, query="", **options):
    return requests.post(f"{url}/api/predict{query}", timeout=TIMEOUT_S, **options)


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_the_samples_are_read_as_over_rest(server):
    for sample in sorted(SAMPLES.iterdir()):
        body = post(server.url, "?top_k=3", data=sample.read_bytes()).json()
        rest = requests.post(
            f"{server.url}/predictions/emnist", files={"data": sample.read_bytes()}, timeout=TIMEOUT_S
        ).json()
        assert body["character"] == rest["character"] == sample.name[0]
        assert body["confidence"] == pytest.approx(rest["confidence"], abs=1e-5)
        assert [a["character"] for a in body["alternatives"]] == [a["character"] for a in rest["alternatives"]]
        assert set(rest) <= set(body)
        assert len(body["image"]) == 784


def test_pixels_are_read_as_they_are(server, emnist, recognizer):
    for image in emnist.images.numpy()[:12]:
        response = post(server.url, "?alphabet=classes&top_k=1", json={"pixels": image.ravel().tolist()})
        body = response.json()
        assert body["image"] == image.ravel().tolist()
        probabilities = recognizer.probabilities(image[None])[0]
        assert body["character"] == emnist.classes[int(probabilities.argmax())]
        assert body["confidence"] == pytest.approx(float(probabilities.max()), abs=1e-4)
        assert body["model_version"] == response.headers["X-Model-Version"] == recognizer.version


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        (b"", "", 400, "invalid_image"),
        (b"junk", "", 415, "unsupported_format"),
        (png(np.zeros((50, 50), np.uint8)), "", 422, "blank_image"),
        (b"junk", "?alphabet=greek", 400, "unknown_alphabet"),
        (b"junk", "?alphabet=digits&top_k=11", 400, "bad_request"),
        (b"x" * (16 * 1024 * 1024 - 1024), "", 415, "unsupported_format"),
        (b"x" * (16 * 1024 * 1024 - 8), "", 413, "image_too_large"),
        (b"x" * (16 * 1024 * 1024 + 1), "", 413, "image_too_large"),
    ],
)
def test_errors_of_the_real_service(server, body, query, status, code):
    response = post(server.url, query, data=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert len(response.json()["error"]["message"]) > 10
