"""Train a recipe, evaluate it and export it to runs/NAME/emnist.pt.

    python -m training.train --recipe flagship --emnist-root DIR [--set optimizer.lr=3e-4] [--resume]

All randomness of a step is a function of (seed, step): a resumed run continues exactly as an uninterrupted one would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training import card
from training.augment import augment
from training.checkpoint import CheckpointError, State, load_checkpoint, network_of, new_state, save_checkpoint
from training.data import DataError, Images, Splits, cache_folder, download, epoch_order, load_splits
from training.evaluate import measure, table
from training.export import ExportedModel, ExportError, export
from training.models import count_multiply_adds, count_parameters
from training.settings import ScheduleSettings, Settings, SettingsError, from_dict, load_recipe

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500  # images
REPORT_STEPS = 50  # between two numbers on the progress bar: reading one waits for the device
SAMPLES = 64  # validation images that ride in the checkpoint, for the export to verify itself on
COMPILE_PAYS_STEPS = 1000  # compiling takes about as long as it saves in so many steps
TEMPERATURES = [math.exp(0.01 * n) for n in range(-120, 81)]  # 0.30 to 2.23
SEED_STRIDE = 1_000_003  # keeps the seeds of one run's steps apart from another's
DEVICES = ("auto", "cpu", "gpu")
INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and the run is saved."""


@dataclass(frozen=True)
class Run:
    """What stays the same while a run goes on."""

    settings: Settings
    splits: Splits
    folder: Path
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        return len(self.splits.train) // self.settings.schedule.batch_size

    @property
    def steps(self) -> int:
        return max(1, round(self.settings.schedule.epochs * self.steps_per_epoch))

    @property
    def autocast(self) -> bool:
        """Whether to multiply in bfloat16."""
        if self.settings.precision != "auto":
            return self.settings.precision == "bfloat16"
        if self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

    @property
    def compiles(self) -> bool:
        """Whether to use torch.compile, which needs a C++ compiler and Python's headers."""
        if self.settings.compile != "auto":
            return self.settings.compile == "always"
        headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
        compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
        return self.steps >= COMPILE_PAYS_STEPS and headers and compiler

    def describe_device(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        return f"{name}, {'bfloat16' if self.autocast else 'float32'}{', compiled' if self.compiles else ''}"

    def describe_data(self) -> dict[str, Any]:
        parts = {"train": self.splits.train, "validation": self.splits.validation, "test": self.splits.test}
        return {
            "train_split": self.settings.data.train_split,
            "test_split": self.settings.data.test_split,
            "removed": self.splits.removed,
            "images": {name: len(part) for name, part in parts.items()},
            "fingerprint": {name: part.fingerprint() for name, part in parts.items()},
        }


def train(run: Run, resume: bool = False) -> None:
    """Train; leaves last.pt, best.pt and metrics.jsonl in the run's folder. Raises Interrupted once Ctrl-C has been obeyed."""
    settings, schedule = run.settings, run.settings.schedule
    if run.steps_per_epoch == 0:
        raise DataError(f"{len(run.splits.train)} training images do not fill a batch of {schedule.batch_size}; lower schedule.batch_size")
    torch.manual_seed(settings.seed)
    state = new_state(settings, len(run.splits.train.classes), run.device)
    if resume:
        state.restore(load_checkpoint(run.folder / "last.pt")["resume"])
    log_start(run, state)
    forward = torch.compile(state.model) if run.compiles else state.model
    images, labels = run.splits.train.images.to(run.device), run.splits.train.labels.to(run.device)
    order, order_epoch = torch.empty(0), -1
    first, started = state.step, time.perf_counter()
    total, done = run.steps * schedule.batch_size, state.step * schedule.batch_size
    bar = tqdm(total=total, initial=done, unit="img", unit_scale=True, smoothing=0.02, mininterval=1.0)
    with bar, catch_interrupt() as interrupted, logging_redirect_tqdm():
        while state.step < run.steps:
            epoch, within = divmod(state.step, run.steps_per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(settings.seed * SEED_STRIDE + epoch)
                order, order_epoch = epoch_order(run.splits.train.labels, settings.data.balance, generator).to(run.device), epoch
            places = within * schedule.batch_size + torch.arange(schedule.batch_size, device=run.device)
            index = order[places % len(order)]  # rounding may leave the order a few images short
            torch.manual_seed(settings.seed * SEED_STRIDE + state.step)  # on every device, for augmentation and dropout
            batch = augment(images[index].unsqueeze(1).float() / 255, settings.augment)  # (B, 1, S, S)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(schedule, settings.optimizer.lr, state.step, run.steps)
            loss, logits = train_step(run, state, forward, batch, labels[index])
            bar.update(len(batch))
            if state.step % REPORT_STEPS == 0 or state.step == run.steps:
                accuracy = float((logits.argmax(1) == labels[index]).float().mean())
                bar.set_postfix(epoch=f"{state.step / run.steps_per_epoch:.1f}", loss=f"{float(loss):.3f}", acc=f"{accuracy:.3f}")
            at_end_of_epoch = state.step % run.steps_per_epoch == 0 or state.step == run.steps
            if at_end_of_epoch or interrupted():
                seconds = time.perf_counter() - started
                state.seconds += seconds
                logits = logits_of(state.average.module, run.splits.validation, run.device)
                if at_end_of_epoch:
                    record(run, state, logits, float(loss), (state.step - first) * schedule.batch_size / seconds)
                save_checkpoint(checkpoint_of(run, state, logits), run.folder / "last.pt")
                if interrupted():
                    raise Interrupted(f"stopped after step {state.step} of {run.steps}; --resume goes on from there")
                first, started = state.step, time.perf_counter()


def train_step(run: Run, state: State, forward: Callable[[Tensor], Tensor], batch: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One optimiser step; returns the loss and the logits (B, C), still on the device."""
    state.model.train()
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast):
        logits = forward(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, label_smoothing=run.settings.schedule.label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.average.update_parameters(state.model)
    state.step += 1
    return loss.detach(), logits.detach()


def learning_rate(schedule: ScheduleSettings, peak: float, step: int, steps: int) -> float:
    """Linear up to `peak` over the warm-up, then a half cosine down to 0 (one cycle; Smith & Topin 2018)."""
    warmup = max(1, round(schedule.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


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


def log_start(run: Run, state: State) -> None:
    splits = run.splits
    log.info("%d training images (%d removed: again in validation or test)", len(splits.train), splits.removed)
    log.info("%d validation images, %d test images, %d classes", len(splits.validation), len(splits.test), len(splits.test.classes))
    parameters, multiply_adds = count_parameters(state.model), count_multiply_adds(state.model)
    log.info("%d parameters, %.1f M multiply-adds an image; %s", parameters, multiply_adds / 1e6, run.describe_device())


def logits_of(model: nn.Module, data: Images, device: torch.device) -> Tensor:
    """Logits float32 (N, C), on the CPU, of the model in eval mode."""
    model.eval()
    batches = torch.split(data.images, EVALUATION_BATCH)
    with torch.no_grad():
        return torch.cat([model(batch.to(device).unsqueeze(1).float() / 255).cpu() for batch in batches])


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits (N, C) with the least cross-entropy (temperature scaling; Guo et al. 2017)."""
    return min(TEMPERATURES, key=lambda t: float(F.cross_entropy(logits / t, labels)))


def checkpoint_of(run: Run, state: State, logits: Tensor) -> dict[str, Any]:
    """The checkpoint at this step; `logits` (N, C) are the averaged model's on the validation part."""
    validation = run.splits.validation
    temperature = fit_temperature(logits, validation.labels)
    probabilities = torch.softmax(logits / temperature, 1).numpy()
    return {
        "settings": run.settings.to_dict(),
        "classes": list(validation.classes),
        "weights": state.average.module.state_dict(),
        "temperature": temperature,
        "samples": validation.images[:SAMPLES].clone(),
        "metrics": {"validation": measure(probabilities, validation.labels.numpy(), validation.classes)},
        "run": {"name": run.folder.name, "step": state.step, "steps": run.steps, "seconds": round(state.seconds), "device": run.describe_device()},
        "data": run.describe_data(),
        "resume": state.to_dict(),
    }


def record(run: Run, state: State, logits: Tensor, loss: float, images_per_s: float) -> None:
    """Note an epoch's numbers in metrics.jsonl, and keep it as best.pt if its averaged weights read the validation part best."""
    accuracy = float((logits.argmax(1) == run.splits.validation.labels).float().mean())
    better = accuracy > state.best
    state.best = max(state.best, accuracy)
    line = {"step": state.step, "loss": loss, "validation_accuracy": accuracy, "images_per_s": images_per_s, "seconds": state.seconds}
    state.history.append(line)
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in state.history))
    log.info("step %d: loss %.3f, validation accuracy %.4f, %.0f images/s", state.step, loss, accuracy, images_per_s)
    if better:
        save_checkpoint(checkpoint_of(run, state, logits), run.folder / "best.pt")


def finish(run: Run) -> None:
    """Report the best checkpoint on the test images, once; export it and write its model card."""
    checkpoint = load_checkpoint(run.folder / "best.pt")
    model = ExportedModel(network_of(checkpoint), checkpoint["temperature"]).eval()
    with torch.no_grad():
        probabilities = torch.cat([model(batch) for batch in torch.split(run.splits.test.images, EVALUATION_BATCH)]).numpy()
    checkpoint["metrics"]["test"] = measure(probabilities, run.splits.test.labels.numpy(), run.splits.test.classes)
    save_checkpoint(checkpoint, run.folder / "best.pt")
    export(checkpoint, run.folder / "emnist.pt")
    card.write(run.folder / "emnist.pt", run.folder / "README.md")
    print(table(checkpoint["metrics"]["test"]))


def choose_device(wanted: str) -> torch.device:
    """The device to train on. Raises SettingsError where a GPU was asked for and none is seen."""
    if wanted not in DEVICES:
        raise SettingsError(f"TRAIN_DEVICE must be one of {', '.join(DEVICES)}, not '{wanted}'")
    seen = torch.cuda.is_available()
    if wanted == "gpu" and not seen:
        raise SettingsError("a GPU was asked for, and torch sees none: `docker run --gpus all`, the limit nvidia.com/gpu, or --device cpu")
    return torch.device("cuda" if seen and wanted != "cpu" else "cpu")


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
    parser.add_argument("--emnist-root", default=os.environ.get("EMNIST_ROOT"), help="folder that holds EMNIST/raw; default: download once")
    parser.add_argument("--download", action="store_true", help="download EMNIST into --emnist-root if it is not there")
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
        root = Path(arguments.emnist_root) if arguments.emnist_root else cache_folder()
        if not arguments.emnist_root or (arguments.download and not any(root.glob("EMNIST/raw/emnist-*-images-idx3-ubyte*"))):
            download(root)
        splits = load_splits(settings.data, root, settings.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False))
        run = Run(settings, splits, folder, device)
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
