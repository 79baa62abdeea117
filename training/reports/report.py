"""A run's folder -> its plots as PNG files in report/ and one page, report.html, that needs nothing beside itself.

    python -m training.reports runs/NAME

Training writes it at its end; at any other time it shows what there is, of an unfinished run the validation part
as TensorBoard was given it last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from training.checkpoint import CheckpointError, load_checkpoint, network_of
from training.data import DataError
from training.evaluation.metrics import wilson, worst_pairs
from training.evaluation.predictions import Answers
from training.models import count_multiply_adds, count_parameters
from training.reports import page, plots, summary
from training.reports.provenance import starts
from training.settings import SettingsError

REPORT = "report"  # the folder of the plots
PAGE = "report.html"
TEST, VALIDATION = "test.npz", "validation.npz"  # answers on these parts


def history_of(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl. Raises DataError where there are none or they are damaged."""
    path = folder / "metrics.jsonl"
    try:
        history = [json.loads(line) for line in path.read_text().splitlines()]
        if not history:
            raise ValueError("it is empty")
        return history
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); give the folder of a run that has finished an epoch"
        ) from error


def answers_in(folder: Path) -> tuple[str, Answers] | None:
    """The answers that the run keeps and what part they are of: the test part, else the validation part."""
    for part, name in (("test", TEST), ("validation", VALIDATION)):
        if (folder / name).exists():
            return part, Answers.load(folder / name)
    return None


def write(folder: Path) -> Path:
    """Draw the plots of the run in `folder` and write its page, whose path is returned. Raises DataError,
    CheckpointError and SettingsError.
    """
    history = history_of(folder)
    checkpoint = load_checkpoint(folder / "best.pt")
    plots.save(plots.curves({folder.name: history}), folder / REPORT / "curves.png")
    sections = page.Sections()
    network = network_of(checkpoint)
    size = int(checkpoint["samples"].shape[-1])  # pixels
    facts = {
        "parameters": f"{count_parameters(network):,}",
        "multiply-adds an image": f"{count_multiply_adds(network, size) / 1e6:.1f} M",
    }
    kept = answers_in(folder)
    if kept:
        part, answers = kept
        roc = answers.roc()
        for name, figure in (
            ("confusion", plots.confusion(answers)),
            ("classes", plots.class_bars(answers)),
            ("roc", plots.roc(roc)),
        ):
            plots.save(figure, folder / REPORT / f"{name}.png")
        overall = answers.overall()
        facts = {
            f"accuracy, {part} part, n = {len(answers.labels):,}": (
                f"{share(overall['accuracy'])} ({interval(overall)})"
            ),
            "F1, weighted": share(overall["f1_weighted"]),
            "F1, macro": share(overall["f1_macro"]),
            "AUC, one-vs-rest": f"{roc.mean:.4f} ± {roc.deviation:.4f} over {len(roc.areas)} classes",
        } | facts
    sections.facts(facts)
    _figures(sections, checkpoint["metrics"])
    sections.picture(
        "Curves", folder / REPORT / "curves.png", "Loss, accuracy, F1, learning rate and throughput against steps"
    )
    if kept:
        _classes(sections, folder, answers, part)
    sections.picture(
        "Samples",
        folder / REPORT / "samples.png",
        "Augmented training images with their labels, as the network is given them",
    )
    sections.picture(
        "Errors",
        folder / "errors.png",
        "Test images that are read wrongly with the highest confidence, each above label>answer",
    )
    sections.picture(
        "Every style of picture",
        folder / "contact-sheet.png",
        "Test images in every style, each above what the network is given",
        scrolls=True,
    )
    _background(sections, folder, checkpoint, network)
    run = checkpoint["run"]
    subtitle = (
        f"best checkpoint: step {run['step']:,} of {run['steps']:,}, {run['seconds'] / 60:.1f} minutes on"
        f" {run['device']}"
    )
    out = folder / PAGE
    out.write_text(page.html(folder.resolve().name, subtitle, sections), encoding="utf-8")
    return out


def share(value: float) -> str:
    return f"{100 * value:.2f} %"


def interval(row: Mapping[str, float]) -> str:
    """Its ends, `low` and `high`, as text."""
    return f"{100 * row['low']:.2f} to {share(row['high'])}"


def _figures(sections: page.Sections, metrics: dict[str, Any]) -> None:
    """Each alphabet's accuracy on the parts that were measured, and that of users' pictures."""
    for part, measured in sorted(metrics.items()):  # the test part first
        rows = []
        for name, s in measured["alphabets"].items():
            low, high = wilson(round(s["accuracy"] * s["n"]), s["n"])
            rows.append(
                (
                    name,
                    f"{s['n']:,}",
                    share(s["accuracy"]),
                    interval({"low": low, "high": high}),
                    share(s["ece"]),
                    f"{s['nll']:.4f}",
                )
            )
        sections.table(
            f"By alphabet, {part} part", ("alphabet", "n", "accuracy", "95 % interval (Wilson)", "ECE", "NLL"), rows
        )
    pictures = metrics.get("test", {}).get("pictures", [])
    if pictures:
        cells = [
            (
                row["style"],
                row["group"],
                f"{row['n']:,}",
                share(row["accuracy"]),
                share(row["ece"]),
                share(row["refused"]),
            )
            for row in pictures
        ]
        sections.table(
            "Test images as users' pictures and corrupted", ("style", "group", "n", "accuracy", "ECE", "refused"), cells
        )


def _classes(sections: page.Sections, folder: Path, answers: Answers, part: str) -> None:
    areas = answers.roc().areas
    sections.picture(
        "Confusion matrix", folder / REPORT / "confusion.png", f"Confusion matrix of the {part} part", scrolls=True
    )
    sizes = {name: row["n"] for name, row in answers.per_class().items()}
    pairs = [
        (true, said, f"{n:,}", share(n / sizes[true]))
        for true, said, n in worst_pairs(answers.said, answers.labels, answers.classes)
    ]
    sections.table("Worst pairs", ("true class", "read as", "times", "of the class"), pairs)
    sections.picture(
        "Classes", folder / REPORT / "classes.png", "Precision, recall and F1 of each class, lowest F1 first"
    )
    rows = []
    for name, row in answers.per_class().items():
        shares = (share(row["precision"]), share(row["recall"]), interval(row), share(row["f1"]))
        rows.append((name, f"{row['n']:,}", *shares, f"{areas[name]:.4f}" if name in areas else ""))
    sections.table(
        "Classes in figures",
        ("class", "n", "precision", "recall", "95 % interval of recall (Wilson)", "F1", "AUC"),
        rows,
        folded=True,
    )
    sections.picture(
        "ROC curves", folder / REPORT / "roc.png", "One-vs-rest ROC curves: each class, their mean and deviation"
    )


def _background(sections: page.Sections, folder: Path, checkpoint: dict[str, Any], network: nn.Module) -> None:
    """What the run is: network, data, settings, versions."""
    size = int(checkpoint["samples"].shape[-1])
    sections.table(
        f"Network, for one image of {size} x {size} pixels",
        summary.HEADER,
        summary.cells(summary.layers(network, size)),
        folded=True,
    )
    data = checkpoint["data"]
    rows = [(part, f"{count:,}", data["fingerprint"][part]) for part, count in data["images"].items()]
    sections.table("Data", ("part", "images", "fingerprint"), rows, words=True)
    for start in starts(folder):
        git = start["git"]
        code = f"{git['commit'][:12]}{', with changes' if git['dirty'] else ''}" if git else "not from a git repository"
        facts = [
            ("device", start["device"]),
            ("platform", start["platform"]),
            ("commit", code),
            *start["versions"].items(),
        ]
        sections.table(f"Started {start['time']}", ("what", "version"), facts, words=True)
    sections.text(
        "Settings", yaml.safe_dump(checkpoint["settings"], sort_keys=False, default_flow_style=None, width=100)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.reports", description="Draw a run's plots and write its report.html."
    )
    parser.add_argument("run", type=Path, help="the run's folder, runs/NAME")
    arguments = parser.parse_args(argv)
    try:
        out = write(arguments.run)
    except (CheckpointError, DataError, SettingsError, OSError) as error:
        print(f"reports: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0
