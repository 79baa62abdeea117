"""A run: what stays the same while it goes on, and what it leaves in its folder: checkpoints, metrics.jsonl, the
export.

last.pt is the newest checkpoint and best.pt the one whose averaged weights have the least validation loss.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlers.recognizer import ModelError, Recognizer
from training.checkpoint import State, load_checkpoint, save_checkpoint
from training.data import Splits
from training.degrade.pool import degraded
from training.distributed import ALONE, Group
from training.evaluate import evaluate, table
from training.evaluation.metrics import measure
from training.evaluation.predictions import Answers
from training.evaluation.robustness import EVALUATION_BATCH, probabilities_of
from training.export import export
from training.models import count_multiply_adds, count_parameters
from training.reports import card, report
from training.reports.sheets import contact_sheet, error_sheet
from training.settings import Settings, SettingsError

log = logging.getLogger(__name__)

SAMPLES = 64  # validation images that ride in the checkpoint, for the export to verify itself on
COMPILE_PAYS_STEPS = 1000  # compiling takes about as long as it saves in so many steps
TEMPERATURES = [math.exp(0.01 * n) for n in range(-120, 81)]  # 0.30 to 2.23
DEVICES = ("auto", "cpu", "gpu")


def choose_device(wanted: str) -> torch.device:
    """The device to train on. Raises SettingsError where a GPU was asked for and none is seen."""
    if wanted not in DEVICES:
        raise SettingsError(f"TRAIN_DEVICE must be one of {', '.join(DEVICES)}, not '{wanted}'")
    seen = torch.cuda.is_available()
    if wanted == "gpu" and not seen:
        raise SettingsError(
            "a GPU was asked for, and torch sees none: `docker run --gpus all`, the limit nvidia.com/gpu, or"
            " --device cpu"
        )
    return torch.device("cuda" if seen and wanted != "cpu" else "cpu")


@dataclass(frozen=True)
class Run:
    """What stays the same while a run goes on."""

    settings: Settings
    splits: Splits
    folder: Path
    device: torch.device
    group: Group = ALONE

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

    def degraded_copies(self) -> Tensor:
        """Degraded training images, uint8 (copies, N, S, S); none where the recipe asks for none."""
        data = self.settings.data
        if data.degraded_copies == 0:
            return torch.empty(0, *self.splits.train.images.shape, dtype=torch.uint8)
        return degraded(self.splits.train, data.degraded_copies, data.validation_seed)

    def validation_images(self) -> list[Tensor]:
        """What a checkpoint is chosen by, uint8 (N, S, S) each: the validation images and, where training has them, a
        degraded copy.
        """
        clean = self.splits.validation
        return [
            clean.images,
            *(degraded(clean, 1, self.settings.data.validation_seed) if self.settings.data.degraded_copies else ()),
        ]

    def soft_labels(self) -> Tensor:
        """What the training images are to be read as: class probabilities float16 (N, C). Raises SettingsError for a
        teacher that does not fit.
        """
        train, distill = self.splits.train, self.settings.distill
        targets = F.one_hot(train.labels, len(train.classes)).float()
        if distill.teachers:
            taught = torch.zeros_like(targets)
            for path in distill.teachers:
                try:
                    teacher = Recognizer(path, self.device.type)
                except ModelError as error:
                    raise SettingsError(f"distill.teachers: {error}") from error
                if teacher.classes != train.classes:
                    raise SettingsError(
                        f"distill.teachers: {path} knows {''.join(teacher.classes)}, the data {''.join(train.classes)}"
                    )
                log.info("teacher %s, version %s", path, teacher.version)
                taught += torch.from_numpy(
                    probabilities_of(teacher, train.resized(teacher.input_size).images.numpy())
                ) / len(distill.teachers)
            targets = torch.lerp(targets, taught, distill.weight)
        return targets.half()

    def describe_device(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        processes = f"{self.group.size} processes, each on " if self.group.size > 1 else ""
        return f"{processes}{name}, {'bfloat16' if self.autocast else 'float32'}{', compiled' if self.compiles else ''}"

    def describe_data(self) -> dict[str, Any]:
        parts = {"train": self.splits.train, "validation": self.splits.validation, "test": self.splits.test}
        return {
            "source": self.settings.data.source,
            "train_split": self.settings.data.train_split,
            "test_split": self.settings.data.test_split,
            "removed": self.splits.removed,
            "images": {name: len(part) for name, part in parts.items()},
            "fingerprint": {name: part.fingerprint() for name, part in parts.items()},
        }


def log_start(run: Run, state: State) -> None:
    parameters, multiply_adds = (
        count_parameters(state.model),
        count_multiply_adds(state.model, run.settings.model.input_size),
    )
    log.info("%d parameters, %.1f M multiply-adds an image; %s", parameters, multiply_adds / 1e6, run.describe_device())


def logits_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Logits float32 (N, C), on the CPU, of uint8 images (N, S, S) by the model in eval mode."""
    model.eval()
    batches = torch.split(images, EVALUATION_BATCH)
    with torch.no_grad():
        return torch.cat([model(batch.to(device).unsqueeze(1).float() / 255).cpu() for batch in batches])


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits (N, C) with the least cross-entropy (temperature scaling; Guo et al. 2017)."""
    return min(TEMPERATURES, key=lambda t: float(F.cross_entropy(logits / t, labels)))


def answers_of(run: Run, logits: Tensor) -> Answers:
    """The validation part's answers, as they would be exported, from logits (N, C)."""
    validation = run.splits.validation
    probabilities = torch.softmax(logits / fit_temperature(logits, validation.labels), 1).numpy()
    return Answers(probabilities, validation.labels.numpy(), validation.classes, validation.fingerprint())


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
        "run": {
            "name": run.folder.name,
            "step": state.step,
            "steps": run.steps,
            "seconds": round(state.seconds),
            "device": run.describe_device(),
        },
        "data": run.describe_data(),
        "resume": state.to_dict(),
    }


def record(run: Run, state: State, logits: Sequence[Tensor], loss: float, images_per_s: float) -> None:
    """Note an epoch's numbers in metrics.jsonl, and keep it as best.pt if its averaged weights have the least
    validation loss.

    `logits` (N, C) are the averaged model's on each of `run.validation_images()`, the clean ones first.
    """
    labels = run.splits.validation.labels
    # As it would be exported.
    losses = [float(F.cross_entropy(part / fit_temperature(part, labels), labels)) for part in logits]
    accuracies = [float((part.argmax(1) == labels).float().mean()) for part in logits]
    validation_loss = sum(losses) / len(losses)
    better = validation_loss < state.best
    state.best = min(state.best, validation_loss)
    line = {"step": state.step, "loss": loss, "validation_loss": validation_loss, "validation_accuracy": accuracies[0]}
    if len(logits) > 1:
        line["degraded_accuracy"] = accuracies[1]
    f1 = answers_of(run, logits[0]).f1()
    line |= {
        "validation_f1_weighted": f1["weighted"],
        "validation_f1_macro": f1["macro"],
        "lr": state.optimizer.param_groups[0]["lr"],
    }
    state.history.append(line | {"images_per_s": images_per_s, "seconds": state.seconds})
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in state.history))
    read = ", ".join(f"{100 * accuracy:.2f} %" for accuracy in accuracies)
    log.info(
        "step %d: loss %.3f, validation loss %.4f, accuracy %s, %.0f images/s",
        state.step,
        loss,
        validation_loss,
        read,
        images_per_s,
    )
    if better:
        save_checkpoint(checkpoint_of(run, state, logits[0]), run.folder / "best.pt")


def finish(run: Run) -> None:
    """Report the best checkpoint on the test images, once; export it, with its figures, and write its model card with
    its two sheets.
    """
    checkpoint = load_checkpoint(run.folder / "best.pt")
    exported = run.folder / "emnist.pt"
    export(checkpoint, exported)  # what is reported is what is exported; then again, with the report in it
    checkpoint["metrics"]["test"] = evaluate(Recognizer(exported), run.splits.test, run.settings.data.test_pictures)
    save_checkpoint(checkpoint, run.folder / "best.pt")
    export(checkpoint, exported)
    card.write(exported, run.folder / "README.md")
    recognizer = Recognizer(exported)
    contact_sheet(recognizer, run.splits.test, run.folder / "contact-sheet.png")
    error_sheet(recognizer, run.splits.test, run.folder / "errors.png")
    test = run.splits.test
    answers = Answers(
        probabilities_of(recognizer, test.images.numpy()), test.labels.numpy(), test.classes, test.fingerprint()
    )
    answers.save(run.folder / report.TEST)
    report.write(run.folder)
    print(table(checkpoint["metrics"]["test"]))
