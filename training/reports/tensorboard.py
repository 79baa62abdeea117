"""What a run shows while it goes on, in runs/NAME/tensorboard: `tensorboard --logdir runs`.

A reporter only reads: it draws no random number and changes no weight, so a run ends with the very same weights without
it.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings

import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import State
from training.reports import plots
from training.reports.report import REPORT, VALIDATION
from training.run import Run, answers_of

log = logging.getLogger(__name__)

SAMPLES = 40  # augmented images of a batch that are shown


class Reporter:
    """Notes steps and epochs at the intervals of `settings.report`, in the process that leads. With both at 0 it opens
    nothing.

    After a resume, what a longer run had noted beyond its last checkpoint is left out by TensorBoard (`purge_step`).
    """

    def __init__(self, run: Run, state: State) -> None:
        self.run, self.settings = run, run.settings.report
        self.writer: SummaryWriter | None = None
        self.noted = (time.perf_counter(), state.step)  # when and at which step throughput was last counted
        if not run.group.leads or (self.settings.scalars == 0 and self.settings.figures == 0):
            return
        self.writer = SummaryWriter(run.folder / "tensorboard", purge_step=state.step + 1 if state.step else None)
        if state.step == 0:
            settings = yaml.safe_dump(run.settings.to_dict(), sort_keys=False, default_flow_style=None, width=100)
            self._text(
                "run",
                f"{run.folder.name}: {run.steps:,} steps of {run.settings.schedule.batch_size} images;"
                f" {run.describe_device()}",
            )
            self._text("settings", "    " + settings.replace("\n", "\n    "))
            self._text("data", "    " + yaml.safe_dump(run.describe_data(), sort_keys=False).replace("\n", "\n    "))
            if self.settings.graph:
                self._graph(state.model)

    def step(self, state: State, batch: Tensor, labels: Tensor, loss: Tensor, logits: Tensor) -> None:
        """After a step: its augmented images (B, 1, S, S), labels (B,), loss and logits (B, C), which are read only
        where they are due.
        """
        if self.writer is None:
            return
        due = self.settings.scalars and state.step % self.settings.scalars == 0
        if due:
            accuracy = (logits.argmax(1) == labels).float().mean()
            # Waits for the device, so that the time below is of steps done.
            self._scalar("train/loss", float(loss), state.step)
            self._scalar("train/accuracy", float(accuracy), state.step)
            self._scalar("train/learning_rate", state.optimizer.param_groups[0]["lr"], state.step)
            now, (before, step) = time.perf_counter(), self.noted
            images = (state.step - step) * self.run.settings.schedule.batch_size
            self._scalar("train/images_per_s", images / (now - before), state.step)
            self.noted = (now, state.step)
        first = state.step == 1 and self.settings.figures > 0
        if first or self._figures_due(state):
            names = [self.run.splits.train.classes[label] for label in labels[:SAMPLES].tolist()]
            grid = plots.samples(batch[:SAMPLES, 0].float().cpu().numpy(), names)
            self._figure("samples", grid, state.step)
            if first:  # for the report: later, augmentation fades out
                plots.save(grid, self.run.folder / REPORT / "samples.png")

    def epoch(self, state: State, logits: Tensor) -> None:
        """After an epoch: logits (N, C) of the averaged weights on the validation part."""
        if self.writer is None:
            return
        for name, value in state.history[-1].items():
            if name.startswith("validation_"):
                self._scalar(f"validation/{name.removeprefix('validation_')}", value, state.step)
        if self._figures_due(state):
            answers = answers_of(self.run, logits)
            answers.save(self.run.folder / VALIDATION)
            roc = answers.roc()
            self._scalar("validation/auc_mean", roc.mean, state.step)
            self._scalar("validation/auc_deviation", roc.deviation, state.step)
            self._figure("confusion", plots.confusion(answers), state.step)
            self._figure("classes", plots.class_bars(answers), state.step)
            self._figure("roc", plots.roc(roc), state.step)
        self.writer.flush()
        self.noted = (time.perf_counter(), state.step)  # validation and drawing are no part of the throughput

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _figures_due(self, state: State) -> bool:
        """At the end of every so many epochs, and at the end of the run."""
        every = self.settings.figures * self.run.steps_per_epoch
        return every > 0 and (state.step % every == 0 or state.step == self.run.steps)

    def _scalar(self, name: str, value: float, step: int) -> None:
        assert self.writer is not None
        self.writer.add_scalar(name, value, step)

    def _figure(self, name: str, figure: Figure, step: int) -> None:
        assert self.writer is not None
        self.writer.add_figure(name, figure, step)

    def _text(self, name: str, text: str) -> None:
        assert self.writer is not None
        self.writer.add_text(name, text, 0)

    def _graph(self, model: nn.Module) -> None:
        """Of a copy in eval mode: tracing runs the network, and must change neither batch norm nor the random
        numbers.
        """
        assert self.writer is not None
        traced = copy.deepcopy(model).cpu().float().eval()
        size = self.run.splits.train.images.shape[-1]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, of tracing
            try:
                self.writer.add_graph(traced, torch.zeros(1, 1, size, size))
            except RuntimeError as error:
                log.warning("no graph for TensorBoard: %s", str(error).splitlines()[0])
