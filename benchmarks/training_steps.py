"""How fast a recipe trains, beside the bare forward and backward pass of the same network on one batch.

    python -m benchmarks.training_steps --recipe flagship --emnist-root DIR [--steps 20] [--rounds 7]

Both are the very network that training calls, compiled where training compiles it, in one process and in turn;
validation and checkpoints, once an epoch, are left out. Other work on the machine shows in the spread of the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from training.batches import batches, make_batch, material_of
from training.checkpoint import new_state
from training.data import DataError, add_root, find_data, load_splits
from training.run import DEVICES, Run, choose_device
from training.schedules import learning_rate
from training.settings import SettingsError, add_recipe, load_recipe
from training.train import WRONG_USE, compiled, train_step

WARM_UP_STEPS = 3  # compiling is one of them


def works(run: Run) -> dict[str, Callable[[], object]]:
    """What is timed, by name: one step of each."""
    state, apart = (new_state(run.settings, len(run.splits.train.classes), run.device) for _ in range(2))
    forward, material = compiled(run, state.model), material_of(run, run.degraded_copies())
    indices = batches(run, 0)
    fixed, at = make_batch(run, material, next(indices), 0)
    targets = material.targets[at].float()
    inputs = fixed.contiguous(memory_format=torch.channels_last)

    def training() -> None:
        batch, places = make_batch(run, material, next(indices), state.step)
        state.set_rate(learning_rate(run.settings.schedule, run.settings.optimizer.lr, state.step, run.steps))
        train_step(run, state, forward, batch, material.targets[places].float())

    def bare() -> None:
        state.model.train()
        state.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast):
            loss = F.cross_entropy(forward(inputs), targets, label_smoothing=run.settings.schedule.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]

    for parameter in apart.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return {
        "forward and backward alone": bare,
        "the training loop": training,
        "- its batches, augmented": lambda: make_batch(run, material, at, 0),
        "- its optimiser": apart.optimizer.step,
        "- its averaged weights": lambda: apart.average_weights(run.settings.schedule.ema),
    }


def time_works(run: Run, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each work, by round; every round does all of them."""
    timed = works(run)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, work in timed.items():
            wait(run.device)
            started = time.perf_counter()
            for _ in range(steps if number else WARM_UP_STEPS):
                work()
            wait(run.device)
            if number:
                seconds[name].append((time.perf_counter() - started) / steps)
    return seconds


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(seconds: dict[str, list[float]], batch_size: int) -> str:
    """One line a work: milliseconds a step (median, least, most), images a second, and that over the bare passes',
    round by round.
    """
    bare = next(iter(seconds.values()))
    lines = [f"{'':<30}{'ms a step':>12}{'least':>10}{'most':>10}{'images/s':>12}{'of alone':>10}"]
    for name, each in seconds.items():
        line = f"{name:<30}{1e3 * statistics.median(each):>12.2f}{1e3 * min(each):>10.2f}{1e3 * max(each):>10.2f}"
        if not name.startswith("-"):
            share = statistics.median(b / e for b, e in zip(bare, each, strict=True))
            line += f"{batch_size / statistics.median(each):>12,.0f}{share:>10.2f}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_steps", description="Time training beside the bare passes of its network."
    )
    add_recipe(parser)
    add_root(parser, "folder that holds EMNIST/raw; default: where it was downloaded to")
    parser.add_argument(
        "--device", choices=DEVICES, default=os.environ.get("TRAIN_DEVICE", "auto"), help="default: %(default)s"
    )
    parser.add_argument("--steps", type=int, default=20, help="of each work in a round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if min(arguments.steps, arguments.rounds) < 1:
        parser.error("--steps and --rounds are at least 1")
    try:
        device = choose_device(arguments.device)
        settings = load_recipe(arguments.recipe, arguments.overrides)
        splits = load_splits(settings.data, find_data(settings.data, arguments.emnist_root), settings.model.input_size)
        run = Run(settings, splits, Path(), device)
        if run.steps_per_epoch == 0:
            raise DataError(
                f"{len(splits.train)} training images do not fill a batch of {settings.schedule.batch_size}; lower"
                " schedule.batch_size"
            )
        needed = arguments.steps * arguments.rounds + WARM_UP_STEPS + 1
        if run.steps < needed:
            epochs = needed / run.steps_per_epoch + 1
            run = dataclasses.replace(
                run,
                settings=dataclasses.replace(settings, schedule=dataclasses.replace(settings.schedule, epochs=epochs)),
            )
        print(
            f"recipe {arguments.recipe}: {run.describe_device()}, torch {torch.__version__}, batches of"
            f" {settings.schedule.batch_size}"
        )
        print(f"medians of {arguments.rounds} rounds of {arguments.steps} steps\n")
        print(table(time_works(run, arguments.steps, arguments.rounds), settings.schedule.batch_size))
    except (DataError, SettingsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return WRONG_USE
    return 0


if __name__ == "__main__":
    sys.exit(main())
