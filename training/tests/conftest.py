"""A small run on the fixture's images: one to be trained by a test, and one that is finished, with all that its folder
holds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from training.data import load_splits
from training.run import Run
from training.settings import from_dict

ROOT = Path(__file__).resolve().parents[2]
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
        settings = from_dict(
            {**{key: dict(v) if isinstance(v, dict) else v for key, v in SMALL.items()}, "report": report}
        )
        return Run(settings, load_splits(settings.data, emnist_root), folder, torch.device("cpu"))

    return make


@dataclass(frozen=True)
class Finished:
    """A run of two epochs by the command: its folder, to be copied, not changed, and what the command printed."""

    folder: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def finished(emnist_root, tmp_path_factory) -> Finished:
    overrides = [f"{key}={value}" for key, value in SMALL.items() if not isinstance(value, dict)]
    overrides += [
        f"{key}.{field}={value}"
        for key, section in SMALL.items()
        if isinstance(section, dict)
        for field, value in section.items()
    ]
    overrides += ["data.degraded_copies=0", "data.test_pictures=2", "report.scalars=1"]
    command = [sys.executable, "-m", "training.train", "--name", "small", "--emnist-root", str(emnist_root)]
    command += [f"--set={override}" for override in overrides]
    folder = tmp_path_factory.mktemp("command")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return Finished(folder / "runs" / "small", done.stdout, done.stderr)


@pytest.fixture(scope="session")
def finished_run(finished) -> Path:
    return finished.folder
