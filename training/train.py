"""Train a recipe, evaluate it and export it to runs/NAME/emnist.pt.

    python -m training.train --recipe flagship --emnist-root DIR [--set optimizer.lr=3e-4] [--resume]
    torchrun --standalone --nproc-per-node=2 -m training.train ...

A resumed run continues exactly as an uninterrupted one would, on as many processes.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.batches import batches, make_batch, material_of
from training.checkpoint import CheckpointError, State, load_checkpoint, new_state, save_checkpoint
from training.data import DataError, add_root, find_data, load_splits, write_report
from training.distributed import Group, PeerLost, join
from training.export import ExportError
from training.reports.provenance import record_start
from training.reports.tensorboard import Reporter
from training.run import DEVICES, Run, checkpoint_of, choose_device, finish, log_start, logits_of, record
from training.schedules import learning_rate, stops
from training.settings import Settings, SettingsError, add_recipe, differences, from_dict, load_recipe

log = logging.getLogger(__name__)

REPORT_STEPS = 50  # between two numbers on the progress bar: reading one waits for the device
WRONG_USE = 2  # exit code of what trying again does not change; argparse's own
INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and the run is saved."""


def train(run: Run, resume: bool = False, reporter: Reporter | None = None) -> None:
    """Train; leaves last.pt, best.pt and metrics.jsonl in the run's folder. Raises Interrupted once Ctrl-C has been
    obeyed.

    `reporter` is told of steps and epochs in place of the run's own.
    """
    settings, schedule, group = run.settings, run.settings.schedule, run.group
    group.part(schedule.batch_size)  # refuses a batch that cannot be split
    if run.steps_per_epoch == 0:
        raise DataError(
            f"{len(run.splits.train)} training images do not fill a batch of {schedule.batch_size}; lower"
            " schedule.batch_size"
        )
    torch.manual_seed(settings.seed)
    state = new_state(settings, len(run.splits.train.classes), run.device)
    if resume:
        state.restore(load_checkpoint(run.folder / "last.pt")["resume"])
        log.info("going on after step %d of %d", state.step, run.steps)
    elif settings.start:
        state.start_from(load_checkpoint(Path(settings.start)))
    log_start(run, state)
    with group.first_on_machine():
        copies, validation = run.degraded_copies(), run.validation_images()
    material = material_of(run, copies)
    forward = group.share_gradients(compiled(run, state.model))
    first, started = state.step, time.perf_counter()
    total, done = run.steps * schedule.batch_size, state.step * schedule.batch_size
    bar = tqdm(
        total=total, initial=done, unit="img", unit_scale=True, smoothing=0.02, mininterval=1.0, disable=not group.leads
    )
    reporter = reporter or Reporter(run, state)
    with (
        bar,
        contextlib.closing(reporter),
        catch_interrupt(alone=group.size == 1) as interrupted,
        logging_redirect_tqdm(),
    ):
        for index in batches(run, state.step):
            if stops(schedule, state.losses):
                log.info("stopped early: no lower validation loss in %d epochs", schedule.patience)
                break
            batch, places = make_batch(run, material, index, state.step)
            labels = material.labels[places]
            state.set_rate(learning_rate(schedule, settings.optimizer.lr, state.step, run.steps, state.losses))
            loss, logits = train_step(run, state, forward, batch, material.targets[places].float())
            reporter.step(state, batch, labels, loss, logits)
            bar.update(schedule.batch_size)
            if state.step % REPORT_STEPS == 0 or state.step == run.steps:
                accuracy = float((logits.argmax(1) == labels).float().mean())
                bar.set_postfix(
                    epoch=f"{state.step / run.steps_per_epoch:.1f}", loss=f"{float(loss):.3f}", acc=f"{accuracy:.3f}"
                )
            at_end_of_epoch = state.step % run.steps_per_epoch == 0 or state.step == run.steps
            stop = group.agree(interrupted(), state.step)
            if at_end_of_epoch or stop:
                seconds = time.perf_counter() - started
                state.seconds += seconds
                mean_loss = group.mean(loss)
                if group.leads:
                    images_per_s = (state.step - first) * schedule.batch_size / seconds
                    keep(run, state, validation, reporter if at_end_of_epoch else None, mean_loss, images_per_s)
                if at_end_of_epoch:
                    share_losses(group, state)
                if stop:
                    group.wait()  # until the run is saved, for whoever ends first ends the others
                    raise Interrupted(f"stopped after step {state.step} of {run.steps}; --resume goes on from there")
                first, started = state.step, time.perf_counter()


def compiled(run: Run, model: nn.Module) -> nn.Module:
    """The network as it is called in training."""
    return cast(nn.Module, torch.compile(model)) if run.compiles else model


def keep(
    run: Run, state: State, validation: Sequence[Tensor], reporter: Reporter | None, loss: float, images_per_s: float
) -> None:
    """Validate on uint8 images (N, S, S) and write last.pt; with a reporter, at the end of an epoch, also note its
    figures.
    """
    checks = [logits_of(state.average.module, part, run.device) for part in validation]
    if reporter:
        record(run, state, checks, loss, images_per_s)
        reporter.epoch(state, checks[0])
    save_checkpoint(checkpoint_of(run, state, checks[0]), run.folder / "last.pt")


def share_losses(group: Group, state: State) -> None:
    """Tell every process the validation loss that the first has found, by which all set their rates and stop."""
    loss = group.from_first(state.losses[-1] if group.leads else 0.0)
    if not group.leads:
        state.history.append({"validation_loss": loss})


def train_step(
    run: Run, state: State, forward: Callable[[Tensor], Tensor], batch: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """One optimiser step towards class probabilities `targets` (B, C); returns the loss and the logits (B, C), still on
    the device.
    """
    state.model.train()
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast):
        logits = forward(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, targets, label_smoothing=run.settings.schedule.label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.average_weights(run.settings.schedule.ema)
    state.step += 1
    return loss.detach(), logits.detach()


@contextlib.contextmanager
def catch_interrupt(alone: bool = True) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM is remembered, to be obeyed between two steps; a second one acts at once.

    Not alone, further ones are remembered too: torchrun passes on what the terminal has sent to all already.
    """
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def remember(number: int, _: object) -> None:
        caught.append(number)
        if alone:
            restore()

    for s in before:
        signal.signal(s, remember)
    try:
        yield lambda: bool(caught)
    finally:
        restore()


def prepare(folder: Path, recipe: str, overrides: Sequence[str], resume: bool, go_on: bool) -> tuple[Settings, bool]:
    """The settings to run with, and whether to resume. Raises SettingsError where a run would overwrite another or
    change in the middle.

    `resume` is for a run that is there, with its own settings; `go_on` for one that may be there and was started in the
    same way.
    """
    if resume:
        if overrides:
            raise SettingsError("--resume goes on with the run's own settings; leave out --set")
        return from_dict(load_checkpoint(folder / "last.pt")["settings"]), True
    settings = load_recipe(recipe, overrides)
    there = (folder / "last.pt").exists()
    if there and not go_on:
        raise SettingsError(
            f"{folder} holds a run already: go on with --resume, choose another --name, or delete the folder"
        )
    if there and (changed := differences(from_dict(load_checkpoint(folder / "last.pt")["settings"]), settings)):
        raise SettingsError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}): choose another --name, or delete the"
            " folder"
        )
    return settings, there


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description="Train a recipe, evaluate it and export it."
    )
    add_recipe(parser)
    add_root(parser, "folder of the data, such as that of EMNIST/raw; default: download once")
    parser.add_argument(
        "--download", action="store_true", help="download EMNIST or MNIST into --emnist-root if it is not there"
    )
    parser.add_argument("--name", help="the run's folder in --runs; default: the recipe's name")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default=os.environ.get("TRAIN_DEVICE", "auto"),
        help="gpu: refuse without one; default: auto",
    )
    going_on = parser.add_mutually_exclusive_group()
    going_on.add_argument(
        "--resume", action="store_true", help="go on with the run of that name, with its own settings"
    )
    going_on.add_argument(
        "--go-on",
        action="store_true",
        help="go on with the run of that name if there is one, and its settings are these; else start it",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING, format="%(message)s"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while it trains, the run is saved first
    folder = arguments.runs / (arguments.name or Path(arguments.recipe).stem)
    try:
        device = choose_device(arguments.device)
        settings, resume = prepare(folder, arguments.recipe, arguments.overrides, arguments.resume, arguments.go_on)
        with join(device) as group:
            with group.first_on_machine():
                splits = load_splits(
                    settings.data,
                    find_data(settings.data, arguments.emnist_root, arguments.download),
                    settings.model.input_size,
                )
            run = Run(settings, splits, folder, group.device(device), group)
            if group.leads:
                folder.mkdir(parents=True, exist_ok=True)
                write_report(settings.data, splits, folder / "data.json")
                (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False))
                record_start(folder, run.describe_device(), run.describe_data())
            train(run, resume)
        if group.leads:
            finish(run)
    except Interrupted as interruption:
        print(f"train: {interruption}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DataError, SettingsError) as error:
        print(f"train: {error}", file=sys.stderr)
        return WRONG_USE
    except (ExportError, PeerLost, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
