"""That no request is lost: restarts, upgrades, drained nodes, killed processes, overload, slow clients, scaling; on a real cluster.

`make chaos-test` builds the images and brings them onto the nodes first. The load comes from a pod of another namespace:
users with one connection each for the whole run, no retries, every answer checked.
"""

import json
import os
import shlex
import subprocess
import time

import pytest
from cluster import (
    NAMESPACE,
    PREFIX,
    SERVE_PODS,
    STRANGERS,
    VERSION,
    apply_everything,
    get,
    in_cluster,
    in_the_background,
    kubectl,
    load,
    ours,
    ready_count,
    restarts,
    schedulable_nodes,
    serve_pods,
    transitions,
    under_load,
    wait_for,
)

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

OTHER_MODEL = f"{PREFIX}-serve:{VERSION}-other"  # the same network under another version, k8s/tests/other_model.py
MIN_REQUESTS = 2000
WORKER_BATCH = 32  # batchSize of serving/model-config.yaml: what one worker may have in flight
IN_FLIGHT = 128  # MAX_IN_FLIGHT of k8s/10-config.yaml: what one TorchServe may have
KILL_NODE = os.environ.get("KILL_NODE")  # a command that is given a node's name and takes it away at once, as a power cut does

# Sends a signal to the first worker, or to all; a container's first process takes no SIGKILL from its own, so Java gets SIGSEGV.
SIGNAL_WORKERS = """
import os, pathlib, signal, sys
workers = [int(f.name) for f in pathlib.Path("/proc").glob("[0-9]*") if b"model_service_worker" in (f / "cmdline").read_bytes()]
workers = sorted(pid for pid in workers if pid != os.getpid())
for pid in workers[: int(sys.argv[2])]:
    os.kill(pid, signal.Signals[sys.argv[1]])
"""
CRASH_JAVA = "import os, signal; os.kill(1, signal.SIGSEGV)"
MEMORY = """
import pathlib
files = map(pathlib.Path, ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"))
print(next(f for f in files if f.exists()).read_text())
"""


def lost(seen):
    """All that was not answered rightly, by what came instead."""
    return {outcome: count for outcome, count in seen["outcomes"].items() if outcome != "right"}


def note(report, event, seen, wanted="0"):
    sent, late = sum(seen["outcomes"].values()), max(slowest for _, slowest in seen["windows"].values())
    instead = ", ".join(f"{count} {outcome}" for outcome, count in lost(seen).items())
    report(
        event,
        f"{sum(lost(seen).values())} of {sent:,} lost{f' ({instead})' if instead else ''}; p99 {seen['p99_s']:.2f} s, slowest {late:.1f} s",
        wanted,
    )
    assert sent >= MIN_REQUESTS
    assert seen["mixed_connections"] == 0, "one connection, one version of the model"


def in_pod(name, program, *arguments):
    return ours("exec", name, "--container", "torchserve", "--", "python", "-c", program, *map(str, arguments), check=False).stdout


def rollout():
    ours("rollout", "status", "deployment/emnist", "--timeout=180s")


def settled(count):
    wait_for(
        f"{count} pods and no other",
        lambda: len(get("pods", "--selector", "app.kubernetes.io/component=serve")["items"]) == ready_count() == count,
        180,
    )


@pytest.fixture(scope="module")
def half(report):
    """Half of what two pods can do, in pictures a second; the autoscaler is put away for the events."""
    ours("delete", "hpa", "emnist")
    settled(2)
    load(32, 5)
    capacity = load(32, 15)["per_second"]
    report("capacity of two pods, with the load on the same cores", f"{capacity:.0f} pictures/s; the events are under half of it")
    return capacity / 2


def test_a_rolling_restart_loses_nothing(report, half):
    with under_load(half) as seen:
        ours("rollout", "restart", "deployment/emnist")
        rollout()
        settled(2)
    note(report, "rolling restart", seen)
    assert lost(seen) == {}


def test_an_upgrade_to_another_model_and_back_loses_nothing(report, half):
    with under_load(half) as seen:
        ours("set", "image", "deployment/emnist", f"*={OTHER_MODEL}")
        rollout()
        settled(2)
    note(report, f"upgrade to another model ({' -> '.join(seen['versions'])})", seen)
    assert lost(seen) == {}
    assert len(seen["versions"]) == 2
    after = load(4, 2)["versions"]
    assert len(after) == 1
    with under_load(half) as seen:
        ours("rollout", "undo", "deployment/emnist")
        rollout()
        settled(2)
    note(report, f"rollback ({' -> '.join(seen['versions'])})", seen)
    assert lost(seen) == {}
    assert load(4, 2)["versions"].keys() == seen["versions"].keys() - after.keys()


def test_scaling_in_loses_nothing(report, half):
    ours("scale", "deployment/emnist", "--replicas=3")
    rollout()
    settled(3)
    with under_load(half) as seen:
        ours("scale", "deployment/emnist", "--replicas=2")
        settled(2)
    note(report, "scale-in from three pods to two", seen)
    assert lost(seen) == {}


def test_draining_a_node_loses_nothing(report, half):
    if len(schedulable_nodes()) < 2:
        pytest.skip("there is one node only")
    node = serve_pods()[0]["spec"]["nodeName"]
    selector = f"--pod-selector={SERVE_PODS}"
    try:
        with under_load(half) as seen:
            kubectl("drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
            settled(2)
    finally:
        kubectl("uncordon", node)
    note(report, "`kubectl drain` of a node", seen)
    assert lost(seen) == {}
    ours("rollout", "restart", "deployment/emnist")  # back onto both nodes
    rollout()
    settled(2)


def test_deleting_a_pod_loses_nothing(report, half):
    with under_load(half) as seen:
        ours("delete", "pod", serve_pods()[0]["metadata"]["name"])
        settled(2)
    note(report, "`kubectl delete pod`", seen)
    assert lost(seen) == {}


@pytest.mark.parametrize(
    ("event", "program", "arguments", "most", "expected"),
    [
        ("a worker killed", SIGNAL_WORKERS, ("SIGKILL", 1), WORKER_BATCH, {"status 502 internal_error"}),
        ("all workers of a pod killed", SIGNAL_WORKERS, ("SIGKILL", 99), 2 * WORKER_BATCH, {"status 502 internal_error"}),
        ("a worker hung (SIGSTOP)", SIGNAL_WORKERS, ("SIGSTOP", 1), WORKER_BATCH, {"status 502 internal_error", "status 504 deadline"}),
        ("TorchServe's Java killed", CRASH_JAVA, (), IN_FLIGHT, {"status 502 internal_error"}),
    ],
)
def test_a_process_that_dies_costs_no_more_than_it_had_in_flight(report, half, event, program, arguments, most, expected):
    pod = serve_pods()[0]["metadata"]["name"]
    with under_load(half) as seen:
        in_pod(pod, program, *arguments)
        time.sleep(40)  # a worker that hangs is given 30 s
        settled(2)
    note(report, event, seen, f"at most what it had in flight, {most}")
    assert sum(lost(seen).values()) <= most
    assert lost(seen).keys() <= expected
    if program == CRASH_JAVA:
        (now,) = [found for found in serve_pods() if found["metadata"]["name"] == pod]
        assert restarts(now)["torchserve"] == 1, "it was not killed"


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


def small_pods(millicores):
    """Pods of so little that a generator beside them on a small machine can offer several times what they can do."""
    limit = [{"op": "replace", "path": "/spec/template/spec/initContainers/0/resources/limits/cpu", "value": f"{millicores}m"}]
    ours("patch", "deployment", "emnist", "--type=json", "--patch", json.dumps(limit))
    rollout()


@pytest.mark.usefixtures("half")
def test_overload_is_shed_and_what_is_accepted_is_in_time(report, cluster):
    small_pods(300)
    settled(2)
    load(64, 5)
    peak = load(64, 20)["per_second"]
    light = load(4, 10, 0.1)["p99_s"]
    before = transitions()
    names = sorted(before)
    users = int(3.2 * peak)  # a picture a second from each
    seconds = 300
    with in_the_background(load, users, seconds, 1.0) as sending:
        memory = []
        for _ in range(5):
            time.sleep(seconds / 5 - 8)
            memory.append([int(in_pod(name, MEMORY)) / 2**20 for name in names])
        seen = sending.result()
    after = load(4, 20, 0.1)
    steady = transitions() == before
    recovered = next((int(second) for second, (_, slowest) in after["windows"].items() if slowest <= max(3 * light, 0.2)), None)
    report(
        f"{seen['offered_per_second']:.0f}/s offered for {seconds} s to two pods of 0.3 cores with a peak of {peak:.0f}/s",
        f"{seen['per_second']:.0f}/s right ({seen['per_second'] / peak:.0%} of the peak), p99 {seen['p99_s']:.2f} s; the rest: {lost(seen)}, "
        f"refused after {1000 * seen['shed_p50_s']:.1f} ms (p99 {1000 * seen['shed_p99_s']:.0f}); {'no' if steady else 'a'} pod left",
        ">= 90 %, 503 in < 50 ms, no pod",
    )
    report("memory of TorchServe in each pod meanwhile, MiB", "; ".join("/".join(f"{m:.0f}" for m in at) for at in memory), "flat")
    report("latency afterwards as before, within", f"{recovered} s", "<= 5 s")
    assert steady
    assert set(seen["outcomes"]) == {"right", "shed"}
    assert seen["per_second"] >= 0.9 * peak
    assert seen["offered_per_second"] >= 2.7 * peak, "the generator did not offer three times the capacity"
    assert seen["shed_p50_s"] < 0.05
    assert recovered is not None
    assert recovered <= 5
    assert max(memory[-1]) <= 1.1 * max(memory[1])
    apply_everything(cluster.folder)
    rollout()


def test_the_autoscaler_follows_a_step_and_comes_back(report, cluster):
    """From one pod's capacity to three times that and back; pods of 0.2 cores, and shortened windows."""
    if kubectl("top", "pods", "--namespace", NAMESPACE, check=False).returncode != 0:
        pytest.skip("the cluster has no metrics-server, which the autoscaler needs")
    apply_everything(cluster.folder)
    small_pods(200)
    metric = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "150m"}}}
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}}
    ours("patch", "hpa", "emnist", "--patch", json.dumps({"spec": {"maxReplicas": 6, "behavior": behavior, "metrics": [metric]}}))
    settled(2)
    one = load(32, 15)["per_second"] / 2
    sizes = []

    def follow(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not sizes or sizes[-1] != len(serve_pods()):
                sizes.append(len(serve_pods()))
            time.sleep(1)

    with under_load(one) as low:
        follow(45)
        with in_the_background(load, 32, 120, 32 / (2 * one)) as high:
            follow(120)
            step = high.result()
        follow(180)
    events = ours("get", "events", "--field-selector", "involvedObject.name=emnist,reason=SuccessfulRescale", "--output=custom-columns=:.message")
    lines = [line.partition(";")[0] for line in events.stdout.splitlines() if line]
    report(
        f"autoscaler: {one:.0f}/s, then {3 * one:.0f}/s for two minutes, then {one:.0f}/s; pods",
        f"{' -> '.join(map(str, sizes))}; {sum(lost(low).values()) + sum(lost(step).values())} of "
        f"{sum(low['outcomes'].values()) + sum(step['outcomes'].values()):,} lost; events: {', '.join(lines)}",
        "up once, down once, 0 lost",
    )
    assert lost(low) == {} == lost(step)
    peak = sizes.index(max(sizes))
    assert max(sizes) > sizes[0]
    assert sizes[: peak + 1] == sorted(sizes[: peak + 1])
    assert sizes[peak:] == sorted(sizes[peak:], reverse=True)
    assert sizes[-1] < max(sizes)
    apply_everything(cluster.folder)


def test_a_node_that_vanishes_costs_until_it_is_noticed(report, half):
    if not KILL_NODE:
        pytest.skip("KILL_NODE names no command that takes a node away")
    where = kubectl("get", "pod", "stranger", "--namespace", STRANGERS, "--output=jsonpath={.spec.nodeName}").stdout
    wait_for("a pod on another node", lambda: [p for p in serve_pods() if p["spec"]["nodeName"] != where], 60)
    victim = next(pod["spec"]["nodeName"] for pod in serve_pods() if pod["spec"]["nodeName"] != where)
    with under_load(half, deadline_s=5) as seen:
        subprocess.run([*shlex.split(KILL_NODE), victim], check=True, timeout=60)
        killed = time.monotonic()
        wait_for("the node to be NotReady", lambda: len(schedulable_nodes()) == 1, 120)
        noticed = time.monotonic() - killed
        time.sleep(20)
    first, last = seen["failures"][0][0], seen["failures"][-1][0]
    note(
        report,
        f"a node that vanishes, noticed after {noticed:.0f} s; losses from the first to the last over {last - first:.0f} s",
        seen,
        "ends when noticed",
    )
    assert last - first <= noticed + 10
