"""What the tests of a whole cluster share: kubectl, the pods of the service, load from inside, results of the batch
program.
"""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from serving.local import reserved_ports

K8S = Path(__file__).resolve().parents[1]
ROOT = K8S.parent
OVERLAYS = ROOT / "overlays"
SAMPLES = ROOT / "serving" / "samples"
DEFAULT_PREFIX = "docker.io/library/emnist"
DEFAULT_VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PREFIX, VERSION = os.environ.get("IMAGE_PREFIX", DEFAULT_PREFIX), os.environ.get("VERSION", DEFAULT_VERSION)
NAMESPACE, STRANGERS = "emnist", "emnist-strangers"
SERVE_PODS = "app.kubernetes.io/component=serve"

POD = f"""
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  namespace: {STRANGERS}
  labels:
    app.kubernetes.io/name: NAME
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: python
      image: {PREFIX}-batch:{VERSION}
      imagePullPolicy: IfNotPresent
      command: [sleep, infinity]
"""


def start_pod(name):
    """Start a pod in which Python runs, in a namespace of its own."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STRANGERS}}
    kubectl("apply", "-f", "-", stdin=f"{json.dumps(namespace)}\n---{POD.replace('NAME', name)}")


def wait_for_pod(name):
    wait_for(name, lambda: "Running" in kubectl("get", "pod", name, "--namespace", STRANGERS).stdout, 60)


def kubectl(*arguments, stdin=None, check=True, timeout=180):
    done = subprocess.run(
        ["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
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
        assert time.monotonic() - started < timeout_s, (
            f"{what}: not within {timeout_s} s\n{ours('get', 'all', check=False).stdout}"
        )
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
        ["kubectl", "apply", "-f" if default else "-k", "k8s/"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def copy_of_the_manifests(folder):
    """k8s/ and overlays/ in `folder`, with the names that the images have."""
    shutil.copytree(K8S, folder / "k8s", ignore=shutil.ignore_patterns("tests"))
    shutil.copytree(OVERLAYS, folder / "overlays")
    for file in [folder / "k8s" / "Kustomization", *(folder / "overlays").rglob("kustomization.yaml")]:
        text = file.read_text().replace(f"newTag: {DEFAULT_VERSION}", f"newTag: {VERSION}")
        if PREFIX != DEFAULT_PREFIX:
            text = text.replace("newName: emnist", f"newName: {PREFIX}")
            # An overlay that changes a tag alone finds the image by the name that its base has given it.
            text = re.sub(r"name: emnist(-\w+)( #.*)?\n(?= +newTag)", rf"name: {PREFIX}\1\n", text)
        file.write_text(text)


def apply_overlay(folder, name):
    """An overlay of `copy_of_the_manifests`."""
    kubectl("apply", "-k", str(folder / "overlays" / name))


def overlay_objects(folder, name):
    """What an overlay of `copy_of_the_manifests` holds."""
    return list(yaml.safe_load_all(kubectl("kustomize", str(folder / "overlays" / name)).stdout))


def in_cluster(*arguments, timeout=300, pod="stranger"):
    """Run in_cluster.py in a pod of start_pod's."""
    script = (Path(__file__).parent / "in_cluster.py").read_text()
    command = ("exec", "--namespace", STRANGERS, "--stdin", pod, "--", "python", "-", *map(str, arguments))
    return json.loads(kubectl(*command, stdin=script, timeout=timeout).stdout)


def load(users, seconds, every=0.0, *options):
    """Users for some seconds; what they saw, as in_cluster.Record tells it."""
    arguments = ("--users", users, "--seconds", seconds, "--every", every, *options)
    return in_cluster("load", f"emnist.{NAMESPACE}", 80, *arguments, timeout=seconds + 120)


@contextlib.contextmanager
def in_the_background(function, *arguments, **options):
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *arguments, **options)


@contextlib.contextmanager
def under_load(rate, users=16, deadline_s=35):
    """Users who together send `rate` pictures a second while the body runs; yields a dictionary, filled at the end."""
    in_stranger = ("exec", "--namespace", STRANGERS, "stranger", "--")
    stop_file = f"/tmp/stop-{time.monotonic_ns()}"
    seen = {}
    with in_the_background(
        load, users, 1200, users / rate, "--stop-file", stop_file, "--deadline", deadline_s
    ) as sending:
        try:
            time.sleep(4)
            yield seen
            time.sleep(4)
        finally:
            kubectl(*in_stranger, "touch", stop_file)
        seen.update(sending.result())


def transitions():
    """When each pod of the service last became Ready or stopped being so, and the restarts of its containers."""
    return {
        pod["metadata"]["name"]: (
            restarts(pod),
            [c["lastTransitionTime"] for c in pod["status"]["conditions"] if c["type"] == "Ready"],
        )
        for pod in serve_pods()
    }


def lost(seen):
    """All that was not answered rightly, by what came instead."""
    return {outcome: count for outcome, count in seen["outcomes"].items() if outcome != "right"}


def in_pod(name, program, *arguments):
    """Run a program in the container of TorchServe; what it prints."""
    return ours(
        "exec", name, "--container", "torchserve", "--", "python", "-c", program, *map(str, arguments), check=False
    ).stdout


def rollout():
    ours("rollout", "status", "deployment/emnist", "--timeout=180s")


def settled(count):
    """Wait until there are so many pods, all Ready, and none that ends."""
    wait_for(
        f"{count} pods", lambda: len(get("pods", "--selector", SERVE_PODS)["items"]) == ready_count() == count, 180
    )


@contextlib.contextmanager
def forwarded():
    """The Service's address on this machine, by kubectl port-forward."""
    with reserved_ports(1) as (port,):
        command = ["kubectl", "--namespace", NAMESPACE, "port-forward", "service/emnist", f"{port}:80"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0 and time.monotonic() < deadline:
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def files(folder: Path):
    """The pod of overlays/files, which holds both claims."""
    apply_overlay(folder, "files")
    ours("wait", "--for=condition=Ready", "pod/emnist-files", "--timeout=60s")
    try:
        yield
    finally:
        ours("delete", "pod", "emnist-files")


def result(name):
    """The rows of a result in the claim, through the pod of `files`."""
    return list(csv.DictReader(io.StringIO(ours("exec", "emnist-files", "--", "cat", f"/mnt/results/{name}").stdout)))


def finished(job):
    return any(
        c["type"] in {"Complete", "Failed"} and c["status"] == "True"
        for c in get("job", job)["status"].get("conditions", [])
    )


def schedulable_nodes():
    nodes = json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]
    return [node for node in nodes if not node["spec"].get("unschedulable") and not node["spec"].get("taints")]
