"""What the service tells Prometheus: all that was sent is counted once, by whichever worker, and nothing is lost with a
worker.
"""

import base64
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from serving.local import LOOPBACK, reserved_ports
from serving.service.processes import haproxy_command

TIMEOUT_S = 30
RECOVERY_S = 60


@pytest.fixture(scope="module")
def samples(root):
    return {path.name[0]: path.read_bytes() for path in sorted((root / "serving" / "samples").iterdir())}


def scrape(server):
    """Every series of the workers, by name and labels."""
    answer = requests.get(f"{server.probes_url}/metrics/model", timeout=TIMEOUT_S)
    assert answer.status_code == 200
    found = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    series = {(sample.name, *sorted(sample.labels.values())): sample.value for sample in found}
    assert len(series) == len(found)
    return series


def risen(before, after):
    """The counts that rose, without buckets and sums."""
    names = [name for name in after if name[0].endswith(("_count", "_total"))]
    return {name: after[name] - before.get(name, 0) for name in names if after[name] != before.get(name, 0)}


def send(server, path, **options):
    return requests.post(server.url + path, timeout=TIMEOUT_S, **options)


def worker_pids(server):
    return [
        worker["pid"]
        for worker in requests.get(f"http://{server.management_address}/models/emnist", timeout=TIMEOUT_S).json()[0][
            "workers"
        ]
    ]


def test_counts_rise_by_what_was_sent_and_every_worker_tells_them_all(server, samples):
    before = scrape(server)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda data: send(server, "/predictions/emnist", data=data).json()["character"], [*samples.values()] * 3
        )
        assert Counter(answers) == dict.fromkeys(samples, 3)
    assert [send(server, "/predictions/emnist", data=b"junk").status_code for _ in range(2)] == [415, 415]
    assert send(server, "/predictions/emnist?alphabet=greek", data=samples["3"]).status_code == 400
    good, bad = base64.b64encode(samples["3"]).decode(), base64.b64encode(b"junk").decode()
    v1 = {"instances": [{"b64": good}, {"b64": bad}, {"b64": good}]}
    assert send(server, "/v1/models/emnist:predict", json=v1).status_code == 200
    tensor = {"name": "picture", "datatype": "BYTES", "shape": [2]}
    assert (
        send(server, "/v2/models/emnist/infer", json={"inputs": [tensor | {"data": [good, good]}]}).status_code == 200
    )
    assert send(server, "/v2/models/emnist/infer", json={"inputs": [tensor | {"data": [good, bad]}]}).status_code == 415
    assert requests.get(f"{server.url}/v2/models/emnist", timeout=TIMEOUT_S).status_code == 200
    assert send(server, "/predictions/other", data=samples["3"]).status_code == 404, (
        "refused by TorchServe, not counted by workers"
    )
    assert send(server, "/nowhere", data=samples["3"]).status_code == 404, "refused by the edge"
    after = [scrape(server) for _ in range(10)]
    assert all(scraped == after[0] for scraped in after)
    rose = risen(before, after[0])
    for name in ("emnist_batch_requests_count", "emnist_model_seconds_count", "emnist_model_pictures_count"):
        assert 5 <= rose.pop((name,)) <= 3 * len(samples) + 7, "as many as there were batches"
    expected = {("emnist_answers_total", character): 3 for character in samples}
    expected["emnist_answers_total", "3"] += 4
    assert rose == expected | {
        ("emnist_confidence_count",): 3 * len(samples) + 4,
        ("emnist_preparation_seconds_count",): 3 * len(samples) + 2 + 3 + 4,
        ("emnist_queue_seconds_count",): 3 * len(samples) + 7,
        ("emnist_request_seconds_count", "plain"): 3 * len(samples) + 3,
        ("emnist_request_seconds_count", "v1"): 1,
        ("emnist_request_seconds_count", "v2"): 2,
        ("emnist_request_seconds_count", "v2-metadata"): 1,
        ("emnist_errors_total", "plain", "unsupported_format"): 2,
        ("emnist_errors_total", "plain", "unknown_alphabet"): 1,
        ("emnist_errors_total", "unsupported_format", "v1"): 1,
        ("emnist_errors_total", "unsupported_format", "v2"): 1,
    }
    alone = [
        MultiProcessCollector.merge([str(path)])
        for path in (server.admin_socket.parent / "metrics").glob("histogram_*.db")
    ]
    batches = [
        s.value
        for found in alone
        for metric in found
        for s in metric.samples
        if s.name == "emnist_batch_requests_count"
    ]
    assert sum(batches) == after[0]["emnist_batch_requests_count",]
    assert sum(count > 0 for count in batches) >= 2, "more than one worker has answered"


def test_the_model_and_its_workers_are_told(server, recognizer):
    series = scrape(server)
    assert series[("emnist_model_info", *sorted(["emnist", recognizer.version]))] == 1
    assert series["emnist_workers",] >= len(worker_pids(server)) == 2


def test_times_are_counted_from_the_edge_on_whatever_a_client_says(server, samples):
    before = scrape(server)
    for said in ("1", "junk", str(10**15)):
        assert send(server, "/predictions/emnist", data=samples["3"], headers={"X-Handed-On": said}).status_code == 200
    after = scrape(server)
    assert after["emnist_queue_seconds_count",] - before["emnist_queue_seconds_count",] == 3
    waited = after["emnist_queue_seconds_sum",] - before["emnist_queue_seconds_sum",]
    took = after["emnist_request_seconds_sum", "plain"] - before["emnist_request_seconds_sum", "plain"]
    assert 0 <= waited < took < 3 * TIMEOUT_S


def test_a_worker_that_dies_takes_no_count_with_it(server, samples):
    before = scrape(server)
    psutil.Process(worker_pids(server)[0]).kill()
    until = time.monotonic() + RECOVERY_S
    last, fewest = before, before["emnist_workers",]
    while True:
        series = scrape(server)
        fewest = min(fewest, series["emnist_workers",])
        counts = [name for name in last if not name[0].endswith("_workers")]
        assert all(series[name] >= last[name] for name in counts)
        last = series
        if fewest < before["emnist_workers",] == series["emnist_workers",]:
            break
        assert time.monotonic() < until, "the worker did not come back"
        time.sleep(0.1)
    server.wait_until_ready()
    for _ in range(10):
        assert send(server, "/predictions/emnist", data=samples["3"]).status_code == 200
    assert risen(before, scrape(server))["emnist_answers_total", "3"] == 10


def test_clients_do_not_reach_the_metrics(server):
    for path in ("/metrics", "/metrics/model", "/metrics/model/"):
        assert requests.get(server.url + path, timeout=TIMEOUT_S).status_code == 404
    assert requests.get(f"{server.probes_url}/metrics/other", timeout=TIMEOUT_S).status_code == 404


@pytest.fixture
def ports():
    with reserved_ports(3) as ports:
        yield ports


def test_without_workers_the_edge_still_tells_its_own(tmp_path, ports):
    edge, probes, nobody = ports
    environment = {"EDGE_ADDRESS": f"{LOOPBACK}:{edge}", "PROBE_HOST": LOOPBACK, "PROBE_PORT": str(probes)}
    environment |= {"MODEL_METRICS_PORT": str(nobody), "MANAGEMENT_PORT": str(nobody)}
    environment |= {"SOCKETS": str(tmp_path), "ADMIN_SOCKET": str(tmp_path / "admin")}
    haproxy = subprocess.Popen(haproxy_command(), env=environment, stderr=subprocess.DEVNULL)
    try:
        with requests.Session() as session:
            session.mount(
                "http://",
                requests.adapters.HTTPAdapter(max_retries=requests.adapters.Retry(connect=10, backoff_factor=0.1)),
            )
            assert (
                "haproxy_frontend_status" in session.get(f"http://{LOOPBACK}:{probes}/metrics", timeout=TIMEOUT_S).text
            )
            answer = session.get(f"http://{LOOPBACK}:{probes}/metrics/model", timeout=TIMEOUT_S)
    finally:
        haproxy.terminate()
        haproxy.wait(TIMEOUT_S)
    assert (answer.status_code, answer.text) == (503, "no worker answers")
