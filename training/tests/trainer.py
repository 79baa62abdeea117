"""One process of a run, for test_distributed: `python trainer.py FOLDER [--resume] [--stop-rank R] [--impatient]`.

Its net has no batch norm, whose statistics are each process's own, and no kinks, at which rounding would make a
difference: so several processes compute what one alone does.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from training import models, train
from training.data import load_splits
from training.distributed import join
from training.run import Run
from training.settings import from_dict

FIXTURES = Path(__file__).parent / "fixtures"
STOP_STEP = 43
SETTINGS = {
    "data": {"train_split": "balanced", "validation_fraction": 0.1},
    "schedule": {"epochs": 8, "batch_size": 64, "warmup": 0.1, "ema": 0.9},
    "optimizer": {"lr": 0.2},
    "compile": "never",
    "precision": "float32",
}

IMPATIENT = {
    "name": "plateau",
    "plateau_factor": 0.5,
    "plateau_patience": 0,
    "patience": 3,
    "epochs": 60,
    "warmup": 0,
    "fade": 0,
}


def plain(classes, _):
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.Tanh(), nn.Conv2d(8, 16, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(256, classes)
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-rank", type=int, default=-1, help="the process that is told to end at STOP_STEP")
    parser.add_argument("--impatient", action="store_true", help="lower the rate on a plateau, and stop early")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    models.MODELS["resnet"] = plain
    device, settings = (
        torch.device("cpu"),
        from_dict(SETTINGS | ({"schedule": SETTINGS["schedule"] | IMPATIENT} if arguments.impatient else {})),
    )
    step = train.train_step

    def step_and_signal(run, state, *rest):
        if state.step == STOP_STEP and run.group.rank == arguments.stop_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, state, *rest)

    train.train_step = step_and_signal
    with join(device) as group:
        try:
            train.train(
                Run(settings, load_splits(settings.data, FIXTURES), arguments.folder, device, group), arguments.resume
            )
        except train.Interrupted as interruption:
            print(interruption, file=sys.stderr)


if __name__ == "__main__":
    main()
