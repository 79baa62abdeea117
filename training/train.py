"""Train a recipe, evaluate it and export it to runs/NAME/emnist.pt.

    python -m training.train --recipe flagship --emnist-root DIR [--set optimizer.lr=3e-4] [--resume]

All randomness of a step is a function of (seed, step): a resumed run continues exactly as an uninterrupted one would.
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

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.augment import augment
from training.checkpoint import CheckpointError, State, load_checkpoint, new_state, save_checkpoint
from training.data import DataError, epoch_order, find_data, load_splits, write_report
from training.export import ExportError
from training.provenance import record_start
from training.reporter import Reporter
from training.run import DEVICES, Run, checkpoint_of, choose_device, finish, log_start, logits_of, record
from training.schedules import learning_rate, stops
from training.settings import ScheduleSettings, Settings, SettingsError, from_dict, load_recipe

log = logging.getLogger(__name__)

REPORT_STEPS = 50  # between two numbers on the progress bar: reading one waits for the device
SEED_STRIDE = 1_000_003  # keeps the seeds of one run's steps apart from another's
INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and the run is saved."""


def train(run: Run, resume: bool = False) -> None:
    """Train; leaves last.pt, best.pt and metrics.jsonl in the run's folder. Raises Interrupted once Ctrl-C has been obeyed."""
    settings, schedule = run.settings, run.settings.schedule
    if run.steps_per_epoch == 0:
        raise DataError(f"{len(run.splits.train)} training images do not fill a batch of {schedule.batch_size}; lower schedule.batch_size")
    torch.manual_seed(settings.seed)
    state = new_state(settings, len(run.splits.train.classes), run.device)
    if resume:
        state.restore(load_checkpoint(run.folder / "last.pt")["resume"])
    elif settings.start:
        state.start_from(load_checkpoint(Path(settings.start)))
    log_start(run, state)
    forward = torch.compile(state.model) if run.compiles else state.model
    images, labels = run.splits.train.images.to(run.device), run.splits.train.labels.to(run.device)
    copies = run.degraded_copies().to(run.device)  # (copies, N, S, S)
    validation = run.validation_images()
    targets = run.soft_labels().to(run.device)  # (N, C)
    order, order_epoch = torch.empty(0), -1
    first, started = state.step, time.perf_counter()
    total, done = run.steps * schedule.batch_size, state.step * schedule.batch_size
    bar = tqdm(total=total, initial=done, unit="img", unit_scale=True, smoothing=0.02, mininterval=1.0)
    with bar, contextlib.closing(Reporter(run, state)) as reporter, catch_interrupt() as interrupted, logging_redirect_tqdm():
        while state.step < run.steps and not stops(schedule, state.losses):
            epoch, within = divmod(state.step, run.steps_per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(settings.seed * SEED_STRIDE + epoch)
                order, order_epoch = epoch_order(run.splits.train.labels, settings.data.balance, generator).to(run.device), epoch
            places = within * schedule.batch_size + torch.arange(schedule.batch_size, device=run.device)
            index = order[places % len(order)]  # rounding may leave the order a few images short
            torch.manual_seed(settings.seed * SEED_STRIDE + state.step)  # on every device, for augmentation and dropout
            batch = pick(images, copies, index, settings.data.degraded_share).unsqueeze(1).float() / 255  # (B, 1, S, S)
            batch = augment(batch, settings.augment, augment_strength(schedule, state.step, run.steps))
            state.set_rate(learning_rate(schedule, settings.optimizer.lr, state.step, run.steps, state.losses))
            loss, logits = train_step(run, state, forward, batch, targets[index].float())
            reporter.step(state, batch, labels[index], loss, logits)
            bar.update(len(batch))
            if state.step % REPORT_STEPS == 0 or state.step == run.steps:
                accuracy = float((logits.argmax(1) == labels[index]).float().mean())
                bar.set_postfix(epoch=f"{state.step / run.steps_per_epoch:.1f}", loss=f"{float(loss):.3f}", acc=f"{accuracy:.3f}")
            at_end_of_epoch = state.step % run.steps_per_epoch == 0 or state.step == run.steps
            if at_end_of_epoch or interrupted():
                seconds = time.perf_counter() - started
                state.seconds += seconds
                checks = [logits_of(state.average.module, part, run.device) for part in validation]
                if at_end_of_epoch:
                    record(run, state, checks, float(loss), (state.step - first) * schedule.batch_size / seconds)
                    reporter.epoch(state, checks[0])
                save_checkpoint(checkpoint_of(run, state, checks[0]), run.folder / "last.pt")
                if interrupted():
                    raise Interrupted(f"stopped after step {state.step} of {run.steps}; --resume goes on from there")
                first, started = state.step, time.perf_counter()
    if state.step < run.steps:
        log.info("stopped early: no lower validation loss in %d epochs", schedule.patience)


def pick(images: Tensor, copies: Tensor, index: Tensor, share: float) -> Tensor:
    """The images (N, S, S) at `index` (B,), a `share` of them as one of their degraded copies (copies, N, S, S)."""
    picked = images[index]
    if len(copies) == 0:
        return picked
    chosen = (torch.rand(len(index), device=index.device) < share).nonzero().squeeze(1)
    return picked.index_copy(0, chosen, copies[torch.randint(len(copies), chosen.shape, device=index.device), index[chosen]])


def train_step(run: Run, state: State, forward: Callable[[Tensor], Tensor], batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One optimiser step towards class probabilities `targets` (B, C); returns the loss and the logits (B, C), still on the device."""
    state.model.train()
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast):
        logits = forward(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, targets, label_smoothing=run.settings.schedule.label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.average.update_parameters(state.model)
    state.step += 1
    return loss.detach(), logits.detach()


def augment_strength(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """1, and over the last `schedule.fade` of the steps linearly down to 0."""
    return min(1.0, (steps - step) / max(1.0, schedule.fade * steps))


@contextlib.contextmanager
def catch_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM is remembered, to be obeyed between two steps; a second one acts at once."""
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def remember(number: int, _: object) -> None:
        caught.append(number)
        restore()

    for s in before:
        signal.signal(s, remember)
    try:
        yield lambda: bool(caught)
    finally:
        restore()


def prepare(folder: Path, recipe: str, overrides: Sequence[str], resume: bool) -> Settings:
    """The settings to run with. Raises SettingsError where a run would overwrite another or change in the middle."""
    if resume:
        if overrides:
            raise SettingsError("--resume goes on with the run's own settings; leave out --set")
        return from_dict(load_checkpoint(folder / "last.pt")["settings"])
    settings = load_recipe(recipe, overrides)
    if (folder / "last.pt").exists():
        raise SettingsError(f"{folder} holds a run already: go on with --resume, choose another --name, or delete the folder")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train a recipe, evaluate it and export it.")
    parser.add_argument("--recipe", default="flagship", help="a file of training/recipes/ without .yaml, or a path that ends in .yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="overrides", help="repeatable")
    parser.add_argument(
        "--emnist-root", default=os.environ.get("EMNIST_ROOT"), help="folder of the data, such as that of EMNIST/raw; default: download once"
    )
    parser.add_argument("--download", action="store_true", help="download EMNIST or MNIST into --emnist-root if it is not there")
    parser.add_argument("--name", help="the run's folder in --runs; default: the recipe's name")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument("--device", choices=DEVICES, default=os.environ.get("TRAIN_DEVICE", "auto"), help="gpu: refuse without one; default: auto")
    parser.add_argument("--resume", action="store_true", help="go on with the run of that name, with its own settings")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while it trains, the run is saved first
    folder = arguments.runs / (arguments.name or Path(arguments.recipe).stem)
    try:
        device = choose_device(arguments.device)
        settings = prepare(folder, arguments.recipe, arguments.overrides, arguments.resume)
        root = find_data(settings.data, arguments.emnist_root, arguments.download)
        splits = load_splits(settings.data, root, settings.model.input_size)
        folder.mkdir(parents=True, exist_ok=True)
        write_report(settings.data, splits, folder / "data.json")
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False))
        run = Run(settings, splits, folder, device)
        record_start(folder, run.describe_device(), run.describe_data())
        train(run, arguments.resume)
        finish(run)
    except Interrupted as interruption:
        print(f"train: {interruption}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DataError, ExportError, SettingsError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
