"""The learning rate of every step, and whether to stop early: functions of the step and of the validation losses so
far.

As nothing else is remembered, a resumed run goes on with the rates of an uninterrupted one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from training.settings import ScheduleSettings

START, END = 1 / 25, 1e-4  # one-cycle: the first rate as a share of the peak, and the last as a share of the first


def learning_rate(
    schedule: ScheduleSettings, peak: float, step: int, steps: int, losses: Sequence[float] = ()
) -> float:
    """The rate of `step`, 0 to `steps` - 1, after the validation `losses` of the epochs before it, which "plateau"
    alone looks at.
    """
    if schedule.name == "cosine":
        return _cosine(schedule.warmup, peak, step, steps)
    if schedule.name == "one-cycle":
        return _one_cycle(schedule.warmup, peak, step, steps)
    if schedule.name == "step":
        passed = bisect.bisect_right(schedule.milestones, step * schedule.epochs / steps)
        return peak * (1.0, *schedule.factors)[passed]
    return _plateau(schedule, peak, losses) if schedule.name == "plateau" else peak


def _cosine(warmup: float, peak: float, step: int, steps: int) -> float:
    """Linear up to `peak` over the warm-up, then a half cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * _fall((step - rising) / max(1, steps - rising))


def _one_cycle(warmup: float, peak: float, step: int, steps: int) -> float:
    """Half cosines up to `peak` and down again (Smith & Topin 2018), as torch's OneCycleLR has them; momentum stays as
    it is.
    """
    top = warmup * steps - 1
    if step <= top:
        return peak * (1 - (1 - START) * _fall(step / top if top > 0 else 1.0))
    return peak * START * END + peak * (1 - START * END) * _fall((step - top) / (steps - 1 - top))


def _fall(share: float) -> float:
    """A half cosine from 1 to 0."""
    return (1 + math.cos(math.pi * share)) / 2


def _plateau(schedule: ScheduleSettings, peak: float, losses: Sequence[float]) -> float:
    """Lowered whenever the loss has not fallen by a ten-thousandth for more than `plateau_patience` epochs: torch's
    ReduceLROnPlateau.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    scheduler = ReduceLROnPlateau(
        optimizer, factor=schedule.plateau_factor, patience=schedule.plateau_patience, min_lr=schedule.plateau_lr
    )
    for loss in losses:
        scheduler.step(loss)
    return float(optimizer.param_groups[0]["lr"])


def stops(schedule: ScheduleSettings, losses: Sequence[float]) -> bool:
    """Whether the last `schedule.patience` epochs have brought no validation loss below those before."""
    return 0 < schedule.patience <= len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__, default=0)
