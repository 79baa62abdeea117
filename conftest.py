"""What the tests of several packages share: real EMNIST images, small models trained on nothing, and one service a
run.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from handlers.recognizer import Recognizer
from serving.local import Server, reserved_ports, running
from serving.package import package
from training.checkpoint import new_state
from training.data import CLASSES, Images, load_emnist
from training.data.splits import wanted_classes
from training.export import export
from training.settings import Settings, from_dict, load_recipe

ROOT = Path(__file__).resolve().parent
FIXTURES = ROOT / "training" / "tests" / "fixtures"  # 12 training and 6 test images of each EMNIST Balanced class
MODEL = ROOT / "serving" / "models" / "emnist.pt"

LONGEST_END_S = 10
# pytest-xdist gives the tests of one group to one worker, so that each of these fixtures is made once.
GROUPS = ("server", "tight", "alone", "finished", "untrained", "untrained_recipe")

# One thread a process, here and in what the tests start: the processes are as many as the cores already.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# A shell's background job starts with SIGINT ignored, which the programs that are tested would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def group_of(item) -> str | None:
    return next((name for name in GROUPS if name in item.fixturenames), None)


def pytest_itemcollected(item):
    if name := group_of(item):
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_modifyitems(items):
    """Run the groups first: the largest must not be the last to start."""
    items.sort(key=lambda item: GROUPS.index(group) if (group := group_of(item)) else len(GROUPS))


@pytest.fixture
def program():
    """subprocess.Popen, for a process that is ended with the test, also with one that fails."""
    processes = []

    def popen(*arguments, **options):
        processes.append(subprocess.Popen(*arguments, **options))
        return processes[-1]

    yield popen
    for process in processes:
        with process:  # which closes its pipes
            process.terminate()
            try:
                process.wait(LONGEST_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else is given during the test."""
    with reserved_ports(1) as (port,):
        yield port


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def emnist_root() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def emnist() -> Images:
    return load_emnist(FIXTURES, "balanced", "test")


@pytest.fixture(scope="session")
def model_path() -> Path:
    return MODEL


@pytest.fixture(scope="session")
def mar(tmp_path_factory) -> Path:
    """The committed model's archive."""
    path = tmp_path_factory.mktemp("mar") / "emnist.mar"
    package(MODEL, path)
    return path


@pytest.fixture(scope="session")
def server(mar) -> Iterator[Server]:
    """A service of the committed model with the default settings, for every test that needs no other."""
    with running(mar) as server:
        yield server


@pytest.fixture(scope="session")
def recognizer() -> Recognizer:
    return Recognizer(MODEL)


def _untrained_checkpoint(classes: str, settings: Settings | None = None) -> dict:
    torch.manual_seed(0)
    settings = settings or from_dict({"model": {"stem": 8, "widths": [8, 8, 8]}})
    state = new_state(settings, len(classes), torch.device("cpu"))
    for module in state.average.module.modules():  # so that forgetting or doubling a batch norm shows
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return {
        "settings": settings.to_dict(),
        "classes": list(classes),
        "weights": state.average.module.state_dict(),
        "temperature": 0.7,
        "samples": load_emnist(FIXTURES, "balanced", "test")
        .take(torch.arange(64))
        .resized(settings.model.input_size)
        .images,
    }


@pytest.fixture(scope="session")
def untrained_checkpoint():
    """A function that makes a checkpoint of the given classes, and settings, with random weights and all that an export
    needs.
    """
    return _untrained_checkpoint


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A function that exports an untrained model of the given classes, once, and returns its path."""

    @cache
    def make(classes: str) -> Path:
        path = tmp_path_factory.mktemp("untrained") / "emnist.pt"
        export(_untrained_checkpoint(classes), path)
        return path

    return make


@pytest.fixture(scope="session")
def untrained_recipe(tmp_path_factory):
    """A function that exports an untrained model of the recipe of that name, and its classes, once, and returns its
    path.
    """

    @cache
    def make(name: str, *overrides: str) -> Path:
        settings = load_recipe(name, overrides)
        path = tmp_path_factory.mktemp(name) / "emnist.pt"
        export(
            _untrained_checkpoint(
                wanted_classes(settings.data.classes) or CLASSES[settings.data.train_split], settings
            ),
            path,
        )
        return path

    return make
