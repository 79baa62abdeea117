"""The names that the images get, and the version in them."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

PREFIX = "registry.example.org/emnist"
NEXT = "70.80.90"
TEXTS = {"", ".cfg", ".md", ".py", ".serve", ".toml", ".train", ".yaml", ".yml"}


def make(folder, *arguments):
    environment = {"PATH": os.environ["PATH"]}  # without the variables of a `make test` around this
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def version_of(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture
def copy(root, tmp_path):
    """Of all files that git knows, or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    names = [name for name in listed.stdout.decode().split("\0") if name and (root / name).is_file()]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "serve", "train"),
    [
        ([], ["7.8.9", "latest"], ["7.8.9", "latest"]),
        (["DEVICE=gpu"], ["7.8.9-gpu"], ["7.8.9", "latest"]),
        (["TRAIN_DEVICE=cpu"], ["7.8.9", "latest"], ["7.8.9-cpu"]),
        (["SERVE_TAG=7.8.9-abc"], ["7.8.9-abc"], ["7.8.9", "latest"]),
    ],
)
def test_only_the_default_image_is_the_latest(root, given, serve, train):
    done = make(root, "--dry-run", "images", "VERSION=7.8.9", f"IMAGE_PREFIX={PREFIX}", *given)
    names = re.findall(r" -t (\S+)", done.stdout)
    tags_of = {"batch": serve, "serve": serve, "train": train}
    wanted = [f"{PREFIX}-{name}:{tag}" for name, tags in tags_of.items() for tag in tags]
    assert names == wanted, done.stderr


def test_one_command_sets_the_version_everywhere(copy):
    old = version_of(copy)
    done = make(copy, "set-version", f"VERSION={NEXT}")
    assert done.returncode == 0, done.stderr
    assert version_of(copy) == NEXT
    assert f"-serve:{NEXT} " in make(copy, "--dry-run", "images").stdout
    assert yaml.safe_load((copy / "serving" / "service" / "openapi.yaml").read_text())["info"]["version"] == NEXT
    if shutil.which("kubectl"):
        for folder in [copy / "k8s", *sorted((copy / "overlays").iterdir())]:
            command = ["kubectl", "kustomize", str(folder)]
            rendered = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
            assert set(re.findall(r"image: emnist-\w+:([\d.]+)", rendered)) <= {NEXT}, folder
    texts = [path for path in copy.rglob("*") if path.is_file() and path.suffix in TEXTS]
    assert texts
    for path in texts:
        ours = [line for line in path.read_text().splitlines() if re.search("emnist|tag|version", line, re.IGNORECASE)]
        assert not [line for line in ours if re.search(rf"(?<![\d.]){re.escape(old)}(?![\d.])", line)], path
    assert not list(copy.rglob("*.before"))


@pytest.mark.parametrize("version", ["1.2", "", "v1.2.3", "1.2.3-rc1"])
def test_a_version_that_is_none_is_refused(copy, version):
    before = version_of(copy)
    done = make(copy, "set-version", f"VERSION={version}")
    assert done.returncode != 0
    assert done.stderr.startswith("VERSION must be three numbers, such as 0.2.0")
    assert version_of(copy) == before
