"""That no request is lost: restarts, upgrades, drained nodes, killed processes; on a real cluster.

`make chaos-test` builds the images and brings them onto the nodes first. The load comes from a pod of another
namespace: users with one connection each for the whole run, no retries, every answer checked.
"""

import os
import shlex
import subprocess
import time

import pytest
from cluster import (
    PREFIX,
    SERVE_PODS,
    STRANGERS,
    VERSION,
    in_pod,
    kubectl,
    load,
    lost,
    ours,
    restarts,
    rollout,
    schedulable_nodes,
    serve_pods,
    settled,
    under_load,
    wait_for,
)

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

OTHER_MODEL = f"{PREFIX}-serve:{VERSION}-other"  # the same network under another version, k8s/tests/other_model.py
MIN_REQUESTS = 2000
WORKER_BATCH = 16  # batchSize of serving/service/model-config.yaml: what one worker may have in flight
REFUSED = "shed"  # 503 with Retry-After: the client is to send the request again
BROKEN_OFF = {"status 502 internal_error", REFUSED, "status 504 deadline"}  # each said in time
OUT_S = 10  # from the death of all workers of a pod, or of its Java, until no client is sent to it
IN_FLIGHT = 128  # MAX_IN_FLIGHT of k8s/10-config.yaml: what one TorchServe may have
# A command that is given a node's name and takes it away at once, as a power cut does.
KILL_NODE = os.environ.get("KILL_NODE")

# Sends a signal to the first worker, or to all; a container's first process takes no SIGKILL from its own, so Java gets
# SIGSEGV.
SIGNAL_WORKERS = """
import os, pathlib, signal, sys
processes = pathlib.Path("/proc").glob("[0-9]*")
workers = [int(f.name) for f in processes if b"model_service_worker" in (f / "cmdline").read_bytes()]
workers = sorted(pid for pid in workers if pid != os.getpid())
for pid in workers[: int(sys.argv[2])]:
    os.kill(pid, signal.Signals[sys.argv[1]])
"""
CRASH_JAVA = "import os, signal; os.kill(1, signal.SIGSEGV)"


def note(report, event, seen, wanted="0"):
    sent, slowest = sum(seen["outcomes"].values()), max(slowest for _, slowest in seen["windows"].values())
    instead = "".join(f", {count} {outcome}" for outcome, count in lost(seen).items())
    report(
        event,
        f"{sum(lost(seen).values())} of {sent:,} lost{instead}; p99 {seen['p99_s']:.2f} s, slowest {slowest:.1f} s",
        wanted,
    )
    assert sent >= MIN_REQUESTS
    assert seen["mixed_connections"] == 0, "one connection, one version of the model"


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
    ("event", "program", "arguments", "most"),
    [
        ("a worker killed", SIGNAL_WORKERS, ("SIGKILL", 1), WORKER_BATCH),
        ("all workers of a pod killed", SIGNAL_WORKERS, ("SIGKILL", 99), 2 * WORKER_BATCH),
        ("a worker hung (SIGSTOP)", SIGNAL_WORKERS, ("SIGSTOP", 1), WORKER_BATCH),
        ("TorchServe's Java killed", CRASH_JAVA, (), IN_FLIGHT),
    ],
)
def test_a_process_that_dies_costs_no_more_than_it_had_in_flight(report, half, event, program, arguments, most):
    pod = serve_pods()[0]["metadata"]["name"]
    with under_load(half) as seen:
        in_pod(pod, program, *arguments)
        time.sleep(40)  # a worker that hangs is given 30 s
        settled(2)
    note(report, event, seen, f"at most what it had in flight, {most}, and 503 until the pod is out of the Service")
    assert sum(count for outcome, count in lost(seen).items() if outcome != REFUSED) <= most
    assert lost(seen).get(REFUSED, 0) <= most + OUT_S * half
    assert lost(seen).keys() <= BROKEN_OFF
    if program == CRASH_JAVA:
        (now,) = [found for found in serve_pods() if found["metadata"]["name"] == pod]
        assert restarts(now)["torchserve"] == 1, "it was not killed"


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
        f"a node that vanishes, noticed after {noticed:.0f} s; losses over {last - first:.0f} s",
        seen,
        "an end when noticed",
    )
    assert last - first <= noticed + 10
