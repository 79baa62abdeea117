"""Hostile requests at the service's port: each has its own answer in time, nothing dies, memory comes back, and a
neighbour notices nothing.

HOSTILE_SEED=7 HOSTILE_NUMBER=123 .venv/bin/python -m pytest serving/tests/test_hostile.py -k one      one request again
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from hostile_requests import kind_of, make
from hostile_wire import Hostile, faults, send
from watch import MB, Watch

SEED = int(os.environ.get("HOSTILE_SEED", "20261121"))
FAST, ALL = 400, 10_000
CLIENTS, SLOW_CLIENTS = 8, 64
SETTLING_S = 10
SLOW_BODY_S = 60
WORKER_TOLERANCE_MB, EDGE_TOLERANCE_MB = 150, 64  # above what there was before; of the allocator, not of requests
JAVA_MB = 900  # its heap of 512 MB, which it does not give back, and what lies beside it
POD_MB = 2048  # the memory limit of TorchServe's container in k8s/40-deployment.yaml


def attack(server, numbers):
    """Send the requests of these numbers and print what came of it. Fails with the seed and number of each that was
    answered wrongly.
    """
    statuses, worst, wrong = Counter(), {}, []

    def one(number):
        request = make(SEED, number)
        return request, send(server.url, request.hostile)

    with Watch(server) as watch, ThreadPoolExecutor(SLOW_CLIENTS) as patient, ThreadPoolExecutor(CLIENTS) as pool:
        pending = [(patient if kind_of(SEED, number) == "slow" else pool).submit(one, number) for number in numbers]
        for future in pending:
            request, outcome = future.result()
            statuses.update([status for status, _, _ in outcome.answers] or ["closed"])
            worst[request.kind] = max(worst.get(request.kind, 0), round(outcome.seconds, 1))
            wrong += [
                (f"seed {SEED}, number {request.number}, {request.kind}", fault)
                for fault in faults(request.hostile, outcome)
            ]
    for _ in range(SETTLING_S):
        if (
            max(after - before for after, before in zip(watch.memory()[2:], watch.before[2:], strict=True))
            < WORKER_TOLERANCE_MB
        ):
            break
        time.sleep(1)
    after = watch.memory()
    print(f"\n{len(numbers)} requests: {dict(statuses)}; slowest of each kind, s: {worst}")
    for name, figures in (("before", watch.before), ("peak", watch.peak), ("after", after)):
        print(
            f"memory {name}, MB: HAProxy {figures[0]:.0f}, Java {figures[1]:.0f}, workers"
            f" {' '.join(f'{figure:.0f}' for figure in figures[2:])}"
        )
    print(f"at most {watch.peak_of_torchserve:.0f} MB of TorchServe in all")
    print(f"neighbour: {watch.asked} asked, {len(watch.wrong)} wrong, worst {watch.worst_s:.1f} s")
    assert not wrong, f"{len(wrong)} wrong: {wrong[:5]}"
    assert not watch.deaths()
    assert not watch.wrong
    assert watch.asked > 10
    assert all(b - a < WORKER_TOLERANCE_MB for a, b in zip(watch.before[2:], after[2:], strict=True))
    assert after[0] - watch.before[0] < EDGE_TOLERANCE_MB
    assert after[1] < JAVA_MB
    assert watch.peak_of_torchserve < POD_MB


def test_hostile_requests_have_their_own_answers_and_harm_nobody(server):
    """The first of them, without those that are slow or decode for seconds."""
    attack(server, [n for n in range(FAST) if kind_of(SEED, n) not in {"slow", "heavy"}])


@pytest.mark.slow
def test_ten_thousand_hostile_requests(server):
    attack(server, range(ALL))


@pytest.mark.skipif("HOSTILE_NUMBER" not in os.environ, reason="HOSTILE_NUMBER names one request")
def test_one_hostile_request(server):
    attack(server, [int(os.environ["HOSTILE_NUMBER"])])


def test_a_request_is_made_anew_from_its_seed_and_number():
    assert [make(3, n) for n in range(30)] == [make(3, n) for n in range(30)]


def test_no_value_of_a_request_breaks_a_line_of_the_log(tight):
    before = tight.log.stat().st_size
    for number in range(400):
        request = make(SEED + 1, number)
        if request.kind in {"headers", "path", "protocol", "query", "length"}:
            send(tight.server.url, request.hostile)
    requests.get(f"{tight.server.url}/the-last", timeout=SLOW_BODY_S)
    while b"/the-last" not in (logged := tight.log.read_bytes()[before:]):
        time.sleep(0.01)
    lines = [line for line in logged.decode(errors="strict").splitlines() if line.startswith('{"time"')]
    assert len(lines) > 100
    for line in lines:
        assert set(json.loads(line)) >= {"time", "client", "status", "path"}, line


def test_what_is_left_of_a_second_request_is_not_answered(server):
    """A body with both a length and chunks ends with its chunks, and the connection with it."""
    head = (
        b"POST /v2/models/emnist/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding:"
        b" chunked\r\n\r\n0\r\n\r\n"
    )
    outcome = send(server.url, Hostile(head + b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", frozenset({400})))
    assert [status for status, _, _ in outcome.answers] == [400]
    assert outcome.closed


@pytest.mark.slow
def test_clients_that_stop_in_a_large_body_hold_no_place_for_ever(server):
    """Below 16 kB they wait outside; above, they have a place at TorchServe, of which there are few for large
    bodies.
    """
    head = b"POST /predictions/emnist HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % MB
    stopping = Hostile(head + bytes(20_000), frozenset(), deadline_s=SLOW_BODY_S)
    started, statuses = time.monotonic(), []
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(send, server.url, stopping) for _ in range(8)]
        time.sleep(1)
        while time.monotonic() < started + SLOW_BODY_S and 415 not in statuses:
            statuses += [status for status, _, _ in send(server.url, Hostile(head + bytes(MB), frozenset())).answers]
            time.sleep(1)
        print(f"a large body was read again after {time.monotonic() - started:.0f} s: {Counter(statuses)}")
        ends = [(future.result().seconds, [status for status, _, _ in future.result().answers]) for future in slow]
        print(f"the slow ones: {ends}")
    assert statuses[-1] == 415
