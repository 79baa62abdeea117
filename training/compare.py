"""Two runs or more side by side: what differs in settings, versions and data, how they ended, and whether that is
chance.

    python -m training.compare runs/a runs/b [...] [--plot build/compare.png]

Each run is held against the first. Where both answered the same test images, the difference is judged by McNemar's
exact test (McNemar 1947) on the images that only one of them read right; else by the two-proportion z-test.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import binomtest, norm

from training.data import DataError
from training.evaluation.predictions import Answers
from training.reports import plots
from training.reports.provenance import starts
from training.reports.report import TEST, history_of, interval, share

SIGNIFICANT = 0.05
MISSING = "-"


@dataclass(frozen=True)
class Finished:
    """A run as its folder tells it: `name` is the folder as it was given, `facts` are settings, versions and data by
    dotted names; `test` is None if it never was tested.
    """

    name: str
    facts: dict[str, str]
    history: list[dict[str, float]]
    test: Answers | None


def load_run(folder: Path) -> Finished:
    """Raises DataError for a folder that holds no run."""
    try:
        settings = yaml.safe_load((folder / "settings.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{folder} holds no run of training.train ({error})") from error
    if not isinstance(settings, dict):
        raise DataError(f"{folder / 'settings.yaml'} holds no settings")
    facts = {
        "settings": settings,
        **{key: value for key, value in (starts(folder) or [{}])[-1].items() if key != "time"},
    }
    answers = Answers.load(folder / TEST) if (folder / TEST).exists() else None
    return Finished(folder.as_posix(), flat(facts), history_of(folder), answers)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return leaves


def difference(first: Answers, other: Answers) -> tuple[str, float]:
    """The test that fits two runs' answers, in words, and its two-sided p value: how often chance alone would do as
    much.
    """
    if first.fingerprint == other.fingerprint:  # of classes, labels and images
        only_first, only_other = int((first.right & ~other.right).sum()), int((other.right & ~first.right).sum())
        p = float(binomtest(only_first, only_first + only_other).pvalue) if only_first + only_other else 1.0
        return f"McNemar's exact test, {only_first} read right by the first alone, {only_other} by the other alone", p
    (right_a, n_a), (right_b, n_b) = ((int(a.right.sum()), len(a.right)) for a in (first, other))
    pooled = (right_a + right_b) / (n_a + n_b)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    z = abs(right_a / n_a - right_b / n_b) / deviation if deviation else 0.0
    return "two-proportion z-test, for the test images or the classes differ", float(2 * norm.sf(z))


def compare(runs: Sequence[Finished]) -> str:
    """All in lines for a terminal."""
    keys = dict.fromkeys(key for run in runs for key in run.facts)
    differing = [key for key in keys if len({run.facts.get(key) for run in runs}) > 1]
    rows = [[key, *(run.facts.get(key, MISSING) for run in runs)] for key in differing]
    lines = (
        [*_table([["what differs", *(run.name for run in runs)], *rows])]
        if rows
        else ["settings, versions and data are the same"]
    )
    lines += ["", *_table([["how they ended", *(run.name for run in runs)], *_endings(runs)])]
    for run in runs[1:]:
        lines += ["", _verdict(runs[0], run)]
    return "\n".join(lines)


def _verdict(first: Finished, other: Finished) -> str:
    if first.test is None or other.test is None:
        missing = " and ".join(run.name for run in (first, other) if run.test is None)
        return f"{first.name} and {other.name}: no judgement, for {missing} kept no answers on the test part"
    how, p = difference(first.test, other.test)
    points = 100 * (other.test.right.mean() - first.test.right.mean())
    judgement = "more than chance" if p < SIGNIFICANT else "chance may do as much"
    return f"{other.name} less {first.name}: {points:+.2f} points of accuracy, p = {p:.3g}: {judgement} ({how})"


def _endings(runs: Sequence[Finished]) -> list[list[str]]:
    """One row a figure, one column a run; a figure that a run did not keep is MISSING."""
    columns = []
    for run in runs:
        last = run.history[-1]
        best = min(run.history, key=lambda line: line.get("validation_loss", math.inf))
        column = {"steps": f"{last['step']:,}", "minutes": f"{last['seconds'] / 60:.1f}"}
        column["images/s, median"] = f"{np.median([line['images_per_s'] for line in run.history]):,.0f}"
        if "validation_loss" in best:
            column["least validation loss"] = f"{best['validation_loss']:.4f}"
            column["validation accuracy there"] = share(best["validation_accuracy"])
        if run.test:
            overall = run.test.overall()
            column |= {"test images": f"{overall['n']:,}", "test accuracy, all classes": share(overall["accuracy"])}
            column |= {"95 % interval (Wilson)": interval(overall)}
            column |= {"F1, weighted": share(overall["f1_weighted"]), "F1, macro": share(overall["f1_macro"])}
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, MISSING) for column in columns)] for name in names]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.compare", description="Compare runs of training.train.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folders of two runs or more")
    parser.add_argument("--plot", type=Path, help="a PNG file for the runs' curves")
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        parser.error("give two runs or more")
    try:
        runs = [load_run(folder) for folder in arguments.runs]
        print(compare(runs))
        if arguments.plot:
            plots.save(plots.curves({run.name: run.history for run in runs}), arguments.plot)
    except (DataError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
