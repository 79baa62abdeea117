"""Everything on a real cluster: the one of the current kubeconfig context, in the namespace `emnist`, which is removed again.

`make cluster-test` builds the images and brings them onto the nodes first. The tests build on one another, in their order.
"""

import contextlib
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from serving.client import Client
from serving.local import free_ports

pytestmark = pytest.mark.cluster

K8S = Path(__file__).resolve().parents[1]
ROOT = K8S.parent
SAMPLES = ROOT / "serving" / "samples"
DEFAULT_PREFIX, DEFAULT_VERSION = "docker.io/library/emnist", "0.1.0"
PREFIX, VERSION = os.environ.get("IMAGE_PREFIX", DEFAULT_PREFIX), os.environ.get("VERSION", DEFAULT_VERSION)
NAMESPACE, STRANGERS = "emnist", "emnist-strangers"
READY_S, OUT_S = 30, 10  # aims: from apply to Ready; from a worker's death to the pod's leaving of the Service
SERVE_PODS = "app.kubernetes.io/component=serve"
EDGE_PORT, PROBE_PORT = 8080, 8090
INNER_PORTS = (8081, 8082, 8085, 7070, 7071)  # TorchServe's own

STRANGER = f"""
apiVersion: v1
kind: Namespace
metadata:
  name: {STRANGERS}
---
apiVersion: v1
kind: Pod
metadata:
  name: stranger
  namespace: {STRANGERS}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: python
      image: {PREFIX}-batch:{VERSION}
      imagePullPolicy: IfNotPresent
      command: [sleep, infinity]
"""

KILL_WORKERS = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if b"model_service_worker" in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
        os.kill(int(folder.name), signal.SIGKILL)
"""


def kubectl(*arguments, stdin=None, check=True, timeout=180):
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done


def ours(*arguments, **options):
    return kubectl("--namespace", NAMESPACE, *arguments, **options)


def get(*arguments):
    return json.loads(ours("get", *arguments, "--output", "json").stdout)


def wait_for(what, condition, timeout_s):
    """Poll until `condition()` is true; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"{what}: not within {timeout_s} s\n{ours('get', 'all', check=False).stdout}"
        time.sleep(0.2)
    return time.monotonic() - started


def serve_pods():
    return [pod for pod in get("pods", "--selector", SERVE_PODS)["items"] if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def ready_count():
    return sum(is_ready(pod) for pod in serve_pods())


def restarts(pod):
    statuses = pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", [])
    return {status["name"]: status["restartCount"] for status in statuses}


def in_service():
    """Names of the pods that the Service sends requests to."""
    slices = get("endpointslices", "--selector", "kubernetes.io/service-name=emnist")["items"]
    endpoints = [endpoint for found in slices for endpoint in found["endpoints"] or []]
    return {endpoint["targetRef"]["name"] for endpoint in endpoints if endpoint["conditions"]["ready"]}


def apply_everything(folder):
    """`kubectl apply -f k8s/`, or -k where the images have other names, in `folder`, which holds a copy."""
    default = (PREFIX, VERSION) == (DEFAULT_PREFIX, DEFAULT_VERSION)
    return subprocess.run(
        ["kubectl", "apply", "-f" if default else "-k", "k8s/"], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )


def copy_of_the_manifests(folder):
    """k8s/ in `folder`, with the names that the images have."""
    shutil.copytree(K8S, folder / "k8s", ignore=shutil.ignore_patterns("tests"))
    for file in [folder / "k8s" / "Kustomization", *(folder / "k8s" / "overlays").rglob("kustomization.yaml")]:
        text = file.read_text().replace(f"newTag: {DEFAULT_VERSION}", f"newTag: {VERSION}")
        file.write_text(text if PREFIX == DEFAULT_PREFIX else text.replace("newName: emnist", f"newName: {PREFIX}"))


@pytest.fixture(scope="module")
def report(request):
    """A function that notes a line of the table, which is printed at the end and kept in build/cluster-test.md."""
    rows = [("what", "seen", "wanted"), ("---", "---", "---")]
    yield lambda what, seen, wanted="": rows.append((what, seen, wanted))
    table = "\n".join(f"| {what} | {seen} | {wanted} |" for what, seen, wanted in rows)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "cluster-test.md").write_text(table + "\n")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{table}\n")


class Cluster(NamedTuple):
    folder: Path  # holds a copy of k8s/
    first_ready_s: float  # from apply to the first pod Ready


@pytest.fixture(scope="module", autouse=True)
def cluster(report, tmp_path_factory):
    """Apply everything, note the times, and remove it again."""
    if kubectl("get", "namespace", NAMESPACE, check=False).returncode == 0:
        pytest.exit(f"the namespace {NAMESPACE} is there already; this test would delete it: kubectl delete namespace {NAMESPACE}", 1)
    try:
        kubectl("apply", "-f", "-", stdin=STRANGER)
        folder = tmp_path_factory.mktemp("cluster")
        copy_of_the_manifests(folder)
        started = time.monotonic()
        apply_everything(folder)
        first_ready_s = wait_for("the first pod", lambda: ready_count() >= 1, 120)
        report("apply to the first pod Ready", f"{time.monotonic() - started:.0f} s", f"<= {READY_S} s")
        wait_for("two pods", lambda: ready_count() >= 2, 120)
        report("apply to two pods Ready", f"{time.monotonic() - started:.0f} s")
        wait_for("the stranger", lambda: "Running" in kubectl("get", "pod", "stranger", "--namespace", STRANGERS).stdout, 60)
        yield Cluster(folder, first_ready_s)
    finally:
        kubectl("delete", "namespace", NAMESPACE, STRANGERS, "--ignore-not-found", check=False, timeout=300)


def in_cluster(*arguments, timeout=300):
    """Run in_cluster.py in the stranger's pod."""
    script = (Path(__file__).parent / "in_cluster.py").read_text()
    command = ("exec", "--namespace", STRANGERS, "--stdin", "stranger", "--", "python", "-", *map(str, arguments))
    return json.loads(kubectl(*command, stdin=script, timeout=timeout).stdout)


def load(users, seconds, every=0.0):
    return in_cluster("load", f"emnist.{NAMESPACE}", 80, "--users", users, "--seconds", seconds, "--every", every, timeout=seconds + 120)


@contextlib.contextmanager
def in_the_background(function, *arguments, **options):
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *arguments, **options)


def transitions():
    """When each pod of the service last became Ready or stopped being so, and the restarts of its containers."""
    return {
        pod["metadata"]["name"]: (restarts(pod), [c["lastTransitionTime"] for c in pod["status"]["conditions"] if c["type"] == "Ready"])
        for pod in serve_pods()
    }


@contextlib.contextmanager
def forwarded():
    """The Service's address on this machine, by kubectl port-forward."""
    (port,) = free_ports(1)
    command = ["kubectl", "--namespace", NAMESPACE, "port-forward", "service/emnist", f"{port}:80"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0 and time.monotonic() < deadline:
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def files(folder: Path):
    """The pod of overlays/files, which holds both claims."""
    kubectl("apply", "-k", str(folder / "k8s" / "overlays" / "files"))
    ours("wait", "--for=condition=Ready", "pod/emnist-files", "--timeout=60s")
    try:
        yield
    finally:
        ours("delete", "pod", "emnist-files")


def result(name):
    """The rows of a result in the claim, through the pod of `files`."""
    return list(csv.DictReader(io.StringIO(ours("exec", "emnist-files", "--", "cat", f"/mnt/results/{name}").stdout)))


def finished(job):
    return any(c["type"] in {"Complete", "Failed"} and c["status"] == "True" for c in get("job", job)["status"].get("conditions", []))


def schedulable_nodes():
    nodes = json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]
    return [node for node in nodes if not node["spec"].get("unschedulable") and not node["spec"].get("taints")]


def test_the_service_is_ready_soon(cluster):
    assert cluster.first_ready_s <= READY_S


def test_the_pods_are_spread_over_the_nodes(report):
    nodes = schedulable_nodes()
    used = {pod["spec"]["nodeName"] for pod in serve_pods()}
    report("nodes used by two pods", len(used), min(2, len(nodes)))
    assert len(used) == min(2, len(nodes))


def test_rest_through_the_service(report):
    with forwarded() as url, Client(url) as client:
        answers = {path.name: client.predict(path.read_bytes())["character"] for path in sorted(SAMPLES.iterdir())}
        version = requests.post(f"{url}/predictions/emnist", data=b"junk", timeout=10).headers["X-Model-Version"]
    right = sum(name[0] == character for name, character in answers.items())
    report("sample pictures over REST, right", f"{right} of {len(answers)} (model {version})", f"{len(answers)}")
    assert right == len(answers)


def test_the_first_run_scored_the_samples(cluster, report):
    report("the first run's Job, complete after", f"{wait_for('the first run', lambda: finished('emnist-batch'), 120):.0f} s more")
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
        return {(o["kind"], o["metadata"]["name"]): (o["metadata"]["uid"], o.get("spec"), o.get("data")) for o in get(kinds)["items"]}

    before = state()
    done = apply_everything(cluster.folder)
    report("second apply", f"exit {done.returncode}, {'nothing' if state() == before else 'something'} changed", "exit 0, nothing changed")
    assert state() == before


def test_a_next_run_over_own_pictures(cluster, report):
    """The README's own commands, with a folder of pictures, one of them broken, in a folder of its own."""
    pictures = cluster.folder / "my-pictures" / "box 1"
    pictures.mkdir(parents=True)
    for sample in SAMPLES.iterdir():
        shutil.copy(sample, pictures)
    (pictures / "broken.png").write_bytes(b"junk")
    (commands,) = [block for block in (ROOT / "README.md").read_text().split("```")[1::2] if "cp my-pictures" in block]
    done = subprocess.run(["bash", "-euxc", commands], cwd=cluster.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = {Path(row["path"]).name: row["character"] or row["status"] for row in csv.DictReader((cluster.folder / "march.csv").open(newline=""))}
    expected = {path.name: path.name[0] for path in SAMPLES.iterdir()} | {"broken.png": "error"}
    report("next run over copied pictures", f"{sum(outcomes.get(k) == v for k, v in expected.items())} of {len(expected)} rows as expected")
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
    assert len({pod["spec"]["nodeName"] for pod in pods if is_ready(pod)}) == min(2, len(schedulable_nodes())), "still spread"
    ours("create", "job", "upgraded", "--from=cronjob/emnist-batch")
    wait_for("the run after the upgrade", lambda: finished("upgraded"), 120)
    with files(cluster.folder):
        first, march, upgraded = (result(f"{name}.csv") for name in ("emnist-batch", "march", "upgraded"))
    report("upgrade of service and batch, a run after it", f"{len(upgraded)} rows; the earlier results still have {len(first)} and {len(march)}")
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
    report("upgrade to a tag that is not there", f"{', '.join(sorted(filter(None, reasons())))}; {ready_count()} pods serve on", "2 pods serve on")
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
    pending = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "pending", "namespace": NAMESPACE}, "spec": spec}
    kubectl("apply", "-f", "-", stdin=json.dumps(pending))
    wait_for("an event", lambda: "nowhere" in ours("describe", "pvc", "pending").stdout.partition("Events:")[2], 60)
    report("a claim of an unknown storage class", "`kubectl describe pvc` names it")
    ours("delete", "pvc", "pending")


def test_a_gpu_that_no_node_has_is_said(cluster, report):
    """And the pods that run serve on; then the Deployment is as before."""
    folder = cluster.folder / "k8s" / "overlays" / "gpu"
    kubectl("apply", "-f", "-", stdin=kubectl("kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)).stdout)
    wait_for("the scheduler's message", lambda: "Insufficient nvidia.com/gpu" in ours("get", "events").stdout, 60)
    report("the overlay `gpu` where no node has one", f"Insufficient nvidia.com/gpu; {ready_count()} pods serve on", "2 pods serve on")
    assert ready_count() >= 2
    apply_everything(cluster.folder)
    ours("rollout", "status", "deployment/emnist", "--timeout=120s")


@pytest.mark.parametrize("overlay", sorted(path.name for path in (K8S / "overlays").iterdir()))
def test_the_overlays_are_accepted(cluster, overlay):
    rendered = kubectl("kustomize", "--load-restrictor", "LoadRestrictionsNone", str(cluster.folder / "k8s" / "overlays" / overlay)).stdout
    if overlay == "nfs":  # it stands in the place of k8s/, whose claim cannot be changed any more
        rendered = rendered.replace("name: emnist-pictures", "name: emnist-archive").replace(
            "volumeName: emnist-pictures", "volumeName: emnist-archive"
        )
    kubectl("apply", "--dry-run=server", "-f", "-", stdin=rendered)


def test_the_network_policy(report):
    (pod, *_) = serve_pods()
    address, ports = pod["status"]["podIP"], (EDGE_PORT, PROBE_PORT, *INNER_PORTS)
    closed = in_cluster("reach", address, *ports)
    ours("delete", "networkpolicy", "emnist-serve")
    wait_for("the ports without a policy", lambda: in_cluster("reach", address, PROBE_PORT) == [PROBE_PORT], 30)
    without = in_cluster("reach", address, *ports)
    kubectl("apply", "-f", str(K8S / "20-network-policy.yaml"))
    wait_for("the policy again", lambda: in_cluster("reach", address, PROBE_PORT) == [], 30)
    report("ports that a stranger's pod reaches", f"{closed}; without the policy {without}", f"[{EDGE_PORT}]")
    assert closed == [EDGE_PORT]
    assert without == [EDGE_PORT, PROBE_PORT], "TorchServe's own ports are the pod's alone in any case"
    assert in_cluster("load", f"emnist.{NAMESPACE}", 80, "--seconds", 2)["outcomes"].keys() == {"right"}


def test_a_rolling_restart_under_light_load(report):
    with in_the_background(load, 8, 60, 0.07) as sending:
        time.sleep(5)
        ours("rollout", "restart", "deployment/emnist")
        ours("rollout", "status", "deployment/emnist", "--timeout=120s")
        outcomes = sending.result()["outcomes"]
    sent = sum(outcomes.values())
    lost = sent - outcomes.get("right", 0)
    report("lost in a rolling restart, 8 users", f"{lost} of {sent} ({outcomes})", "counted")
    assert lost <= sent // 100


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
            return restarts(next(pod for pod in serve_pods() if pod["metadata"]["name"] == name))["torchserve"] > before["torchserve"]

        seconds = wait_for("a restart of TorchServe", restarted, 120)
    finally:
        stop.set()
        thread.join()
    back = wait_for("the pod to come back", lambda: name in in_service(), 90)
    report("workers killed again and again: TorchServe restarted, and back", f"{seconds:.0f} s, {back:.0f} s later")


def test_overload_is_shed_and_the_pods_stay_ready(cluster, report):
    """Pods of 0.4 cores each, so that a generator beside them on a small machine can offer several times what they can do."""
    ours("patch", "hpa", "emnist", "--patch", '{"spec": {"maxReplicas": 2}}')
    limit = [{"op": "replace", "path": "/spec/template/spec/initContainers/0/resources/limits/cpu", "value": "400m"}]
    ours("patch", "deployment", "emnist", "--type=json", "--patch", json.dumps(limit))
    ours("rollout", "status", "deployment/emnist", "--timeout=170s")
    wait_for("two pods", lambda: len(serve_pods()) == ready_count() == 2, 120)
    capacity = load(64, 10)["per_second"]
    before = transitions()
    # A picture a second from each, also when the last one was answered late; who waits for an answer sends nothing meanwhile.
    overload = load(max(700, int(5 * capacity)), 40, every=1.0)
    outcomes, offered = overload["outcomes"], overload["offered_per_second"]
    steady = transitions() == before
    report(
        f"{offered:.0f}/s offered for 40 s, {offered / capacity:.1f} times the capacity of {capacity:.0f}/s",
        f"{overload['per_second']:.0f} right/s, p99 {overload['p99_s']:.1f} s, {outcomes}; {'no' if steady else 'a'} pod left",
        "no pod, the excess shed",
    )
    assert steady
    assert set(outcomes) == {"right", "shed"}
    assert offered >= 3 * capacity, "the generator did not offer three times the capacity"
    apply_everything(cluster.folder)
    ours("rollout", "status", "deployment/emnist", "--timeout=170s")


def test_the_autoscaler_goes_out_and_back(report):
    if kubectl("top", "pods", "--namespace", NAMESPACE, check=False).returncode != 0:
        pytest.skip("the cluster has no metrics-server, which the autoscaler needs")
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 10, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}
    metric = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "300m"}}}
    ours("patch", "hpa", "emnist", "--patch", json.dumps({"spec": {"maxReplicas": 3, "behavior": behavior, "metrics": [metric]}}))
    with in_the_background(load, 32, 60) as sending:
        out = wait_for("a third pod", lambda: ready_count() >= 3, 90)
        outcomes = sending.result()["outcomes"]
    back = wait_for("two pods again", lambda: len(serve_pods()) == 2, 180)
    report("autoscaler: a third pod Ready, and gone again (shortened window)", f"after {out:.0f} s, {back:.0f} s after the load; {outcomes}")
    assert set(outcomes) <= {"right", "shed"}
