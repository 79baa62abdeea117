"""Everything on a real cluster: the one of the current kubeconfig context, in the namespace `emnist`, which is removed
again.

`make cluster-test` builds the images and brings them onto the nodes first. The tests build on one another, in their
order.
"""

import csv
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import requests
from cluster import (
    DEFAULT_PREFIX,
    K8S,
    NAMESPACE,
    OVERLAYS,
    PREFIX,
    ROOT,
    SAMPLES,
    STRANGERS,
    VERSION,
    apply_everything,
    apply_overlay,
    files,
    finished,
    forwarded,
    get,
    in_cluster,
    in_service,
    is_ready,
    kubectl,
    ours,
    ready_count,
    restarts,
    result,
    schedulable_nodes,
    serve_pods,
    start_pod,
    wait_for,
    wait_for_pod,
)

from serving.client.client import Client

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

READY_S = 30  # the aim, from apply to Ready
OUT_S = 10  # from the death of a pod's workers to its leaving of the Service
EDGE_PORTS, PROBE_PORT = [8000, 8080], 8090
INNER_PORTS = (8081, 8082, 8083, 7070, 7071)  # TorchServe's own, and its workers'

KILL_WORKERS = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if b"model_service_worker" in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
        os.kill(int(folder.name), signal.SIGKILL)
"""


def test_the_service_is_ready_soon(cluster):
    assert cluster.first_ready_s <= READY_S


def test_the_pods_are_spread_over_the_nodes(report):
    nodes = schedulable_nodes()
    used = {pod["spec"]["nodeName"] for pod in serve_pods()}
    report("nodes used by two pods", len(used), min(2, len(nodes)))
    assert len(used) == min(2, len(nodes))


def test_rest_through_the_service(report):
    with forwarded() as url, Client(url) as client:
        answers = {path.name: client.predict(path.read_bytes()).character for path in sorted(SAMPLES.iterdir())}
        version = requests.post(f"{url}/predictions/emnist", data=b"junk", timeout=10).headers["X-Model-Version"]
    right = sum(name[0] == character for name, character in answers.items())
    report("sample pictures over REST, right", f"{right} of {len(answers)} (model {version})", f"{len(answers)}")
    assert right == len(answers)


def test_the_first_run_scored_the_samples(cluster, report):
    report(
        "the first run's Job, complete after",
        f"{wait_for('the first run', lambda: finished('emnist-batch'), 120):.0f} s more",
    )
    log = ours("logs", "job/emnist-batch").stdout
    assert "scoring the bundled samples instead" in log
    assert "13 ok, 0 rejected, 0 error" in log
    with files(cluster.folder):
        rows = result("emnist-batch.csv")
    right = sum(Path(row["path"]).name[0] == row["character"] for row in rows)
    report("rows of its CSV, right", f"{right} of {len(rows)}", str(len(list(SAMPLES.iterdir()))))
    assert right == len(rows) == len(list(SAMPLES.iterdir()))


def test_a_second_apply_changes_nothing(cluster, report):
    kinds = "configmaps,networkpolicies,pvc,deployments,replicasets,services,hpa,pdb,cronjobs,jobs,pods"

    def state():
        return {
            (o["kind"], o["metadata"]["name"]): (o["metadata"]["uid"], o.get("spec"), o.get("data"))
            for o in get(kinds)["items"]
        }

    before = state()
    done = apply_everything(cluster.folder)
    report(
        "second apply",
        f"exit {done.returncode}, {'nothing' if state() == before else 'something'} changed",
        "exit 0, nothing changed",
    )
    assert state() == before


def test_a_next_run_over_own_pictures(cluster, report):
    """The README's own commands, with a folder of pictures, one of them broken, in a folder of its own."""
    pictures = cluster.folder / "my-pictures" / "box 1"
    pictures.mkdir(parents=True)
    for sample in SAMPLES.iterdir():
        shutil.copy(sample, pictures)
    (pictures / "broken.png").write_bytes(b"junk")
    (commands,) = [block for block in (ROOT / "README.md").read_text().split("```")[1::2] if "cp my-pictures" in block]
    done = subprocess.run(
        ["bash", "-euxc", commands], cwd=cluster.folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = {
        Path(row["path"]).name: row["character"] or row["status"]
        for row in csv.DictReader((cluster.folder / "march.csv").open(newline=""))
    }
    expected = {path.name: path.name[0] for path in SAMPLES.iterdir()} | {"broken.png": "error"}
    report(
        "next run over copied pictures",
        f"{sum(outcomes.get(k) == v for k, v in expected.items())} of {len(expected)} rows as expected",
    )
    assert outcomes == expected
    assert get("job", "march")["status"]["succeeded"] == 1
    first = result("emnist-batch.csv")
    ours("delete", "pod", "emnist-files")
    assert len(first) == len(list(SAMPLES.iterdir())), "the first run's CSV is still there"


def test_an_upgrade_is_one_command_each(cluster, report):
    """To the same image under another name, which Kubernetes takes for another one; both results stay."""
    if PREFIX != DEFAULT_PREFIX:
        pytest.skip("the images' names have no second form")
    before = {pod["metadata"]["name"] for pod in serve_pods()}
    ours("set", "image", "deployment/emnist", f"*=docker.io/library/emnist-serve:{VERSION}")
    ours("set", "image", "cronjob/emnist-batch", f"*=docker.io/library/emnist-batch:{VERSION}")
    ours("rollout", "status", "deployment/emnist", "--timeout=120s")
    pods = serve_pods()
    assert before.isdisjoint(pod["metadata"]["name"] for pod in pods)
    assert len({pod["spec"]["nodeName"] for pod in pods if is_ready(pod)}) == min(2, len(schedulable_nodes())), (
        "still spread"
    )
    ours("create", "job", "upgraded", "--from=cronjob/emnist-batch")
    wait_for("the run after the upgrade", lambda: finished("upgraded"), 120)
    with files(cluster.folder):
        first, march, upgraded = (result(f"{name}.csv") for name in ("emnist-batch", "march", "upgraded"))
    report(
        "upgrade of service and batch, a run after it",
        f"{len(upgraded)} rows; the earlier results still have {len(first)} and {len(march)}",
    )
    assert upgraded == march
    assert len(first) == len(list(SAMPLES.iterdir()))
    ours("delete", "job", "emnist-batch")
    apply_everything(cluster.folder)
    wait_for("the first run again", lambda: finished("emnist-batch"), 120)
    ours("rollout", "status", "deployment/emnist", "--timeout=120s")
    with files(cluster.folder):
        kept = ours("exec", "emnist-files", "--", "sh", "-c", "ls /mnt/results").stdout.split()
    assert len([name for name in kept if name.startswith("emnist-batch.") and name.endswith(".csv")]) == 2, kept


def test_a_tag_that_is_not_there_changes_nothing_for_clients(report):
    ours("set", "image", "deployment/emnist", f"*={PREFIX}-serve:missing")

    def reasons():
        statuses = [s for pod in serve_pods() for s in pod["status"].get("initContainerStatuses", [])]
        return {s["state"].get("waiting", {}).get("reason") for s in statuses}

    wait_for("the missing image's message", lambda: reasons() & {"ErrImagePull", "ImagePullBackOff"}, 60)
    report(
        "upgrade to a tag that is not there",
        f"{', '.join(sorted(filter(None, reasons())))}; {ready_count()} pods serve on",
        "2 pods serve on",
    )
    assert ready_count() >= 2
    ours("rollout", "undo", "deployment/emnist")
    ours("rollout", "status", "deployment/emnist", "--timeout=120s")


def test_wrong_use_fails_at_once(report):
    ours("set", "env", "cronjob/emnist-batch", "ALPHABET=greek")
    ours("create", "job", "greek", "--from=cronjob/emnist-batch")
    ours("set", "env", "cronjob/emnist-batch", "ALPHABET=alnum")
    seconds = wait_for("the failing run", lambda: finished("greek"), 60)
    pods = get("pods", "--selector", "batch.kubernetes.io/job-name=greek")["items"]
    (line,) = ours("logs", "job/greek").stdout.splitlines()
    report("a run with an unknown alphabet", f"Failed after {seconds:.0f} s and {len(pods)} try: `{line}`", "1 try")
    assert "unknown alphabet 'greek'" in line
    assert len(pods) == 1


def test_a_claim_that_cannot_be_bound_says_so(report):
    (claim,) = [c for c in get("pvc")["items"] if c["metadata"]["name"] == "emnist-pictures"]
    spec = {**claim["spec"], "storageClassName": "nowhere"}
    spec.pop("volumeName", None)
    pending = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "pending", "namespace": NAMESPACE},
        "spec": spec,
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(pending))
    wait_for("an event", lambda: "nowhere" in ours("describe", "pvc", "pending").stdout.partition("Events:")[2], 60)
    report("a claim of an unknown storage class", "`kubectl describe pvc` names it")
    ours("delete", "pvc", "pending")


def test_a_gpu_that_no_node_has_is_said(cluster, report):
    """One pod goes first, for a GPU may be its own; the others serve on. Then the Deployment is as before."""
    apply_overlay(cluster.folder, "gpu")
    wait_for("the scheduler's message", lambda: "Insufficient nvidia.com/gpu" in ours("get", "events").stdout, 60)
    seen = f"Insufficient nvidia.com/gpu; {ready_count()} of 2 pods serve on"
    report("the overlay `gpu` where no node has one", seen, "1 serves on")
    assert ready_count() >= 1
    apply_everything(cluster.folder)
    ours("rollout", "status", "deployment/emnist", "--timeout=120s")


@pytest.mark.parametrize("overlay", sorted(path.name for path in OVERLAYS.iterdir()))
def test_the_overlays_are_accepted(cluster, overlay):
    rendered = kubectl("kustomize", str(cluster.folder / "overlays" / overlay)).stdout
    if overlay == "nfs":  # it stands in the place of k8s/, whose claim cannot be changed any more
        rendered = rendered.replace("name: emnist-pictures", "name: emnist-archive").replace(
            "volumeName: emnist-pictures", "volumeName: emnist-archive"
        )
    kubectl("apply", "--dry-run=server", "-f", "-", stdin=rendered)


def test_the_network_policy(report):
    pod, *_ = serve_pods()
    address, ports = pod["status"]["podIP"], (*EDGE_PORTS, PROBE_PORT, *INNER_PORTS)
    closed = in_cluster("reach", address, *ports)
    ours("delete", "networkpolicy", "emnist-serve")
    wait_for("the ports without a policy", lambda: in_cluster("reach", address, PROBE_PORT) == [PROBE_PORT], 30)
    without = in_cluster("reach", address, *ports)
    kubectl("apply", "-f", str(K8S / "20-network-policy.yaml"))
    wait_for("the policy again", lambda: in_cluster("reach", address, PROBE_PORT) == [], 30)
    report("ports that a stranger's pod reaches", f"{closed}; without the policy {without}", f"{EDGE_PORTS}")
    assert closed == EDGE_PORTS
    assert without == [*EDGE_PORTS, PROBE_PORT], "TorchServe's own ports are the pod's alone in any case"
    assert in_cluster("load", f"emnist.{NAMESPACE}", 80, "--seconds", 2)["outcomes"].keys() == {"right"}


def test_prometheus_alone_reads_the_metrics(cluster, report):
    """The overlay's policy, whose namespace is made the strangers'; what it lets in is a pod with Prometheus's
    label.
    """
    rendered = kubectl("kustomize", str(cluster.folder / "overlays" / "monitoring")).stdout
    own_namespace = "kubernetes.io/metadata.name: monitoring"
    assert rendered.count(own_namespace) == 1
    kubectl("apply", "-f", "-", stdin=rendered.replace(own_namespace, f"kubernetes.io/metadata.name: {STRANGERS}"))
    start_pod("prometheus")
    wait_for_pod("prometheus")
    pod, *_ = serve_pods()
    address, ports = pod["status"]["podIP"], (*EDGE_PORTS, PROBE_PORT, *INNER_PORTS)
    wait_for(
        "the way to the metrics", lambda: in_cluster("reach", address, PROBE_PORT, pod="prometheus") == [PROBE_PORT], 30
    )
    reached = {name: in_cluster("reach", address, *ports, pod=name) for name in ("prometheus", "stranger")}
    report(
        "with `overlays/monitoring`: ports that Prometheus reaches, and a stranger",
        f"{reached['prometheus']}, {reached['stranger']}",
    )
    assert reached == {"prometheus": [*EDGE_PORTS, PROBE_PORT], "stranger": EDGE_PORTS}
    for path, metric in (("metrics", "haproxy_frontend_http_requests_total"), ("metrics/model", "emnist_workers")):
        script = (
            f"import urllib.request as u; print(u.urlopen('http://{address}:{PROBE_PORT}/{path}',"
            " timeout=5).read().decode())"
        )
        assert metric in kubectl("exec", "--namespace", STRANGERS, "prometheus", "--", "python", "-c", script).stdout
    assert get("configmap", "emnist-dashboard")["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(get("configmap", "emnist-dashboard")["data"]["emnist.json"])["panels"]
    kubectl("delete", "-f", "-", stdin=rendered)


def test_a_pod_whose_workers_die_leaves_and_comes_back(report):
    name = serve_pods()[0]["metadata"]["name"]
    before = restarts(next(pod for pod in serve_pods() if pod["metadata"]["name"] == name))
    assert name in in_service()
    ours("exec", name, "--container", "torchserve", "--", "python", "-c", KILL_WORKERS)
    out = wait_for("the pod to leave the Service", lambda: name not in in_service(), OUT_S)
    back = wait_for("the pod to come back", lambda: name in in_service(), 60)
    report("workers killed once: out of the Service, and back", f"{out:.1f} s, {back:.1f} s later", f"<= {OUT_S} s")

    stop = threading.Event()

    def kill_again():
        while not stop.is_set():
            ours("exec", name, "--container", "torchserve", "--", "python", "-c", KILL_WORKERS, check=False)

    thread = threading.Thread(target=kill_again)
    thread.start()
    try:

        def restarted():
            return (
                restarts(next(pod for pod in serve_pods() if pod["metadata"]["name"] == name))["torchserve"]
                > before["torchserve"]
            )

        seconds = wait_for("a restart of TorchServe", restarted, 120)
    finally:
        stop.set()
        thread.join()
    back = wait_for("the pod to come back", lambda: name in in_service(), 90)
    report("workers killed again and again: TorchServe restarted, and back", f"{seconds:.0f} s, {back:.0f} s later")
