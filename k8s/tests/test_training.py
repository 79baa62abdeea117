"""Training on the cluster: a short Job whose pod is told to end in the middle, and its model brought to the service
under load.

Part of `make cluster-test`, which builds the training image without CUDA. The Job trains on the tests' own few images.
"""

import re
import subprocess

import pytest
import yaml
from cluster import (
    PREFIX,
    ROOT,
    VERSION,
    apply_overlay,
    finished,
    get,
    kubectl,
    load,
    ours,
    overlay_objects,
    rollout,
    settled,
    under_load,
    wait_for,
)

from handlers.recognizer import Recognizer

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

IMAGES = ROOT / "training" / "tests" / "fixtures" / "EMNIST"
JOB, FILES = "emnist-train", "emnist-train-files"
EPOCHS = 200  # of 8 steps, with a checkpoint after each: long enough to be met in the middle
SMALL = (
    "data.train_split=balanced",
    "data.validation_fraction=0.1",
    "data.degraded_copies=0",
    "data.test_pictures=0",
    "model.stem=16",
)
SMALL += (
    "model.widths=[32,32]",
    "schedule.batch_size=64",
    f"schedule.epochs={EPOCHS}",
    "compile=never",
    "precision=float32",
)
RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
RUN_TIMEOUT_S = 600
USERS, RATE = 4, 8  # pictures a second: the images are built meanwhile, perhaps on the same cores


def training_objects(folder, name, *overrides):
    """overlays/train-cpu with a Job of that name, which asks for little."""
    objects = overlay_objects(folder, "train-cpu")
    (job,) = [found for found in objects if found["kind"] == "Job"]
    job["metadata"]["name"] = name
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["args"] += [f"--set={value}" for value in (*SMALL, *overrides)]
    container["resources"] = RESOURCES
    return objects


def apply(objects):
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))


def pods_of(job):
    return get("pods", "--selector", f"batch.kubernetes.io/job-name={job}")["items"]


def log_of(pod):
    return ours("logs", pod, check=False).stdout


def last_step(pod):
    return max(map(int, re.findall(r"step (\d+): loss", log_of(pod))), default=0)


@pytest.fixture(scope="module")
def data(cluster):
    """The tests' images in the claim emnist-data."""
    apply([found for found in training_objects(cluster.folder, JOB) if found["kind"] != "Job"])
    apply_overlay(cluster.folder, "train-files")
    ours("wait", "--for=condition=Ready", f"pod/{FILES}", "--timeout=60s")
    ours("cp", str(IMAGES), f"{FILES}:/data")
    ours("delete", "pod", FILES)


@pytest.fixture(scope="module")
def trained(cluster, data, report):  # noqa: ARG001  the data has to be there
    """A finished Job, whose first pod was deleted in the middle."""
    apply(training_objects(cluster.folder, JOB))
    wait_for("the first pod", lambda: pods_of(JOB), 60)
    first = pods_of(JOB)[0]["metadata"]["name"]
    wait_for("a quarter of the training", lambda: last_step(first) > 8 * EPOCHS / 4, RUN_TIMEOUT_S)
    stopped = last_step(first)
    assert not finished(JOB)
    ours("delete", "pod", first)
    wait_for("the next pod", lambda: [pod for pod in pods_of(JOB) if pod["metadata"]["name"] != first], 120)
    wait_for("the end", lambda: finished(JOB), RUN_TIMEOUT_S)
    second = next(pod["metadata"]["name"] for pod in pods_of(JOB) if pod["metadata"]["name"] != first)
    status, log = get("job", JOB)["status"], log_of(second)
    going_on = re.search(r"going on after step (\d+) of (\d+)", log)
    report(
        f"a training Job whose pod is deleted after step {stopped}",
        going_on[0] if going_on else "started anew",
        "goes on, and ends",
    )
    assert status.get("succeeded") == 1, log
    assert going_on, log
    assert int(going_on[1]) >= stopped
    assert "failed" not in status, "a pod that saved itself is no failure"


def test_a_wrong_setting_fails_at_once(cluster, data, report):  # noqa: ARG001  the data has to be there
    apply(training_objects(cluster.folder, "wrong", "optimizer.rl=1"))
    seconds = wait_for("the Job to fail", lambda: finished("wrong"), 120)
    said = "".join(log_of(pod["metadata"]["name"]) for pod in pods_of("wrong"))
    report(
        "a training Job with a wrong setting",
        f"Failed after {seconds:.0f} s and {len(pods_of('wrong'))} try: `{said.strip()}`",
        "1 try",
    )
    assert len(pods_of("wrong")) == 1
    assert said.startswith("train: unknown setting 'optimizer.rl'")


def test_its_model_goes_to_the_service_by_one_command_and_nothing_is_lost(cluster, trained, report):  # noqa: ARG001  a model has to be there
    ours("delete", "hpa", "emnist")
    settled(2)
    before = load(USERS, 2)["versions"]
    command = [
        "make",
        "publish",
        f"NAME={JOB}",
        f"IMAGE_PREFIX={PREFIX}",
        f"VERSION={VERSION}",
        f"OVERLAYS={cluster.folder / 'overlays'}",
    ]
    with under_load(RATE, USERS) as seen:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        rollout()
        settled(2)
    version = Recognizer(ROOT / "runs" / "published" / "emnist.pt").version
    # What few images taught is often wrong.
    answered = seen["outcomes"].get("right", 0) + seen["outcomes"].get("wrong", 0)
    sent = sum(seen["outcomes"].values())
    report(f"`make publish`, under load ({' -> '.join(seen['versions'])})", f"{sent - answered} of {sent:,} lost", "0")
    assert answered == sent > 0, seen["outcomes"]
    assert set(load(USERS, 2)["versions"]) == {version} != set(before)
    batch = get("cronjob", "emnist-batch")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert batch == f"{PREFIX}-batch:{VERSION}-{version}"
