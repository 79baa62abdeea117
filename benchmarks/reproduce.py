"""Five public systems' recipes beside the flagship, each on that system's own data: test accuracy against minutes of
training.

    python -m benchmarks.reproduce --emnist-root DIR [--minutes 20] [--recipes system-a system-e]
        [--folder runs/reproduce]

A system trains by its recipe until that ends, or for so many minutes; its result is the epoch with the best validation
accuracy. The flagship gets a third of the minutes which that took, on the very same images and without degraded copies,
and its schedule is laid out to run down in them: where it ends above the system, it is at least three times as fast.
Each is compiled if some steps tell that this gains time. Only training counts as time, with compiling from an empty
cache and without validation. The test images are read after every epoch, for the curves alone. What the folder holds is
not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from benchmarks.training_steps import wait, works
from training.checkpoint import CheckpointError, State
from training.data import DataError, Images, add_root, find_data, load_splits
from training.models import count_multiply_adds, count_parameters, make_model
from training.reports import plots
from training.reports.provenance import versions
from training.reports.tensorboard import Reporter
from training.run import DEVICES, Run, choose_device, logits_of
from training.settings import ReportSettings, Settings, SettingsError, load_recipe, recipe_names
from training.train import INTERRUPTED, Interrupted, train

log = logging.getLogger(__name__)

FLAGSHIP = "flagship"
MINUTES = 20.0
SHARE = 1 / 3  # of a system's time, for the flagship
PLATEAU = 0.001  # a validation accuracy that has risen by less over the last third of the time has stopped rising
TIMED_STEPS = 30


class OutOfTime(Exception):
    """The minutes are over."""


class Watch(Reporter):
    """Reads the test images after every epoch, and stops the clock meanwhile; raises OutOfTime when the minutes are
    over.
    """

    def __init__(self, run: Run, test: Images, minutes: float) -> None:
        self.run, self.test, self.minutes, self.writer = run, test, minutes, None
        self.curve: list[dict[str, float]] = []
        self.started, self.apart, self.last = time.perf_counter(), 0.0, time.perf_counter()

    def elapsed(self) -> float:
        """Minutes of training, up to the last step."""
        return (self.last - self.started - self.apart) / 60

    def step(self, state: State, *_: Tensor) -> None:
        self.last = time.perf_counter()
        if self.elapsed() > self.minutes:
            # It can be no better than what was chosen before.
            self.note(state, self.curve[-1]["validation"] if self.curve else 0.0)
            raise OutOfTime

    def epoch(self, state: State, logits: Tensor) -> None:  # noqa: ARG002  the validation part's, which the history holds
        self.note(state, state.history[-1]["validation_accuracy"])
        now = time.perf_counter()
        self.apart, self.last = self.apart + now - self.last, now

    def note(self, state: State, validation: float) -> None:
        said = logits_of(state.average.module, self.test.images, self.run.device).argmax(1)
        test = float((said == self.test.labels).float().mean())
        self.curve.append(
            {
                "minutes": self.elapsed(),
                "epoch": state.step / self.run.steps_per_epoch,
                "validation": validation,
                "test": test,
            }
        )
        log.info(
            "%.1f minutes, epoch %.1f: %.2f %% of the test images", self.elapsed(), self.curve[-1]["epoch"], 100 * test
        )


def settings_of(system: str, flagship: bool) -> Settings:
    """The recipe of a system, or the flagship's on its data; nothing is drawn, and no picture of a user is read."""
    own = load_recipe(system)
    data = replace(own.data, test_pictures=0, degraded_copies=0)
    chosen = load_recipe(FLAGSHIP) if flagship else own
    if flagship:
        data = replace(data, balance=chosen.data.balance)
    return replace(chosen, data=data, report=ReportSettings(scalars=0, figures=0, graph=False))


def fitted(run: Run, minutes: float, flagship: bool) -> Run:
    """The run, compiled where it does more steps in the time for it; the flagship's with as many epochs as it can
    do.
    """
    fits = []
    for choice in ("always", "never") if run.compiles else ("never",):
        trial = replace(run, settings=replace(run.settings, compile=choice))
        first, *others = step_seconds(trial)
        fits.append((max(0.1, (60 * minutes - first) / statistics.median(others) / run.steps_per_epoch), trial))
    epochs, best = max(fits, key=lambda fit: fit[0])
    return (
        replace(best, settings=replace(best.settings, schedule=replace(run.settings.schedule, epochs=epochs)))
        if flagship
        else best
    )


def step_seconds(run: Run) -> list[float]:
    """Of the first steps of a training that is then thrown away; what is compiled is so in the first."""
    step, seconds = works(run)["the training loop"], []
    with fresh_cache():
        for _ in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            step()
            wait(run.device)
            seconds.append(time.perf_counter() - started)
    torch.compiler.reset()
    return seconds


def train_one(
    folder: Path, system: str, minutes: float, root: Path | None, device: torch.device, flagship: bool = False
) -> dict[str, Any]:
    """Train a system's recipe, or the flagship on its data; returns what table and figure are made of."""
    settings = settings_of(system, flagship)
    splits = load_splits(settings.data, find_data(settings.data, root), settings.model.input_size)
    folder.mkdir(parents=True, exist_ok=True)
    run = fitted(Run(settings, splits, folder, device), minutes, flagship)
    ended = "finished"
    with fresh_cache():
        watch = Watch(run, splits.test, math.inf if flagship else minutes)
        try:
            train(run, reporter=watch)
            if round(watch.curve[-1]["epoch"] * run.steps_per_epoch) < run.steps:
                ended = "stopped early"
        except OutOfTime:
            ended = "plateaued" if plateaued(watch.curve) else "unfinished"
    torch.compiler.reset()
    network = make_model(settings.model, len(splits.test.classes))
    done = watch.curve[-1]
    return {
        "classes": len(splits.test.classes),
        "images": {"train": len(splits.train), "test": len(splits.test)},
        "fingerprint": splits.train.fingerprint(),
        "parameters": count_parameters(network),
        "multiply_adds": count_multiply_adds(network, settings.model.input_size),
        "images_per_s": done["epoch"] * run.steps_per_epoch * settings.schedule.batch_size / (60 * done["minutes"]),
        "epochs": done["epoch"],
        "epochs_planned": run.settings.schedule.epochs,
        "ended": ended,
        "curve": watch.curve,
        "device": run.describe_device(),
        "versions": versions(),
    }


def plateaued(curve: Sequence[dict[str, float]]) -> bool:
    """Whether the best validation accuracy of the last third of the time is no better, by PLATEAU, than that of the
    time before.
    """
    turn = 2 / 3 * curve[-1]["minutes"]
    before, after = (
        [point["validation"] for point in curve if (point["minutes"] > turn) == late] for late in (False, True)
    )
    return bool(before) and max(after) - max(before) < PLATEAU


def reached(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """The epoch with the best validation accuracy, the first of several."""
    return max(curve, key=lambda point: point["validation"])


def minutes_to(curve: Sequence[dict[str, float]], accuracy: float) -> float | None:
    """When the test accuracy was first as high; None if it never was."""
    return next((point["minutes"] for point in curve if point["test"] >= accuracy), None)


def table(results: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Markdown, a row a system: its result, and the flagship's on the same data."""
    lines = [
        (
            "| recipe | classes, images | parameters | multiply-adds | images/s | epochs | minutes | test accuracy |"
            " state | flagship there | in minutes | as accurate after | times as fast |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (own, rival) in results.items():
        best, theirs = reached(own["curve"]), reached(rival["curve"])
        there = minutes_to(rival["curve"], best["test"])
        faster = f"{best['minutes'] / there:.1f}" if there else "-"
        lines.append(
            f"| `{name}` | {own['classes']}, {own['images']['train']:,} | {own['parameters']:,} |"
            f" {own['multiply_adds'] / 1e6:.1f} M | {own['images_per_s']:,.0f} | {own['epochs']:.1f} of"
            f" {own['epochs_planned']:.0f} | {own['curve'][-1]['minutes']:.1f} |"
            f" {accuracy(best['test'], own['images']['test'])} | {own['ended']} |"
            f" {accuracy(theirs['test'], own['images']['test'])} | {rival['curve'][-1]['minutes']:.1f} |"
            f" {f'{there:.1f} minutes' if there else 'not reached'} | {faster} |"
        )
    return "\n".join(lines)


def accuracy(share: float, count: int) -> str:
    """In percent, with its standard error."""
    return f"{100 * share:.2f} ± {100 * math.sqrt(share * (1 - share) / count):.2f} %"


def kept(folder: Path, system: str, minutes: float, *more: Any) -> dict[str, Any]:
    """The result that a folder holds; train_one's, if it holds none."""
    path = folder / "result.json"
    if not path.is_file():
        made = train_one(folder, system, minutes, *more)
        path.write_text(json.dumps(made))
    return cast(dict[str, Any], json.loads(path.read_text()))


def main(argv: Sequence[str] | None = None) -> int:
    systems = [name for name in recipe_names() if name != FLAGSHIP]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce", description="Train public systems' recipes beside the flagship."
    )
    add_root(parser, "folder that holds EMNIST/raw and MNIST/raw; default: download")
    parser.add_argument(
        "--recipes", nargs="+", choices=systems, default=systems, metavar="NAME", help=f"of {', '.join(systems)}"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for each system; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce"), help="default: %(default)s")
    parser.add_argument(
        "--device", choices=DEVICES, default=os.environ.get("TRAIN_DEVICE", "auto"), help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments.minutes > 0:
        parser.error("--minutes must be above 0")
    results: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    try:
        device = choose_device(arguments.device)
        for system in arguments.recipes:
            own = kept(arguments.folder / system, system, arguments.minutes, arguments.emnist_root, device)
            third = SHARE * reached(own["curve"])["minutes"]
            rival = kept(arguments.folder / f"{system}-{FLAGSHIP}", system, third, arguments.emnist_root, device, True)
            results[system] = (own, rival)
            plots.save(
                plots.races({name: [one["curve"] for one in both] for name, both in results.items()}),
                arguments.folder / "races.png",
            )
            (arguments.folder / "races.md").write_text(table(results) + "\n", encoding="utf-8")
    except (Interrupted, KeyboardInterrupt):
        print("reproduce: stopped; the same command goes on with what is not done", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DataError, SettingsError, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
