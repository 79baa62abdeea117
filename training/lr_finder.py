"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3).

    python -m training.lr_finder --recipe flagship --emnist-root DIR [--set optimizer.name=adamw] [--plot build/lr.png]

A new network of the recipe is trained for some hundred steps while the learning rate rises exponentially. What is
suggested is where the smoothed loss falls most steeply over the logarithm of the rate, before its least value: a rate
for `optimizer.lr` of a schedule that warms up to it. Nothing is kept but the plot.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from training.batches import make_batch, material_of
from training.checkpoint import CheckpointError, load_checkpoint, new_state
from training.data import DataError, add_root, epoch_order, find_data, load_splits
from training.reports import plots
from training.run import DEVICES, Run, choose_device
from training.settings import SettingsError, add_recipe, load_recipe
from training.train import train_step

LOWEST, HIGHEST = 1e-5, 10.0
STEPS = 200
DIVERGED = 4.0  # times the least loss so far: the sweep ends
WINDOW = 5  # steps whose mean loss is held against that
SMOOTHING = 0.04  # of the sweep, the standard deviation of the Gaussian that smooths the losses; it does not shift them
SKIPPED = (
    0.1  # of the sweep, at its beginning, whose slopes are those of a new network's first steps and of few batches
)
NOISE = 2.0  # standard deviations of a batch's loss by which the smoothed one must fall
FEWEST = 20  # steps without which no slope is to be trusted


@dataclass(frozen=True)
class Sweep:
    rates: list[float]
    losses: list[float]

    def smooth(self) -> list[float]:
        smoothed: list[float] = gaussian_filter1d(
            np.array(self.losses), max(1.0, SMOOTHING * len(self.losses)), mode="nearest"
        ).tolist()
        return smoothed

    def suggestion(self) -> float:
        """The rate of the steepest descent. Raises DataError where the loss does not fall beyond its noise."""
        smooth, skipped = np.array(self.smooth()), round(SKIPPED * len(self.losses))
        end = skipped + int(smooth[skipped:].argmin()) + 1
        slopes = np.gradient(smooth, np.log(self.rates))[skipped:end]
        if slopes.min() >= 0 or smooth[skipped] - smooth[end - 1] < NOISE * float(
            np.std((smooth - self.losses)[skipped:end])
        ):
            raise DataError(
                "the loss does not fall beyond its noise: sweep other rates (--low, --high), in more --steps or with"
                " larger batches"
            )
        return self.rates[skipped + int(slopes.argmin())]


def sweep(run: Run, low: float, high: float, steps: int) -> Sweep:
    """Train a network for `steps` steps, or until it diverges, at rates from `low` to `high`, each a constant factor
    above the last.

    Augmentation, copies, soft labels and the step itself are those of training. Raises DataError where the data fill no
    batch.
    """
    settings, schedule = run.settings, run.settings.schedule
    train = run.splits.train
    if run.steps_per_epoch == 0:
        raise DataError(
            f"{len(train)} training images do not fill a batch of {schedule.batch_size}; lower schedule.batch_size"
        )
    torch.manual_seed(settings.seed)
    state = new_state(settings, len(train.classes), run.device)
    if settings.start:
        state.start_from(load_checkpoint(Path(settings.start)))
    material = material_of(run, run.degraded_copies())
    order = epoch_order(train.labels, settings.data.balance, torch.Generator().manual_seed(settings.seed)).to(
        run.device
    )
    result = Sweep([], [])
    for step in tqdm(range(steps), unit="step"):
        rate = low * (high / low) ** (step / max(1, steps - 1))
        state.set_rate(rate)
        index = order[(step * schedule.batch_size + torch.arange(schedule.batch_size, device=run.device)) % len(order)]
        batch, places = make_batch(run, material, index, step % run.steps)
        loss, _ = train_step(run, state, state.model, batch, material.targets[places].float())
        if not math.isfinite(float(loss)):
            break
        result.rates.append(rate)
        result.losses.append(float(loss))
        if float(np.mean(result.losses[-WINDOW:])) > DIVERGED * min(result.losses):
            break
    if len(result.rates) < min(FEWEST, steps):
        raise DataError(f"the loss diverges after {len(result.rates)} steps, at {low:g}; sweep lower rates, by --low")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.lr_finder", description="Suggest a learning rate for a recipe."
    )
    add_recipe(parser)
    add_root(parser, "folder that holds EMNIST/raw")
    parser.add_argument("--low", type=float, default=LOWEST, help="default: %(default)s")
    parser.add_argument("--high", type=float, default=HIGHEST, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path("build/lr.png"), help="default: %(default)s")
    parser.add_argument("--device", choices=DEVICES, default=os.environ.get("TRAIN_DEVICE", "auto"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.emnist_root is None:
        parser.error("give --emnist-root (or EMNIST_ROOT), the folder that holds EMNIST/raw")
    if not 0 < arguments.low < arguments.high < math.inf:
        parser.error("--low must be above 0 and below --high")
    if arguments.steps < FEWEST:
        parser.error(f"--steps must be {FEWEST} or more")
    try:
        settings = load_recipe(arguments.recipe, arguments.overrides)
        root = find_data(settings.data, arguments.emnist_root)
        run = Run(
            settings,
            load_splits(settings.data, root, settings.model.input_size),
            Path(),
            choose_device(arguments.device),
        )
        found = sweep(run, arguments.low, arguments.high, arguments.steps)
        suggestion = found.suggestion()
        plots.save(plots.learning_rates(found.rates, found.losses, found.smooth(), suggestion), arguments.plot)
    except (CheckpointError, DataError, SettingsError, OSError) as error:
        print(f"lr_finder: {error}", file=sys.stderr)
        return 1
    print(
        f"optimizer.lr={suggestion:.2g}: there the smoothed loss falls most steeply over log(rate), before its least"
        " value"
    )
    print(f"{len(found.rates)} steps from {found.rates[0]:.2g} to {found.rates[-1]:.2g}; plot: {arguments.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
