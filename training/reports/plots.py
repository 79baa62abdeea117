"""Figures of training and evaluation, by Matplotlib's objects: nothing global is touched, and no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.evaluation.predictions import Answers, Roc

DPI = 110
BLUE, ORANGE, GREY = "#1f6fb2", "#d9702b", "#8a8f98"
OTHERS = (ORANGE, "#3c8d40", "#8d4fa8")  # for the worst classes, which the ROC curves name
SMALL = 8  # points, of the labels of many classes
ROW_INCH = 0.17  # height of a class in a plot that has a line a class
# The false-positive rate up to which, and the true-positive rate from which, a ROC curve is shown enlarged.
CORNER = (
    0.1,
    0.8,
)
SAMPLE_COLUMNS = 8
LABEL_SHARE, GAP_SHARE = 0.28, 0.1  # of a sample's side: the height of its label, and the space to the next


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """What metrics.jsonl holds, {run: lines}, against the steps: loss, accuracy and F1 of the validation part, learning
    rate, throughput.
    """
    figure = _figure(9, 8.5)
    places = figure.subplot_mosaic([[0, 1], [2, 3], [4, 4]])
    panels = [
        ("Loss", (("loss", "training", ":"), ("validation_loss", "validation", "-")), "cross-entropy"),
        (
            "Accuracy, validation",
            (("validation_accuracy", "clean", "-"), ("degraded_accuracy", "degraded", ":")),
            "share",
        ),
        ("F1, validation", (("validation_f1_weighted", "weighted", "-"), ("validation_f1_macro", "macro", ":")), "F1"),
        ("Learning rate", (("lr", "", "-"),), "rate"),
        ("Throughput", (("images_per_s", "", "-"),), "images/s"),
    ]
    for place, (title, lines, unit) in enumerate(panels):
        axes = places[place]
        _tidy(axes, title, "step", unit)
        for number, (run, history) in enumerate(histories.items()):
            for key, label, style in lines:
                points = [(line["step"], line[key]) for line in history if key in line]
                if points:
                    name = ": ".join(part for part in (run if len(histories) > 1 else "", label) if part)
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=f"C{number}",
                        marker="." if len(points) < 40 else "",
                        label=name,
                    )
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=SMALL, frameon=False)
    return figure


def races(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Figure:
    """Test accuracy against minutes of training: for each system its own points and the flagship's on the same data."""
    figure = _figure(9, 2.6 * -(-len(curves) // 2))
    for number, (system, both) in enumerate(curves.items()):
        axes = figure.add_subplot(-(-len(curves) // 2), 2, number + 1)
        _tidy(axes, system, "minutes", "test accuracy")
        for points, name, colour in zip(both, (system, "flagship, same data"), (GREY, BLUE), strict=True):
            axes.plot(
                [p["minutes"] for p in points],
                [p["test"] for p in points],
                color=colour,
                marker="." if len(points) < 40 else "",
                label=name,
            )
        ends = [max(p["test"] for p in points) for points in both]
        # What comes before is over in the first minute.
        span = max(2 * (max(ends) - min(ends)), min(0.15, 5 * (1 - max(ends))))
        axes.set_ylim(max(ends) - span, max(ends) + span / 15)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(fontsize=SMALL, frameon=False)
    return figure


def confusion(answers: Answers) -> Figure:
    """Rows are the true classes, each shared out over what it was read as."""
    counts = answers.confusion()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = max(4.5, 2 + ROW_INCH * len(answers.classes))
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # the root makes rare errors visible
    axes.set_title("Confusion matrix", fontsize=11)
    axes.set_xlabel("read as")
    axes.set_ylabel("true class")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(answers.classes)), answers.classes, fontsize=SMALL)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    marks = (0, 0.01, 0.05, 0.2, 0.5, 1)
    bar.set_ticks([mark**0.5 for mark in marks], labels=[f"{mark:.0%}" for mark in marks])
    return figure


def class_bars(answers: Answers) -> Figure:
    """Precision, recall with Wilson's 95 % interval, and F1 of each class, lowest F1 first."""
    rows = dict(sorted(answers.per_class().items(), key=lambda item: item[1]["f1"]))
    figure = _figure(9, 1.3 + ROW_INCH * len(rows))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, key in zip(panels, ("precision", "recall", "f1"), strict=True):
        _bars(axes, list(rows), [row[key] for row in rows.values()])
        axes.set_title({"f1": "F1"}.get(key, key.capitalize()), fontsize=11)
    _intervals(panels[1], [(row["recall"], row["low"], row["high"]) for row in rows.values()])
    return figure


def accuracy_bars(rows: Mapping[str, tuple[float, float, float]], title: str) -> Figure:
    """Accuracy of each class, {class: (share, low, high)}, with its interval."""
    figure = _figure(6, 1.3 + ROW_INCH * 1.2 * len(rows))
    axes = figure.subplots()
    _bars(axes, list(rows), [share for share, _, _ in rows.values()])
    _intervals(axes, list(rows.values()))
    axes.set_title(title, fontsize=11)
    return figure


def _bars(axes: Axes, names: Sequence[str], shares: Sequence[float]) -> None:
    axes.barh(range(len(names)), shares, color=BLUE, height=0.75)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _intervals(axes: Axes, rows: Sequence[tuple[float, float, float]]) -> None:
    share, low, high = np.array(rows).T
    reach = np.maximum(0, [share - low, high - share])
    axes.errorbar(share, range(len(rows)), xerr=reach, fmt="none", ecolor=ORANGE, elinewidth=1.2, capsize=1.5)


def roc(answers: Roc) -> Figure:
    """One-vs-rest ROC curves, whole and at the corner where good ones lie; mean and deviation over the classes."""
    figure = _figure(9, 4.6)
    stack = np.stack(list(answers.curves.values()))
    mean, deviation = stack.mean(axis=0), stack.std(axis=0)
    worst = sorted(answers.areas, key=lambda name: answers.areas[name])[: len(OTHERS)]
    for enlarged, axes in zip((False, True), figure.subplots(1, 2), strict=True):
        _tidy(
            axes, "The corner, enlarged" if enlarged else "One-vs-rest ROC", "false-positive rate", "true-positive rate"
        )
        for name, curve in answers.curves.items():
            if name not in worst:
                axes.plot(answers.rates, curve, color=GREY, linewidth=0.5, alpha=0.5)
        for name, colour in zip(worst, OTHERS, strict=False):
            axes.plot(
                answers.rates,
                answers.curves[name],
                color=colour,
                linewidth=1,
                label=f"{name}: AUC {answers.areas[name]:.4f}",
            )
        axes.fill_between(
            answers.rates,
            np.maximum(0, mean - deviation),
            np.minimum(1, mean + deviation),
            color=BLUE,
            alpha=0.2,
            linewidth=0,
        )
        label = f"mean of {len(stack)} classes: AUC {answers.mean:.4f} ± {answers.deviation:.4f}"
        axes.plot(answers.rates, mean, color=BLUE, linewidth=2, label=label)
        axes.set_xlim((0, CORNER[0] if enlarged else 1))
        axes.set_ylim((CORNER[1] if enlarged else 0, 1.005))
        if not enlarged:
            axes.plot((0, 1), (0, 1), "--", color=GREY, linewidth=0.8)
            axes.legend(fontsize=SMALL, frameon=False, loc="lower right")
    return figure


def samples(images: npt.NDArray[Any], labels: Sequence[str]) -> Figure:
    """Pictures (N, S, S) in a grid, each below its label."""
    size = images.shape[-1]
    # Pixels: a label's height, and from row to row.
    label, cell = (
        round(LABEL_SHARE * size),
        round((1 + LABEL_SHARE + GAP_SHARE) * size),
    )
    across = round((1 + GAP_SHARE) * size)
    rows = -(-len(images) // SAMPLE_COLUMNS)
    grid = np.full((rows * cell, SAMPLE_COLUMNS * across), np.nan)
    figure = _figure(SAMPLE_COLUMNS * 0.9, rows * 0.9 * cell / across)
    axes = figure.subplots()  # one for all: an axes each would take a second
    axes.set_axis_off()
    for place, (image, name) in enumerate(zip(images, labels, strict=True)):
        top, left = place // SAMPLE_COLUMNS * cell + label, place % SAMPLE_COLUMNS * across
        grid[top : top + size, left : left + size] = image
        axes.text(left + size / 2, top - label / 2, name, ha="center", va="center", fontsize=10)
    axes.imshow(grid, cmap="gray", interpolation="nearest")
    return figure


def learning_rates(rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], chosen: float) -> Figure:
    """The losses of a sweep over learning rates, as they were and smoothed, and the rate that is suggested."""
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    _tidy(axes, "Learning-rate sweep", "learning rate", "training loss")
    axes.plot(rates, losses, color=GREY, linewidth=0.7, alpha=0.7, label="of each batch")
    axes.plot(rates, smooth, color=BLUE, linewidth=2, label="smoothed")
    axes.axvline(chosen, color=ORANGE, linestyle="--", label=f"steepest descent: {chosen:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(min(smooth) - 0.05 * (smooth[0] - min(smooth)) - 0.05, max(smooth[0], min(smooth)) * 1.25)
    axes.legend(frameon=False)
    return figure
