"""A small run on the fixture's images: one to be trained by a test, and one that is finished, with all that its folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import train as train_module
from training.data import load_splits
from training.run import Run
from training.settings import from_dict

SMALL = {
    "data": {"train_split": "balanced", "validation_fraction": 0.1, "test_pictures": 0},
    "model": {"stem": 8, "widths": [8, 16, 16], "dropout": 0.2},
    "schedule": {"epochs": 2, "batch_size": 64},
    "compile": "never",
    "precision": "float32",
}


@pytest.fixture
def small_run(emnist_root, tmp_path):
    """A function that makes a run in a folder of its own; `report` is the settings' section of that name."""

    def make(name: str, report: dict) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        settings = from_dict({**{key: dict(v) if isinstance(v, dict) else v for key, v in SMALL.items()}, "report": report})
        return Run(settings, load_splits(settings.data, emnist_root), folder, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def finished_run(emnist_root, tmp_path_factory) -> Path:
    """The folder of a run of two epochs, from the command; to be copied, not changed."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = [f"{key}={value}" for key, value in SMALL.items() if not isinstance(value, dict)]
    overrides += [f"{key}.{field}={value}" for key, section in SMALL.items() if isinstance(section, dict) for field, value in section.items()]
    sets = [argument for override in [*overrides, "data.degraded_copies=0", "report.scalars=1"] for argument in ("--set", override)]
    assert train_module.main(["--name", "small", "--runs", str(runs), "--emnist-root", str(emnist_root), *sets]) == 0
    return runs / "small"
