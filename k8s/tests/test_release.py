"""The names that the images get."""

import os
import re
import subprocess

import pytest

PREFIX = "registry.example.org/emnist"


def make(root, *arguments):
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKEOVERRIDES"}}  # of `make test`
    return subprocess.run(["make", *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)


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
    wanted = [f"{PREFIX}-{name}:{tag}" for name, tags in (("batch", serve), ("serve", serve), ("train", train)) for tag in tags]
    assert names == wanted, done.stderr
