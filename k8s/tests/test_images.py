"""The images run: with a read-only root, any user, no network where none is needed, and they end when they are told to.

`make container-test` builds them first. The settings are the Makefile's variables.
"""

import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import time
import uuid

import pytest
import requests
from cluster import PREFIX, VERSION

from serving.client.client import Client
from serving.local import reserved_ports

pytestmark = pytest.mark.container

DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))  # with options, as "podman --runtime runc"
SERVE, BATCH, TRAIN = f"{PREFIX}-serve:{VERSION}", f"{PREFIX}-batch:{VERSION}", f"{PREFIX}-train:{VERSION}-cpu"
ANY_USER = "54321:54321"
START_TIMEOUT_S = 60
GRACE_S = 10  # docker's own default
MAX_MB = {SERVE: 1200, BATCH: 1000}


def docker(*arguments, timeout=120, check=True):
    done = subprocess.run([*DOCKER, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done


@pytest.fixture
def serving():
    """A function that starts the service in a container, with more options, and returns its address."""
    names, ports = [], contextlib.ExitStack()

    def start(*options):
        name, (port,) = f"emnist-test-{uuid.uuid4().hex[:8]}", ports.enter_context(reserved_ports(1))
        names.append(name)
        docker("run", "--detach", "--name", name, "--network", "host", *options, SERVE, "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{url}/ready", timeout=2).ok:
                    return name, url
            except requests.ConnectionError:
                pass
            time.sleep(0.2)
        raise AssertionError(docker("logs", name, check=False).stderr)

    yield start
    for name in names:
        docker("rm", "--force", name, check=False)
    ports.close()


@pytest.mark.parametrize("user", ["10001:10001", ANY_USER])
def test_the_service_answers_with_a_read_only_root_and_ends_in_order(serving, root, user):
    name, url = serving(
        "--read-only", "--tmpfs", "/tmp", "--user", user, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"
    )
    deadline = time.monotonic() + START_TIMEOUT_S  # the page is a program of its own, and may be there later
    while not (page := requests.get(url, timeout=START_TIMEOUT_S)).ok and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "<canvas" in page.text
    with Client(url) as client:
        for sample in sorted((root / "serving" / "samples").iterdir()):
            assert client.predict(sample.read_bytes()).character == sample.name[0]
        assert client.predict(sample.read_bytes(), alphabet="vin").alphabet == "vin"
    started = time.monotonic()
    docker("stop", "--time", str(GRACE_S), name)
    assert time.monotonic() - started < GRACE_S
    assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"


def test_a_model_that_does_not_load_is_a_line(tmp_path):
    (tmp_path / "emnist.mar").write_bytes(b"junk")
    tmp_path.chmod(0o755)
    done = docker("run", "--rm", "-v", f"{tmp_path}:/broken:ro", SERVE, "--mar", "/broken/emnist.mar", check=False)
    assert done.returncode == 1
    assert "is no model archive" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_batch_program_scores_a_mounted_folder(root, tmp_path):
    for sample in (root / "serving" / "samples").iterdir():
        shutil.copy(sample, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"junk")
    tmp_path.chmod(0o755)
    hardened = ("--read-only", "--network", "none", "--user", ANY_USER, "--cap-drop", "ALL")
    done = docker("run", "--rm", *hardened, "-v", f"{tmp_path}:/mnt/test_data:ro", BATCH, "--input", "/mnt/test_data")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == len(list(tmp_path.iterdir()))
    for row in rows:
        name = row["path"].removeprefix("/mnt/test_data/")
        assert (row["status"], row["character"]) == (("error", "") if name == "broken.png" else ("ok", name[0]))


def test_the_batch_program_scores_the_samples_without_arguments(root):
    done = docker("run", "--rm", "--read-only", BATCH)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["character"] for row in rows] == sorted(
        path.name[0] for path in (root / "serving" / "samples").iterdir()
    )


def test_the_batch_program_says_what_is_wrong():
    assert docker("run", "--rm", BATCH, "--input", "/nowhere", check=False).returncode == 2
    done = docker("run", "--rm", BATCH, "--alphabet", "greek", check=False)
    assert done.returncode == 2
    assert "unknown alphabet 'greek'" in done.stderr


def test_the_batch_program_ends_when_told_to(tmp_path, root):
    sample = (root / "serving" / "samples" / "3_clean.png").read_bytes()
    for number in range(30_000):
        (tmp_path / f"{number}.png").write_bytes(sample)
    tmp_path.chmod(0o755)
    name = f"emnist-test-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, "-v", f"{tmp_path}:/mnt/test_data:ro", BATCH, "--input", "/mnt/test_data")
    try:
        time.sleep(3)
        started = time.monotonic()
        docker("stop", "--time", str(GRACE_S), name)
        assert time.monotonic() - started < GRACE_S
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "1"
        assert "interrupted" in docker("logs", name).stderr
    finally:
        docker("rm", "--force", name, check=False)


def test_the_training_image_trains_evaluates_and_exports(tmp_path, emnist_root):
    """Its twin for a CPU, for a few steps on the tests' own images; then the exported model is scored with."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(emnist_root, data)
    out.mkdir()
    out.chmod(0o777)
    tmp_path.chmod(0o755)
    few = [
        f"--set={value}"
        for value in (
            "schedule.epochs=2",
            "schedule.batch_size=64",
            "data.train_split=balanced",
            "model.widths=[8,16]",
            "data.degraded_copies=0",
        )
    ]
    few.append("--set=data.validation_fraction=0.1")
    volumes = ("-v", f"{data}:/data", "-v", f"{out}:/out")
    hardened = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none")
    done = docker("run", "--rm", *hardened, *volumes, TRAIN, "--name", "few", *few)
    assert "accuracy" in done.stdout
    assert (out / "few" / "emnist.pt").is_file()
    done = docker("run", "--rm", "-v", f"{out}:/out:ro", BATCH, "--model", "/out/few/emnist.pt")
    assert len(done.stdout.splitlines()) > 10


def test_training_saves_itself_when_told_to_end(tmp_path, emnist_root):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    tmp_path.chmod(0o755)
    name = f"emnist-test-{uuid.uuid4().hex[:8]}"
    endless = [
        f"--set={value}"
        for value in ("schedule.epochs=100000", "data.train_split=balanced", "data.validation_fraction=0.1")
    ]
    docker(
        "run",
        "--detach",
        "--name",
        name,
        "-v",
        f"{emnist_root}:/data:ro",
        "-v",
        f"{out}:/out",
        TRAIN,
        "--name",
        "long",
        *endless,
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "long" / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        docker("stop", "--time", "30", name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "130"
        assert "--resume goes on from there" in docker("logs", name).stderr
    finally:
        docker("rm", "--force", name, check=False)


def test_a_gpu_that_is_not_there_is_a_line():
    done = docker("run", "--rm", TRAIN, "--device", "gpu", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("train: a GPU was asked for, and torch sees none")


@pytest.mark.parametrize("image", [SERVE, BATCH])
def test_the_images_hold_no_more_than_they_need(image):
    (inspected,) = json.loads(docker("image", "inspect", image).stdout)
    assert inspected["Size"] / 1e6 < MAX_MB[image]
    assert inspected["Config"]["User"] == "10001:10001"
    assert inspected["Config"]["Labels"]["org.opencontainers.image.version"] == VERSION
    look = (
        "find / -xdev ( -name tests -o -name pip -o -name gcc -o -name cc -o -name javac ) -not -path '/proc/*' -print"
    )
    found = docker(
        "run", "--rm", "--user", "0:0", "--entrypoint", "sh", image, "-c", look.replace("(", "\\(").replace(")", "\\)")
    ).stdout.split()
    assert not [path for path in found if not path.startswith(("/usr/share", "/var/lib/dpkg"))]
