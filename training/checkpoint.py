"""Checkpoints: all that an export needs, and under `resume` all that going on needs.

A checkpoint holds `settings`, `classes`, `weights` (the averaged ones), `temperature`, `samples` (validation images for
the export to verify itself on), `metrics`, `run`, `data` and `resume`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.files import replaced
from training.models import make_model
from training.settings import OptimizerSettings, Settings, from_dict

NEEDED_BY_EXPORT = {"settings", "classes", "weights", "temperature", "samples"}


class CheckpointError(Exception):
    """A file that is no checkpoint of training.train, or a damaged one."""


@dataclass
class State:
    """All that changes while training."""

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: float = math.inf  # validation loss of the best checkpoint
    seconds: float = 0.0  # spent training and validating, over all resumed parts
    history: list[dict[str, float]] = field(default_factory=list)  # the lines of metrics.jsonl

    @property
    def losses(self) -> list[float]:
        """The validation loss of every epoch so far."""
        return [line["validation_loss"] for line in self.history]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def average_weights(self, decay: float) -> None:
        """Move the averaged weights towards the present ones: an exponential moving average.

        Its decay grows with the steps, so that it does not remember the first weights. AveragedModel's own update would
        bring its count to the device in every step, and wait for it to come back.
        """
        weight = 1 - min(decay, (1 + self.step) / (10 + self.step)) if self.step else 1.0
        averaged, current = self.average.module.state_dict(), self.model.state_dict()
        numbers = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in numbers], [current[name] for name in numbers], weight)
        for name in current.keys() - numbers:  # batch norm counts its batches
            averaged[name].copy_(current[name])
        self.average.n_averaged += 1

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        return parts | {name: getattr(self, name) for name in ("step", "best", "seconds", "history")}

    def restore(self, kept: dict[str, Any]) -> None:
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(kept[name])
        for name in ("step", "best", "seconds", "history"):
            setattr(self, name, kept[name])

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Take over the averaged weights of another run's network. Raises CheckpointError if it is another network."""
        try:
            for model in (self.model, self.average.module):
                model.load_state_dict(checkpoint["weights"])
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights to start from are of another network: {str(error).splitlines()[0]}"
            ) from error


def new_state(settings: Settings, classes: int, device: torch.device) -> State:
    model = make_model(settings.model, classes).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return State(model, AveragedModel(model), _optimizer(model, settings.optimizer))


def _optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Weight decay is for the weights of convolutions and linear layers alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov and settings.momentum > 0
        )
    return (torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW)(groups, lr=settings.lr)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write atomically: a reader finds the old file or the new one, whole."""
    with replaced(path) as stream:
        torch.save(checkpoint, stream)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises CheckpointError."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has a type of its own for every kind of damage
        raise CheckpointError(f"{path} is not a checkpoint of training.train: {str(error).splitlines()[0]}") from error
    missing = NEEDED_BY_EXPORT - checkpoint.keys() if isinstance(checkpoint, dict) else NEEDED_BY_EXPORT
    if missing:
        raise CheckpointError(f"{path} is not a checkpoint of training.train: it lacks {', '.join(sorted(missing))}")
    return checkpoint


def network_of(checkpoint: dict[str, Any]) -> nn.Module:
    """The eager network of a checkpoint, with its averaged weights, in eval mode and without gradients."""
    network = make_model(from_dict(checkpoint["settings"]).model, len(checkpoint["classes"]))
    network.load_state_dict(checkpoint["weights"])
    return network.eval().requires_grad_(False)
