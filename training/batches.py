"""From a run and a step's number to the batch: which images, in which form, varied how.

All randomness of a step is a function of (seed, step). Of several processes each takes its part of the same batch; only
dropout's numbers are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment import augment
from training.data import epoch_order
from training.run import Run
from training.settings import ScheduleSettings

SEED_STRIDE = 1_000_003  # keeps the seeds of one run's steps apart from another's
RANK_STRIDE = 7_919  # keeps the dropout of one process apart from another's


@dataclass(frozen=True)
class Material:
    """What is trained on, on the run's device."""

    images: Tensor  # uint8 (N, S, S)
    labels: Tensor  # int64 (N,)
    copies: Tensor  # uint8 (copies, N, S, S)
    targets: Tensor  # class probabilities float16 (N, C)


def material_of(run: Run, copies: Tensor) -> Material:
    """The training part with its degraded copies, uint8 (copies, N, S, S), moved to the device."""
    train = run.splits.train
    return Material(*(part.to(run.device) for part in (train.images, train.labels, copies, run.soft_labels())))


def batches(run: Run, step: int) -> Iterator[Tensor]:
    """From `step` to the end of the run: where the images of each step's batch stand in the training part, int64
    (B,).
    """
    settings, size = run.settings, run.settings.schedule.batch_size
    order, order_epoch = torch.empty(0), -1
    for number in range(step, run.steps):
        epoch, within = divmod(number, run.steps_per_epoch)
        if epoch != order_epoch:
            generator = torch.Generator().manual_seed(settings.seed * SEED_STRIDE + epoch)
            order, order_epoch = (
                epoch_order(run.splits.train.labels, settings.data.balance, generator).to(run.device),
                epoch,
            )
        places = within * size + torch.arange(size, device=run.device)
        yield order[places % len(order)]  # rounding may leave the order a few images short


def make_batch(run: Run, material: Material, index: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """This process's part of the images at `index` (B,), varied, float (P, 1, S, S) in 0..1, and where they stand
    (P,).
    """
    settings, group = run.settings, run.group
    part = group.part(len(index))
    seed = settings.seed * SEED_STRIDE + step
    torch.manual_seed(seed)  # on every device, for augmentation and dropout
    # (B, 1, S, S)
    batch = pick(material.images, material.copies, index, settings.data.degraded_share).unsqueeze(1).float() / 255
    batch = augment(batch, settings.augment, augment_strength(settings.schedule, step, run.steps), part)
    if not group.leads:
        torch.manual_seed(seed + group.rank * RANK_STRIDE)  # for dropout
    return batch, index[part]


def pick(images: Tensor, copies: Tensor, index: Tensor, share: float) -> Tensor:
    """The images (N, S, S) at `index` (B,), a `share` of them as one of their degraded copies (copies, N, S, S)."""
    picked = images[index]
    if len(copies) == 0:
        return picked
    chosen = torch.rand(len(index), device=index.device) < share
    copied = copies[torch.randint(len(copies), index.shape, device=index.device), index]
    return torch.where(chosen.view(-1, 1, 1), copied, picked)  # a choice of indices would be waited for


def augment_strength(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """1, and over the last `schedule.fade` of the steps linearly down to 0."""
    return min(1.0, (steps - step) / max(1.0, schedule.fade * steps))
