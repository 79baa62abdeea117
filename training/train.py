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
from training.data import DataError, Images, Splits, cache_folder, download, epoch_order, load_splits
from training.evaluate import measure, table
from training.checkpoint import CheckpointError, State, load_checkpoint, network_of, new_state, save_checkpoint
from training.export import ExportedModel, ExportError, export
from training.models import count_multiply_adds, count_parameters
from training.settings import ScheduleSettings, Settings, SettingsError, from_dict, load_recipe

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500  # images
SAMPLES = 64  # validation images that ride in the checkpoint, for the export to verify itself on
COMPILE_PAYS_STEPS = 1000  # compiling takes about as long as it saves in so many steps
TEMPERATURES = [math.exp(-1.2 + 0.01 * n) for n in range(201)]  # 0.30 to 2.23
INTERRUPTED = 130  # exit code after Ctrl-C, 128 + SIGINT


class Interrupted(Exception):
    """Ctrl-C arrived; the run is saved."""


def train(settings: Settings, splits: Splits, folder: Path, device: torch.device, resume: bool = False) -> None:
    """Train on `splits.train`; leave last.pt, best.pt and metrics.jsonl in `folder`. Raises Interrupted once Ctrl-C has been obeyed."""
    schedule = settings.schedule
    steps_per_epoch = len(splits.train) // schedule.batch_size
    if steps_per_epoch == 0:
        raise DataError(f"{len(splits.train)} training images do not fill one batch of {schedule.batch_size}: set schedule.batch_size")
    steps = max(1, round(schedule.epochs * steps_per_epoch))
    torch.manual_seed(settings.seed)
    state = new_state(settings, len(splits.train.classes), device)
    if resume:
        state.restore(load_checkpoint(folder / "last.pt")["resume"])
    log.info(
        "%d training images (%d removed: also in validation or test), %d validation, %d test; %d parameters, %.1f M multiply-adds; %s",
        *(len(splits.train), splits.removed, len(splits.validation), len(splits.test)),
        *(count_parameters(state.model), count_multiply_adds(state.model) / 1e6, describe(device, settings, steps)),
    )
    forward = torch.compile(state.model) if compiles(settings, device, steps) else state.model
    autocast = bfloat16(settings, device)
    train_images, train_labels = splits.train.images.to(device), splits.train.labels.to(device)
    order, order_epoch = torch.empty(0), -1
    shown, right, losses, since = 0, 0, 0.0, time.perf_counter()
    bar = tqdm(total=steps * schedule.batch_size, initial=state.step * schedule.batch_size, unit="img", unit_scale=True, smoothing=0.02, mininterval=1.0)
    with bar, catch_interrupt() as interrupted, logging_redirect_tqdm():
        while state.step < steps:
            epoch, within = divmod(state.step, steps_per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
                order, order_epoch = epoch_order(splits.train.labels, settings.data.balance, generator).to(device), epoch
            index = order[(within * schedule.batch_size + torch.arange(schedule.batch_size, device=device)) % len(order)]
            torch.manual_seed(settings.seed * 1_000_003 + state.step)  # of every device: augmentation and dropout
            images = augment(train_images[index].unsqueeze(1).float() / 255, settings.augment)  # (B, 1, 28, 28)
            labels = train_labels[index]
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(schedule, settings.optimizer.lr, state.step, steps)
            loss, logits = train_step(forward, state, images, labels, schedule.label_smoothing, autocast)
            state.step += 1
            bar.update(schedule.batch_size)
            shown += len(labels)
            if state.step % 50 == 0 or interrupted():  # reading a number waits for the device, so seldom
                losses, right = float(loss), int((logits.argmax(1) == labels).sum())
                bar.set_postfix(epoch=f"{state.step / steps_per_epoch:.1f}", loss=f"{losses:.3f}", acc=f"{right / len(labels):.3f}")
            if interrupted():
                state.seconds += time.perf_counter() - since
                logits = logits_of(state.average.module, splits.validation, device)
                save_checkpoint(checkpoint_of(state, settings, splits, logits), folder / "last.pt")
                raise Interrupted(f"stopped after step {state.step} of {steps}; --resume goes on from there")
            if state.step % steps_per_epoch == 0 or state.step == steps:
                elapsed = time.perf_counter() - since
                validate(state, settings, splits, folder, {"loss": losses, "images_per_s": shown / elapsed}, since)
                shown, since = 0, time.perf_counter()


def train_step(forward: Callable[[Tensor], Tensor], state: State, images: Tensor, labels: Tensor, smoothing: float, autocast: bool) -> tuple[Tensor, Tensor]:
    """One optimiser step; returns the loss and the logits (B, C), still on the device."""
    state.model.train()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        logits = forward(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.average.update_parameters(state.model)
    return loss.detach(), logits.detach()


def learning_rate(schedule: ScheduleSettings, peak: float, step: int, steps: int) -> float:
    """Linear up to `peak` over the warm-up, then a half cosine down to 0 (one cycle; Smith & Topin 2018)."""
    warmup = max(1, round(schedule.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def bfloat16(settings: Settings, device: torch.device) -> bool:
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def compiles(settings: Settings, device: torch.device, steps: int) -> bool:
    if settings.compile != "auto":
        return settings.compile == "always"
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return steps >= COMPILE_PAYS_STEPS and headers and compiler


def describe(device: torch.device, settings: Settings, steps: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    precision = "bfloat16" if bfloat16(settings, device) else "float32"
    return f"{name}, {precision}{', compiled' if compiles(settings, device, steps) else ''}"


@contextlib.contextmanager
def catch_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM is remembered, to be obeyed between two steps; a second one acts at once."""
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(s) for s in signals]

    def remember(number: int, _: object) -> None:
        caught.append(number)
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)

    for s in signals:
        signal.signal(s, remember)
    try:
        yield lambda: bool(caught)
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)


def device_of(state: State) -> torch.device:
    return next(state.model.parameters()).device


def logits_of(model: nn.Module, data: Images, device: torch.device) -> Tensor:
    """Logits float32 (N, C), on the CPU, of the model in eval mode."""
    model.eval()
    with torch.no_grad():
        parts = [model(part.to(device).unsqueeze(1).float() / 255).cpu() for part in data.images.split(EVALUATION_BATCH)]
    return torch.cat(parts)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits (N, C) with the least cross-entropy (temperature scaling; Guo et al. 2017)."""
    return min(TEMPERATURES, key=lambda t: float(F.cross_entropy(logits / t, labels)))


def checkpoint_of(state: State, settings: Settings, splits: Splits, logits: Tensor) -> dict[str, Any]:
    """The checkpoint at this step; `logits` (N, C) are the averaged model's on the validation part."""
    truth, classes = splits.validation.labels, splits.validation.classes
    temperature = fit_temperature(logits, truth)
    return {
        "settings": settings.to_dict(),
        "classes": list(classes),
        "weights": state.average.module.state_dict(),
        "temperature": temperature,
        "samples": splits.validation.images[:SAMPLES].clone(),
        "metrics": {"validation": measure(torch.softmax(logits / temperature, 1).numpy(), truth.numpy(), classes)},
        "run": {"step": state.step, "seconds": round(state.seconds), "device": describe(device_of(state), settings, state.step)},
        "data": describe_data(splits, settings),
        "resume": state.to_dict(),
    }


def validate(state: State, settings: Settings, splits: Splits, folder: Path, measured: dict[str, float], since: float) -> None:
    """Score the averaged weights on the validation part, write a line of metrics.jsonl, save last.pt, and best.pt if it is."""
    logits = logits_of(state.average.module, splits.validation, device_of(state))
    accuracy = float((logits.argmax(1) == splits.validation.labels).float().mean())
    state.seconds += time.perf_counter() - since
    better = accuracy > state.best
    state.best = max(state.best, accuracy)
    state.history.append({"step": state.step, **measured, "validation_accuracy": accuracy, "seconds": round(state.seconds, 1)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in state.history))
    log.info("step %d: loss %.3f, validation accuracy %.4f, %.0f images/s", state.step, measured["loss"], accuracy, measured["images_per_s"])
    checkpoint = checkpoint_of(state, settings, splits, logits)
    save_checkpoint(checkpoint, folder / "last.pt")
    if better:
        save_checkpoint(checkpoint, folder / "best.pt")


def describe_data(splits: Splits, settings: Settings) -> dict[str, Any]:
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        "train_split": settings.data.train_split,
        "test_split": settings.data.test_split,
        "removed": splits.removed,
        "images": {name: len(part) for name, part in parts.items()},
        "fingerprint": {name: part.fingerprint() for name, part in parts.items()},
    }


def finish(folder: Path, splits: Splits) -> None:
    """Report the best checkpoint on the test images, once; export it and write its model card."""
    checkpoint = load_checkpoint(folder / "best.pt")
    model = ExportedModel(network_of(checkpoint), checkpoint["temperature"]).eval()
    with torch.no_grad():
        probabilities = torch.cat([model(part) for part in splits.test.images.split(EVALUATION_BATCH)]).numpy()
    checkpoint["metrics"]["test"] = measure(probabilities, splits.test.labels.numpy(), splits.test.classes)
    save_checkpoint(checkpoint, folder / "best.pt")
    export(checkpoint, folder / "emnist.pt")
    card.write(folder / "emnist.pt", folder / "README.md")
    print(table(checkpoint["metrics"]["test"]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train a recipe, evaluate it and export it.")
    parser.add_argument("--recipe", default="flagship", help="a file of training/recipes/ without .yaml, or a path that ends in .yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="overrides", help="change one setting; repeatable")
    parser.add_argument("--emnist-root", default=os.environ.get("EMNIST_ROOT"), help="folder that holds EMNIST/raw; without it the official files are downloaded once into a cache")
    parser.add_argument("--name", help="the run's folder in runs/; default: the recipe's name")
    parser.add_argument("--resume", action="store_true", help="go on with the run of that name, with its own settings")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path("runs") / (arguments.name or Path(arguments.recipe).stem)
    try:
        if arguments.resume:
            if arguments.overrides:
                raise SettingsError("--resume goes on with the settings of the run; leave out --set")
            settings = from_dict(load_checkpoint(folder / "last.pt")["settings"])
        else:
            settings = load_recipe(arguments.recipe, arguments.overrides)
            if (folder / "last.pt").exists():
                raise SettingsError(f"{folder} holds a run already: go on with --resume, choose another --name, or delete the folder")
        root = Path(arguments.emnist_root) if arguments.emnist_root else cache_folder()
        if not arguments.emnist_root:
            download(root)
        splits = load_splits(settings.data, root, settings.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False))
        train(settings, splits, folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"), arguments.resume)
        finish(folder, splits)
    except Interrupted as interruption:
        print(f"train: {interruption}", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DataError, ExportError, SettingsError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
