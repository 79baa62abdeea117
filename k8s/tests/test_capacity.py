"""What the service does when there is much to do: sizing, slow clients, overload, and the autoscaler; on a real
cluster.

Part of `make chaos-test`. The cores are shared with the load and the cluster, so pods are given few.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cluster import (
    NAMESPACE,
    PREFIX,
    VERSION,
    apply_everything,
    apply_overlay,
    in_cluster,
    in_pod,
    in_the_background,
    kubectl,
    load,
    lost,
    ours,
    rollout,
    serve_pods,
    settled,
    transitions,
    under_load,
    wait_for,
)

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

HERE = Path(__file__).resolve().parent
PLACES = 2 * (128 + 128)  # MAX_IN_FLIGHT and MAX_QUEUE of two pods: so many are never refused
MEMORY = """
import pathlib
files = map(pathlib.Path, ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"))
print(next(f for f in files if f.exists()).read_text())
"""


def test_slow_clients_take_nothing_from_others(report, half):
    alone = load(16, 20, 16 / half)
    with in_the_background(in_cluster, "slow", f"emnist.{NAMESPACE}", 80, "--users", 500, "--seconds", 40) as slow:
        time.sleep(8)
        beside = load(16, 20, 16 / half)
        outcomes = slow.result()
    report(
        "500 clients that send 10 bytes a second, of headers or of body",
        f"they get {outcomes}; others: {sum(lost(beside).values())} of {sum(beside['outcomes'].values()):,} lost, "
        f"p99 {1000 * beside['p99_s']:.0f} ms, without them {1000 * alone['p99_s']:.0f} ms",
        "0",
    )
    assert lost(beside) == {}
    assert set(outcomes) == {"status 408"}


def pods_of(millicores, count=2):
    """Few cores for each, so that a generator beside them on a small machine can offer several times what they can
    do.
    """
    where = "/spec/template/spec/initContainers/0/resources"
    cpu = [
        {"op": "replace", "path": f"{where}/{what}/cpu", "value": f"{value}m"}
        for what, value in (("limits", millicores), ("requests", 50))
    ]
    ours("patch", "deployment", "emnist", "--type=json", "--patch", json.dumps(cpu))
    if not ours("get", "hpa", "emnist", check=False).stdout:
        ours("scale", "deployment/emnist", f"--replicas={count}")
    rollout()
    settled(count)


def peak_rate(users, seconds=15):
    """Pictures a second under `users` who never wait, once Java has compiled what it runs: when it no longer gets
    quicker by 3 %.
    """
    rates = [load(users, seconds)["per_second"]]
    for _ in range(10):
        rates.append(load(users, seconds)["per_second"])
        if rates[-1] < 1.03 * max(rates[:-1]):
            return max(rates)
    raise AssertionError(f"it becomes quicker without end: {rates}")


@pytest.mark.usefixtures("half")
def test_sizing(report):
    """What so many pods of so many cores can do, beside what one core's time for a picture says; then half of it."""
    for count, millicores in ((1, 250), (1, 500), (2, 250), (1, 1000), (2, 500)):
        pods_of(millicores, count)
        peak_rate(32)
        peak = load(32, 15)
        at_half = load(16, 15, 32 / peak["per_second"])
        cores = count * millicores / 1000
        each = 1000 * cores / peak["per_second"]
        report(
            f"{count} x {cores / count} cores, 32 users; 16 users at half of that",
            f"{peak['per_second']:.0f}/s, {each:.2f} ms of a core each, p99 {1000 * peak['p99_s']:.0f} ms; "
            f"p50 {1000 * at_half['p50_s']:.0f} ms, p99 {1000 * at_half['p99_s']:.0f} ms",
        )
        assert lost(peak) == lost(at_half) == {}
    pods_of(2000)


@pytest.mark.usefixtures("half")
def test_overload_is_shed_and_what_is_accepted_is_in_time(report):
    pods_of(150)
    peak = peak_rate(PLACES)
    light = load(4, 10, 0.1)["p99_s"]
    before = transitions()
    names = sorted(before)
    users = PLACES + int(2.8 * peak)  # a picture a second from each of those that are refused; the others wait
    seconds = 300
    with in_the_background(load, users, seconds, 1.0) as sending:
        memory = []
        for _ in range(5):
            time.sleep(seconds / 5 - 8)
            memory.append([int(in_pod(name, MEMORY)) / 2**20 for name in names])
        seen = sending.result()
    after = load(4, 20, 0.1)
    steady = transitions() == before
    peak = (peak + load(PLACES, 20)["per_second"]) / 2  # the machine's own speed varies
    recovered = next(
        (int(second) for second, (_, slowest) in after["windows"].items() if slowest <= max(3 * light, 0.2)), None
    )
    report(
        f"{seen['offered_per_second']:.0f}/s offered for {seconds} s to two pods of 0.15 cores with a peak of"
        f" {peak:.0f}/s",
        f"{seen['per_second']:.0f}/s right ({seen['per_second'] / peak:.0%} of the peak), p99 {seen['p99_s']:.2f} s;"
        f" the rest: {lost(seen)}, refused after {1000 * seen['shed_p50_s']:.1f} ms (p99"
        f" {1000 * seen['shed_p99_s']:.0f}); {'no' if steady else 'a'} pod left",
        ">= 90 %, 503 in < 50 ms, no pod",
    )
    report(
        "memory of TorchServe in each pod meanwhile, MiB",
        "; ".join("/".join(f"{m:.0f}" for m in at) for at in memory),
        "flat",
    )
    report("latency afterwards as before, within", f"{recovered} s", "<= 5 s")
    assert steady
    assert set(seen["outcomes"]) == {"right", "shed"}
    assert seen["per_second"] >= 0.9 * peak
    assert seen["offered_per_second"] >= 2.7 * peak, "the generator did not offer three times the capacity"
    assert seen["shed_p50_s"] < 0.05
    assert recovered is not None
    assert recovered <= 5
    assert max(memory[-1]) <= 1.1 * max(memory[1])


def follow_a_step(report, name):
    """From one pod's capacity to three times that for two minutes, and back; asserts that pods come and go once, and
    nothing is lost.
    """
    one = load(32, 15)["per_second"] / 2
    settled(2)
    sizes = []

    def follow(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if sizes[-1:] != [len(serve_pods())]:
                sizes.append(len(serve_pods()))
            time.sleep(1)

    started = time.monotonic()
    with under_load(one) as low:
        follow(45)
        with in_the_background(load, 32, 120, 32 / (2 * one)) as high:
            follow(120)
            step = high.result()
        follow(200)
    events = json.loads(
        ours(
            "get", "events", "--field-selector", "involvedObject.name=emnist,reason=SuccessfulRescale", "--output=json"
        ).stdout
    )["items"]
    newest = sorted((event for event in events if event["lastTimestamp"]), key=lambda event: event["lastTimestamp"])[
        -len(sizes) + 1 :
    ]
    sent = sum(low["outcomes"].values()) + sum(step["outcomes"].values())
    report(
        f"autoscaler by {name}: {one:.0f}/s, {3 * one:.0f}/s for two minutes, {one:.0f}/s; pods in"
        f" {time.monotonic() - started:.0f} s",
        f"{' -> '.join(map(str, sizes))}; {sum(lost(low).values()) + sum(lost(step).values())} of {sent:,} lost; "
        f"events: {'; '.join(event['message'] for event in newest)}",
        "up once, down once, 0 lost",
    )
    assert lost(low) == {} == lost(step)
    top = sizes.index(max(sizes))
    assert max(sizes) > sizes[0]
    assert sizes[: top + 1] == sorted(sizes[: top + 1]), "up once"
    assert sizes[top:] == sorted(sizes[top:], reverse=True), "and down once"
    assert sizes[-1] < max(sizes)


def shortened(metric):
    """A patch of the autoscaler: windows of a test's length."""
    behavior = {
        "scaleDown": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}
    }
    return json.dumps({"spec": {"maxReplicas": 6, "behavior": behavior} | ({"metrics": [metric]} if metric else {})})


def test_the_autoscaler_follows_a_step_and_comes_back(report, cluster):
    if kubectl("top", "pods", "--namespace", NAMESPACE, check=False).returncode != 0:
        pytest.skip("the cluster has no metrics-server, which the autoscaler needs")
    apply_everything(cluster.folder)
    metric = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "150m"}},
    }
    ours("patch", "hpa", "emnist", "--patch", shortened(metric))
    pods_of(200)
    follow_a_step(report, "CPU time, pods of 0.2 cores")


@pytest.fixture
def adapter(tmp_path, cluster):
    """The overlay `in-flight`, and a stand-in for the Prometheus Adapter that it needs."""
    if kubectl("get", "apiservices", check=False).stdout.count("custom.metrics.k8s.io"):
        pytest.skip("the cluster has an adapter of its own for custom metrics")
    certificate = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=adapter.monitoring.svc"]
    subprocess.run(
        ["openssl", "req", *certificate, "-keyout", "tls.key", "-out", "tls.crt"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    shutil.copy(HERE / "metrics_adapter.py", tmp_path)
    manifests = (HERE / "metrics_adapter.yaml").read_text().replace("ADAPTER_IMAGE", f"{PREFIX}-batch:{VERSION}")
    kubectl("create", "namespace", "monitoring")
    try:
        kubectl("create", "configmap", "adapter", "--namespace=monitoring", f"--from-file={tmp_path}")
        kubectl("apply", "-f", "-", stdin=manifests)
        apply_overlay(cluster.folder, "in-flight")
        asked = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{NAMESPACE}/pods/*/emnist_requests_in_flight"
        wait_for(
            "a value for each pod", lambda: kubectl("get", "--raw", asked, check=False).stdout.count("value") >= 2, 60
        )
        yield
    finally:
        kubectl("delete", "-f", "-", stdin=manifests, check=False)
        kubectl("delete", "namespace", "monitoring", check=False)


@pytest.mark.usefixtures("adapter")
def test_the_overlay_scales_on_requests_in_flight(report):
    ours("patch", "hpa", "emnist", "--patch", shortened(None))
    pods_of(200)
    follow_a_step(report, "requests in flight, pods of 0.2 cores")
