"""The model card of an exported model, written from what rides in its file.

python -m training.reports.card MODEL.pt OUT.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from handlers.recognizer import ModelError, Recognizer
from training.evaluation.robustness import markdown

LIMITS = """\
- One character a picture. Words, lines and printed text were not trained on.
- Some characters look the same without context: 0 and O, 1 and I and L (which in EMNIST also holds l), 9 and g and q,
  5 and S, 2 and Z, F and f. They make most of the errors, and limit every figure above. Alternatives come with each
  answer, and an alphabet that holds one of the two settles the case.
- The writers are those of NIST Special Database 19: employees of the US Census Bureau and high-school pupils, in the
  1990s. Other hands, other alphabets and accents (É, ß, Ø) are outside.
- Confidence is calibrated on images like EMNIST's; how far it holds on worse pictures is in the column ECE above.
- A box that touches or cuts the character, with lines as wide as its strokes, is not always told from it. Nor is ink
  always told from paper where a hard shadow is darker than the ink beside it.
- Not for decisions about people without someone who looks at the pictures of low confidence."""

SUBSET = (
    "The files are a subset of EMNIST with a partition of its own: the figures are not comparable digit by digit with",
    "those reported on the official split.",
    "",
)


def card(recognizer: Recognizer) -> str:
    """The card as Markdown."""
    meta = recognizer.meta
    data, run, versions = meta["data"], meta["run"], meta["versions"]
    return "\n".join(
        [
            f"# Model card: emnist.pt, version {recognizer.version}",
            "",
            f"Reads one handwritten character. {len(recognizer.classes)} classes: `{''.join(recognizer.classes)}`.",
            (
                f"{meta['parameters']:,} parameters, {meta['multiply_adds'] / 1e6:.1f} million multiply-adds an image."
                " TorchScript:"
            ),
            (
                f"uint8 (B, {meta['input_size']}, {meta['input_size']}), light on black, in; calibrated class"
                " probabilities (B, C) out."
            ),
            "",
            "## Figures",
            "",
            (
                "`errors.png`: the errors that it is surest of, each with its label and what it was read as."
                " `contact-sheet.png`: twelve test"
            ),
            (
                "images in every style, each above what the preprocessing gives the network; a white bar marks what is"
                " then read wrongly."
            ),
            "",
            *(line for part in ("test", "validation") if part in meta["metrics"] for line in _figures(part, meta)),
            "## Data",
            "",
            *_source(data),
            "",
            "| part | images | fingerprint |",
            "| --- | ---: | --- |",
            *(f"| {part} | {count:,} | `{data['fingerprint'][part]}` |" for part, count in data["images"].items()),
            "",
            *(SUBSET if data.get("source", "emnist") == "emnist" else ()),
            "## Training",
            "",
            (
                f"Run `{run['name']}`: {run['step']:,} of {run['steps']:,} steps, {run['seconds'] / 60:.0f} minutes on"
                f" {run['device']}."
            ),
            (
                f"Python {versions['python']}, torch {versions['torch']}, numpy {versions['numpy']}. Temperature"
                f" {meta['temperature']:.2f}. Settings:"
            ),
            "",
            "```yaml",
            yaml.safe_dump(meta["settings"], sort_keys=False, default_flow_style=None, width=100).strip(),
            "```",
            "",
            "## Limits",
            "",
            LIMITS,
            "",
        ]
    )


def _source(data: dict[str, Any]) -> list[str]:
    source = data.get("source", "emnist")  # models of earlier days name none
    removed = f"{data['removed']} images that were again in validation or test were removed from training, by hash."
    if source in {"emnist", "kaggle-csv"}:
        return [
            (
                f"EMNIST `{data['train_split']}` for training, with a seeded validation part held out of it; EMNIST"
                f" `{data['test_split']}`"
            ),
            f"for the test. {removed}",
        ]
    return [f"Pictures in the form `{source}`, with a seeded validation part held out of those to train on.", removed]


def _figures(part: str, meta: dict[str, Any]) -> list[str]:
    metrics = meta["metrics"][part]
    rows = [
        f"| `{name}` | {s['n']:,} | {100 * s['accuracy']:.2f} % | {100 * s['standard_error']:.2f} |"
        f" {100 * s['ece']:.2f} % |"
        for name, s in metrics["alphabets"].items()
    ]
    recall = sorted(metrics["recall"].items(), key=lambda item: item[1])
    pairs = ", ".join(f"{true} read as {said} ({count})" for true, said, count in metrics["confusions"])
    return [
        f"On the {part} part:",
        "",
        "| alphabet | n | accuracy | standard error | ECE, 15 bins |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"Recall by class, in percent, lowest first: {', '.join(f'{c} {100 * r:.0f}' for c, r in recall)}.",
        "",
        f"Worst pairs: {pairs}.",
        "",
        *_coverage(metrics["alphabets"]),
        *_pictures(metrics.get("pictures", [])),
    ]


def _coverage(alphabets: dict[str, Any]) -> list[str]:
    """How many answers `--min-confidence` leaves, and how many of them are right."""
    names = [name for name in ("alnum", "vin") if name in alphabets]
    left = {
        name: {threshold: (share, accuracy) for threshold, share, accuracy in alphabets[name]["coverage"]}
        for name in names
    }
    thresholds = sorted({threshold for name in names for threshold in left[name]})
    cells = [[left[name].get(threshold, (0.0, 0.0)) for name in names] for threshold in thresholds]
    return [
        "What `--min-confidence` of the batch program leaves, and how much of that is right:",
        "",
        "| confidence at least |" + "".join(f" `{name}`: answers left | right |" for name in names),
        "| ---: |" + " ---: | ---: |" * len(names),
        *(
            f"| {t} |" + "".join(f" {100 * s:.1f} % | {100 * a:.2f} % |" for s, a in row)
            for t, row in zip(thresholds, cells, strict=True)
        ),
        "",
    ]


def _pictures(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    return [
        (
            "The same images as users' pictures, and under the corruptions of public benchmarks, in `alnum`; `ms` is"
            " decoding and"
        ),
        (
            "preparing a picture. The styles are in `training/degrade/`; copies of the training images in these styles,"
            " by other"
        ),
        "seeds, are a part of what the model is trained on.",
        "",
        markdown(rows),
        "",
    ]


def write(model: Path, out: Path) -> None:
    """Write the card of the exported `model` to `out`. Raises ModelError."""
    out.write_text(card(Recognizer(model)), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.reports.card", description="Write the model card of an exported model."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    try:
        write(arguments.model, arguments.out)
    except (ModelError, OSError) as error:
        print(f"card: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
