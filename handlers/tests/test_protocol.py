import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from handlers import protocol, v1
from handlers.messages import STATUS
from handlers.protocol import answer_rows


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def picture(emnist):
    return png(255 - emnist.images[int((emnist.labels == emnist.classes.index("K")).nonzero()[0])].numpy())


def answer(recognizer, **row):
    (reply,) = answer_rows(recognizer, [row])
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize("field", ["data", "body"])
def test_a_good_answer_has_the_contracts_form(recognizer, picture, field):
    status, body = answer(recognizer, **{field: bytearray(picture)})
    assert status == 200
    assert list(body) == ["character", "ascii", "confidence", "alphabet", "alternatives"]
    assert (body["character"], body["ascii"], body["alphabet"]) == ("K", 75, "alnum")
    assert 0.5 < body["confidence"] <= 1
    assert len(body["alternatives"]) == 2
    assert list(body["alternatives"][0]) == ["character", "confidence"]


@pytest.mark.parametrize(("top_k", "alternatives"), [(b"1", 0), ("5", 4), (b"10", 9)])
def test_top_k_counts_the_answer_itself(recognizer, picture, top_k, alternatives):
    status, body = answer(recognizer, data=picture, alphabet=b"digits", top_k=top_k)
    assert status == 200
    assert body["character"] in "0123456789"
    assert len(body["alternatives"]) == alternatives


BAD_ROWS = {
    "no picture": ({}, "bad_request"),
    "form": ({"\x89PNG\r\n": b""}, "bad_request"),
    "two pictures": ({"data": b"x", "body": b"y"}, "bad_request"),
    "json": ({"body": {"picture": 1}}, "bad_request"),
    "text": ({"body": "hello"}, "bad_request"),
    "unknown parameter": ({"data": b"x", "topk": b"1"}, "bad_request"),
    "alphabet": ({"data": b"x", "alphabet": b"greek"}, "unknown_alphabet"),
    "top_k 0": ({"data": b"x", "top_k": b"0"}, "bad_request"),
    "top_k 37": ({"data": b"x", "top_k": b"37"}, "bad_request"),
    "top_k 11 digits": ({"data": b"x", "alphabet": b"digits", "top_k": b"11"}, "bad_request"),
    "top_k -1": ({"data": b"x", "top_k": b"-1"}, "bad_request"),
    "top_k text": ({"data": b"x", "top_k": b"many"}, "bad_request"),
    "top_k huge": ({"data": b"x", "top_k": b"9" * 5000}, "bad_request"),
    "0 bytes": ({"data": b""}, "invalid_image"),
    "junk": ({"data": b"junk"}, "unsupported_format"),
    "blank": ({"data": png(np.full((40, 40), 200, np.uint8))}, "blank_image"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_have_a_status_a_code_and_a_message(recognizer, name):
    row, code = BAD_ROWS[name]
    status, body = answer(recognizer, **row)
    assert body["error"]["code"] == code
    assert status == STATUS[code]
    assert 400 <= status < 500
    assert len(body["error"]["message"]) > 10


def test_neighbours_of_bad_rows_get_their_answers(recognizer, picture):
    rows = []
    for row, _ in BAD_ROWS.values():
        rows += [row, {"data": picture}]
    replies = answer_rows(recognizer, rows)
    assert len(replies) == len(rows)
    alone = json.loads(answer_rows(recognizer, [{"data": picture}])[0].body)
    for bad, good in zip(replies[::2], replies[1::2], strict=True):
        assert 400 <= bad.status < 500
        assert good.status == 200
        body = json.loads(good.body)
        assert body["character"] == alone["character"]
        assert body["confidence"] == pytest.approx(alone["confidence"], abs=1e-5)


def test_a_fault_in_one_row_costs_no_other(recognizer, picture, monkeypatch):
    def faulty(data, size):
        if data == b"trap":
            raise ZeroDivisionError
        return read(data, size)

    read = protocol.read_image
    monkeypatch.setattr(protocol, "read_image", faulty)
    first, second = answer_rows(recognizer, [{"data": b"trap"}, {"data": picture}])
    assert first.status == 500
    assert json.loads(first.body)["error"]["code"] == "internal_error"
    assert second.status == 200


def test_a_fault_in_an_answer_costs_no_other(recognizer, picture, monkeypatch):
    def faulty(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(v1, "answer", faulty)
    instances = json.dumps({"instances": [{"b64": base64.b64encode(picture).decode()}]}).encode()
    first, second = answer_rows(recognizer, [{"data": instances}, {"data": picture}], [{"x-protocol": "v1"}, {}])
    assert first.status == 500
    assert json.loads(first.body)["error"].startswith("internal_error")
    assert second.status == 200


def test_what_would_take_too_long_is_refused_in_time(recognizer, picture, monkeypatch):
    monkeypatch.setattr(protocol, "READING_S", -1.0)
    (reply,) = answer_rows(recognizer, [{"data": picture}])
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] == "overloaded"
    assert reply.headers["Retry-After"] == "1"
