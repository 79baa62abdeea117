"""The client as a library, against the real service and against one that misbehaves as it is told."""

import os
import threading
import time
from itertools import count, islice

import pytest
from fake_service import BUSY, OK, RESET, STALL, VERSION, Reply, answer, error, serving

from serving.client.answers import Alternative, Answer, ServiceError
from serving.client.client import AHEAD, MAX_PICTURE_BYTES, Client, Retries

SHORT = (2.0, 0.2)  # seconds to connect and to answer


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Time()


def refusal(client, picture=b"picture", **options):
    with pytest.raises(ServiceError) as caught:
        client.predict(picture, **options)
    return caught.value.code, caught.value.status


def test_an_answer_of_the_service_is_typed(server, root, recognizer):
    with Client(server.url) as client:
        answer = client.predict((root / "serving" / "samples" / "3_clean.png").read_bytes(), alphabet="vin", top_k=3)
        assert (answer.character, answer.ascii, answer.alphabet, answer.model_version) == (
            "3",
            51,
            "vin",
            recognizer.version,
        )
        assert len(answer.alternatives) == 2
        assert answer.confidence > 0.9 > answer.alternatives[0].confidence >= answer.alternatives[1].confidence


def test_many_pictures_of_the_service_are_in_order_and_a_bad_one_is_its_own(server, root):
    samples = sorted((root / "serving" / "samples").iterdir())
    pictures = [*samples, b"junk", root / "missing.png", b"x" * (MAX_PICTURE_BYTES + 1), samples[0].read_bytes()]
    with Client(server.url, concurrency=4) as client:
        results = list(client.predict_many(pictures, alphabet="vin"))
    assert [result.picture for result in results] == pictures
    assert [result.answer.character for result in results[: len(samples)]] == [sample.name[0] for sample in samples]
    assert [result.error.code for result in results[len(samples) : -1]] == [
        "unsupported_format",
        "unreadable",
        "image_too_large",
    ]
    assert [result.error.refused for result in results[len(samples) : -1]] == [True, False, True]
    assert results[-1].answer == results[0].answer
    assert all((result.answer is None) != (result.error is None) and result.seconds > 0 for result in results)


def test_what_is_sent_and_what_is_read():
    with serving() as service, Client(service.url + "/", api_key="secret") as client:
        expected = Answer("A", 65, 0.625, "alnum", (Alternative("4", 0.25), Alternative("R", 0.125)), VERSION)
        assert client.predict(b"picture", alphabet="a&b", top_k=2) == expected
        client.predict(b"")
    (path, headers, body), (bare, _, empty) = service.requests
    assert (path, bare) == ("/predictions/emnist?alphabet=a%26b&top_k=2", "/predictions/emnist")
    assert (headers["X-API-Key"], headers["Content-Type"], body, empty) == (
        "secret",
        "application/octet-stream",
        b"picture",
        b"",
    )


def test_503_is_sent_again_after_what_it_asks_for(clock):
    with serving(BUSY, BUSY) as service, Client(service.url, sleep=clock.sleep, clock=clock) as client:
        assert client.predict(b"picture").character == "A"
    assert [body for _, _, body in service.requests] == [b"picture"] * 3
    assert len(clock.slept) == 2
    assert all(2 <= slept <= 2 + limit for slept, limit in zip(clock.slept, (0.25, 0.5), strict=True))


def test_503_for_ever_ends_before_the_deadline(clock):
    retries = Retries(times=1000, deadline_s=30)
    with serving(then=BUSY) as service, Client(service.url, retries=retries, sleep=clock.sleep, clock=clock) as client:
        assert refusal(client) == ("overloaded", 503)
    assert 20 <= sum(clock.slept) <= 30
    assert len(service.requests) == len(clock.slept) + 1


@pytest.mark.parametrize(
    ("asked", "slept"),
    [("3600", 0), ("9" * 400, 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 4), ("-1", 4), ("nan", 4), ("0", 4)],
)
def test_retry_after_counts_in_seconds_within_the_deadline(clock, asked, slept):
    reply = Reply(503, b"<html>busy", {"Retry-After": asked})
    with (
        serving(then=reply) as service,
        Client(service.url, retries=Retries(times=4), sleep=clock.sleep, clock=clock) as client,
    ):
        assert refusal(client) == ("unexpected", 503)
    assert len(clock.slept) == slept == len(service.requests) - 1


def test_pauses_have_full_jitter_and_a_cap():
    retries = Retries(base_s=1, cap_s=8)
    for tried, longest in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (5000, 8)]:
        pauses = [retries.pause_s(tried, None) for _ in range(500)]
        assert 0 <= min(pauses) < 0.1 * longest
        assert 0.9 * longest < max(pauses) <= longest
    assert 5 <= retries.pause_s(0, "5") <= 6


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "bad_request"), (429, "busy"), (500, "internal_error"), (502, "internal_error"), (504, "deadline")],
)
def test_nothing_else_is_sent_again(clock, status, code):
    reply = Reply(status, error(code), {"Retry-After": "1"})
    with serving(reply) as service, Client(service.url, sleep=clock.sleep, clock=clock) as client:
        assert refusal(client) == (code, status)
        assert client.predict(b"picture")
    assert (len(service.requests), clock.slept) == (2, [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        [],
        "A",
        error("overloaded"),
        {"character": "A"},
        answer() | {"character": "AB"},
        answer() | {"character": 65},
        answer() | {"ascii": None},
        answer() | {"confidence": "high"},
        answer() | {"confidence": 1.5},
        answer() | {"confidence": float("nan")},
        answer() | {"alternatives": {"character": "B"}},
        answer() | {"alternatives": [None]},
    ],
)
def test_an_answer_of_another_form_is_no_traceback(body):
    with serving(Reply(200, body), Reply(418, body)) as service, Client(service.url) as client:
        assert refusal(client)[1] == 200
        assert refusal(client)[1] == 418


def test_a_slow_answer_is_given_up_and_not_sent_again():
    late = Reply(after_s=0.5)
    with (
        serving(late, OK, late, Reply(headers={"Content-Length": "1000"})) as service,
        Client(service.url, timeout_s=SHORT) as client,
    ):
        assert refusal(client) == ("timeout", None)
        assert client.predict(b"picture"), "the next one has a connection of its own"
        assert refusal(client) == ("timeout", None), "on a kept connection neither"
        assert refusal(client) == ("timeout", None), "nor within an answer"
    assert len(service.requests) == 4


def test_a_new_connection_that_breaks_is_reported(free_port):
    with serving(RESET, Reply(headers={"Connection": "close"}), RESET) as service, Client(service.url) as client:
        assert refusal(client) == ("unreachable", None)
        assert client.predict(b"picture")
        assert refusal(client) == ("unreachable", None), "after an answer that closed its connection, too"
    assert len(service.requests) == 3
    with (
        Client(f"http://127.0.0.1:{free_port}") as client,
        pytest.raises(ServiceError, match=r"cannot be reached: Connection refused$"),
    ):
        client.predict(b"picture")


def test_a_kept_connection_that_breaks_is_replaced_once():
    with serving(OK, RESET, OK, RESET, RESET) as service, Client(service.url) as client:
        assert client.predict(b"one")
        assert client.predict(b"two")
        assert [body for _, _, body in service.requests] == [b"one", b"two", b"two"]
        assert refusal(client) == ("unreachable", None)
    assert len(service.requests) == 5


def test_what_breaks_or_stalls_later_than_that_is_not_sent_again():
    cut = Reply(headers={"Content-Length": "1000", "Connection": "close"})
    with serving(OK, cut, OK, STALL) as service, Client(service.url, timeout_s=(0.2, 2.0)) as client:
        assert client.predict(b"picture")
        assert refusal(client) == ("unreachable", None), "within the answer"
        assert client.predict(b"picture")
        assert refusal(client, bytes(MAX_PICTURE_BYTES)) == ("timeout", None), "within the picture"
    assert len(service.requests) == 4


def test_connections_are_kept():
    with serving() as service, Client(service.url, concurrency=3) as client:
        for _ in range(5):
            client.predict(b"picture")
        assert service.connections == 1
        for _ in range(3):
            assert len(list(client.predict_many([b"picture"] * 20))) == 20
    assert service.connections <= 1 + 3, "one for each thread, over all calls"


def test_threads_share_a_client_and_not_a_connection():
    together = threading.Barrier(4)
    with serving(then=Reply(after_s=0.02)) as service, Client(service.url) as client:

        def work():
            together.wait()
            for _ in range(5):
                assert client.predict(b"picture").character == "A"

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(service.requests), service.connections) == (20, 4)


def test_no_more_than_asked_for_are_in_flight():
    with serving(then=Reply(after_s=0.02)) as service, Client(service.url, concurrency=3) as client:
        assert len(list(client.predict_many([b"picture"] * 30))) == 30
    assert service.most_in_flight == 3


def test_results_are_in_order_whoever_is_slow():
    def reply(picture):
        number = int(picture)
        return (
            Reply(422, error("blank_image"))
            if number % 5 == 2
            else Reply(200, answer(chr(65 + number)), after_s=0.02 * (number % 3))
        )

    with serving(then=reply) as service, Client(service.url, concurrency=4) as client:
        said = [
            r.answer.character if r.answer else r.error.code
            for r in client.predict_many(str(number).encode() for number in range(20))
        ]
    assert said == ["blank_image" if number % 5 == 2 else chr(65 + number) for number in range(20)]


def test_an_endless_iterable_is_read_no_further_than_needed():
    taken = count()
    read = 0

    def pictures():
        nonlocal read
        for _ in taken:
            read += 1
            yield b"picture"

    with serving() as service, Client(service.url, concurrency=3) as client:
        results = client.predict_many(pictures())
        assert read == 0
        for wanted in range(1, 30):
            assert next(results).answer
            assert read <= wanted + AHEAD * 3
        results.close()
        assert read < 30 + AHEAD * 3
        assert all(result.answer for result in islice(client.predict_many(pictures()), 5)), "the client goes on"


def test_closing_ends_a_pause_and_sends_nothing_more():
    with serving(then=Reply(503, error("overloaded"), {"Retry-After": "30"})) as service:
        client = Client(service.url)
        caught = []
        thread = threading.Thread(target=lambda: caught.append(refusal(client)))
        thread.start()
        while not service.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        client.close()
        thread.join(5)
        assert caught == [("overloaded", 503)]
        assert len(service.requests) == 1
        with pytest.raises(RuntimeError, match="closed"):
            list(client.predict_many([b"picture"]))


def test_the_key_goes_nowhere_else():
    with (
        serving() as other,
        serving(Reply(307, {}, {"Location": other.url}), Reply(401, error("unauthorized"))) as service,
    ):
        with Client(service.url, api_key="secret") as client:
            assert refusal(client) == ("unexpected", 307)
            assert refusal(client) == ("unauthorized", 401)
        assert other.requests == []
    for key in ("", " ", "se\ncret", "secret\n", "sécret"):
        with pytest.raises(ValueError, match="the API key") as caught:
            Client(api_key=key)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host?a=b",
    ],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match=r".+"):
        Client(url)


def test_what_is_no_picture_file_is_its_own_result(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "closed").mkdir()
    with serving() as service, Client(service.url) as client:
        wrong = [tmp_path / "pipe.png", tmp_path / "closed", tmp_path / "missing.png", tmp_path / "nul\0.png"]
        results = list(client.predict_many([*wrong, b"picture"]))
    assert [result.error.code for result in results[:-1]] == ["unreadable"] * 4
    assert [str(result.error) for result in results[:3]] == [
        "not a regular file",
        "not a regular file",
        "No such file or directory",
    ]
    assert results[-1].answer
    assert len(service.requests) == 1
