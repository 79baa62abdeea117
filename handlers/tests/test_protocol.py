import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from handlers.protocols import kserve_v1, service
from handlers.protocols.messages import STATUS
from handlers.protocols.service import answer_rows


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

    read = service.read_image
    monkeypatch.setattr(service, "read_image", faulty)
    first, second = answer_rows(recognizer, [{"data": b"trap"}, {"data": picture}])
    assert first.status == 500
    assert json.loads(first.body)["error"]["code"] == "internal_error"
    assert second.status == 200


def test_a_fault_in_an_answer_costs_no_other(recognizer, picture, monkeypatch):
    def faulty(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(kserve_v1, "answer", faulty)
    instances = json.dumps({"instances": [{"b64": base64.b64encode(picture).decode()}]}).encode()
    first, second = answer_rows(recognizer, [{"data": instances}, {"data": picture}], [{"x-protocol": "v1"}, {}])
    assert first.status == 500
    assert json.loads(first.body)["error"].startswith("internal_error")
    assert second.status == 200


def test_what_would_take_too_long_is_refused_in_time(recognizer, picture, monkeypatch):
    monkeypatch.setattr(service, "FIRST_S", -1.0)
    (reply,) = answer_rows(recognizer, [{"data": picture}])
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] == "overloaded"
    assert reply.headers["Retry-After"] == "1"


def beside_a_large_one(large, small, place, count=16):
    """Rows of one picture `small`, which differ in top_k, and at `place` a row of V1 with the pictures `large`;
    headers.
    """
    rows = [{"data": small, "top_k": str(number + 1)} for number in range(count)]
    headers = [{} for _ in rows]
    instances = [{"b64": base64.b64encode(picture).decode()} for picture in large]
    rows[place], headers[place] = {"data": json.dumps({"instances": instances}).encode()}, {"x-protocol": "v1"}
    return rows, headers


def check_neighbours(replies, place):
    """Each has its answer, in its place; what the large one is told of each of its pictures: a character or an error's
    code.
    """
    for number, reply in enumerate(replies):
        assert reply.status == 200
        if number != place:
            assert len(json.loads(reply.body)["alternatives"]) == number
    predictions = json.loads(replies[place].body)["predictions"]
    return [answer.get("character") or answer["error"]["code"] for answer in predictions]


@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_large_request_takes_no_time_of_its_neighbours(recognizer, picture, monkeypatch, place):
    """By a clock that only decoding moves: a second for each picture of the large request, half of one for the
    others.
    """
    now = 0.0

    def slow(data, size):
        nonlocal now
        now += 0.5 if data == picture else 1.0
        return read(picture, size)

    read = service.read_image
    monkeypatch.setattr(service, "read_image", slow)
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now))
    rows, headers = beside_a_large_one([b"slow"] * 1024, picture, place)
    said = check_neighbours(answer_rows(recognizer, rows, headers), place)
    assert said == ["K"] * 3 + ["overloaded"] * 1021, "what the others left of 10 s"
    assert now == 15 * 0.5 + 3


def test_rows_of_equal_size_have_equal_shares_and_each_its_first_picture(recognizer, picture, monkeypatch):
    now = 0.0

    def slow(*_):
        nonlocal now
        now += 3.0
        return read(picture, 28)

    read = service.read_image
    monkeypatch.setattr(service, "read_image", slow)
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now))
    instances = json.dumps({"instances": [{"b64": "AAAA"}] * 3}).encode()
    replies = answer_rows(recognizer, [{"data": instances}] * 8, [{"x-protocol": "v1"}] * 8)
    read_of = [sum("character" in answer for answer in json.loads(reply.body)["predictions"]) for reply in replies]
    assert read_of == [1] * 7 + [0], "the eighth would begin after 21 s"


def test_many_large_pictures_leave_their_neighbours_time(recognizer, picture, monkeypatch):
    """With pictures that take their time, and less of it in all."""
    monkeypatch.setattr(service, "READING_S", 0.3)
    canvas = np.full((2000, 2000), 255, np.uint8)
    canvas[500:1500, 950:1050] = 0
    rows, headers = beside_a_large_one([png(canvas)] * 100, picture, 0)
    said = check_neighbours(answer_rows(recognizer, rows, headers), 0)
    assert said[0] != "overloaded"
    assert said[-1] == "overloaded"
