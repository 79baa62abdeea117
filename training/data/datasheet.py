"""What was read, what was left out and what was refused, and why: as data.json of a run's folder and in lines for a
terminal.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from training.data.images import Images
from training.data.splits import Splits
from training.settings import DataSettings

log = logging.getLogger(__name__)

NAMES = 20  # of refused pictures that a report gives, by code
SHOWN = 3  # of these in a line for a terminal


def summary(settings: DataSettings, splits: Splits) -> dict[str, Any]:
    """All that `data.json` holds."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    codes = Counter(refusal.code for refusal in splits.refused)
    return {
        "source": settings.source,
        "size": splits.train.images.shape[-1],
        "classes": "".join(splits.train.classes),
        "images": {name: len(part) for name, part in parts.items()},
        "by_class": {name: by_class(part) for name, part in parts.items()},
        "fingerprint": {name: part.fingerprint() for name, part in parts.items()},
        "held_out": splits.apart,
        "removed": splits.removed,
        "left_out": splits.left_out,
        "refused": {
            code: {"count": count, "first": [r.name for r in splits.refused if r.code == code][:NAMES]}
            for code, count in codes.most_common()
        },
    }


def by_class(part: Images) -> dict[str, int]:
    return dict(zip(part.classes, part.labels.bincount(minlength=len(part.classes)).tolist(), strict=True))


def lines(report: dict[str, Any]) -> list[str]:
    """The same for a terminal, without the counts by class."""
    held_out = ", ".join(f"{part}: {how}" for part, how in report["held_out"].items())
    return [
        (
            f"{report['source']}: {', '.join(f'{count:,} {part}' for part, count in report['images'].items())} images"
            f" of {report['classes']}"
        ),
        f"held out: {held_out}; {report['removed']:,} removed: again in validation or test",
        *(f"left out: {count:,} {reason}" for reason, count in report["left_out"].items()),
        *(
            f"refused: {refused['count']:,} {code}, such as {', '.join(refused['first'][:SHOWN])}"
            for code, refused in report["refused"].items()
        ),
    ]


def table(report: dict[str, Any]) -> list[str]:
    """Images of each class in each part, a line a class."""
    parts = list(report["by_class"])
    rows = [f"{c:<8}" + "".join(f"{report['by_class'][part][c]:>12,}" for part in parts) for c in report["classes"]]
    return ["class   " + "".join(f"{part:>12}" for part in parts), *rows]


def write_report(settings: DataSettings, splits: Splits, path: Path) -> None:
    """Log what was read, and write all of it to `path`."""
    report = summary(settings, splits)
    for line in lines(report):
        log.info("%s", line)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
