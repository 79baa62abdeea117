"""How well a model reads the test images, and these as users' pictures and under corruptions; or a folder of labelled
pictures.

python -m training.evaluate MODEL.pt --emnist-root DIR [--split balanced] [--pictures 1000] [--sheets DIR]
python -m training.evaluate MODEL.pt --folder DIR [--alphabet alnum] [--sheets DIR]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handlers.alphabets import ALPHABET_NAMES, DEFAULT_ALPHABET, UnknownAlphabet
from handlers.recognizer import ModelError, Recognizer
from training.data import CLASSES, DataError, Images, add_root, load_emnist
from training.evaluation.labelled import score_folder
from training.evaluation.metrics import measure
from training.evaluation.robustness import markdown, measure_pictures, probabilities_of
from training.reports import plots
from training.reports.sheets import contact_sheet, error_sheet

PICTURES = 1000  # images a style
RECALL_COLUMNS = 4


def evaluate(recognizer: Recognizer, data: Images, pictures: int) -> dict[str, Any]:
    """Score `data`, whose classes must be the model's, as it is, and `pictures` images of it in every style (0:
    none).
    """
    if recognizer.classes != data.classes:
        raise DataError(f"the model knows {''.join(recognizer.classes)}, the data {''.join(data.classes)}")
    images = data.resized(recognizer.input_size).images.numpy()
    result = measure(probabilities_of(recognizer, images), data.labels.numpy(), data.classes)
    return result | ({"pictures": measure_pictures(recognizer, data, pictures)} if pictures else {})


def table(result: dict[str, Any]) -> str:
    """The result in lines for a terminal."""
    lines = [f"{'alphabet':<10}{'n':>7}{'accuracy':>11}{'+- SE':>8}{'ECE':>8}"]
    for name, s in result["alphabets"].items():
        accuracy, error = 100 * s["accuracy"], 100 * s["standard_error"]
        lines.append(f"{name:<10}{s['n']:>7}{accuracy:>10.2f}%{error:>8.2f}{100 * s['ece']:>7.2f}%")
    pairs = ", ".join(f"{true}->{said} {n}" for true, said, n in result["confusions"])
    lines += [f"worst pairs (true->said): {pairs}", "recall, %, lowest first, with Wilson's 95 % interval and n:"]
    recalls = [
        f"{c} {100 * r:5.1f} ({100 * low:5.1f} to {100 * high:5.1f}) {n:>5}"
        for c, r in sorted(result["recall"].items(), key=lambda item: item[1])
        for low, high, n in [result["recall_interval"][c]]
    ]
    lines += ["   ".join(recalls[start : start + RECALL_COLUMNS]) for start in range(0, len(recalls), RECALL_COLUMNS)]
    return "\n".join([*lines, *(["", markdown(result["pictures"])] if "pictures" in result else [])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description="Score an exported model on an EMNIST test file."
    )
    parser.add_argument("model", type=Path, help="the exported emnist.pt")
    add_root(parser, "folder that holds EMNIST/raw")
    parser.add_argument("--split", choices=sorted(CLASSES), default="balanced")
    parser.add_argument(
        "--pictures",
        type=int,
        default=PICTURES,
        help="images in every style of users' pictures and corruptions; default: %(default)s",
    )
    parser.add_argument(
        "--folder", type=Path, help="score these pictures instead, named 7_x.png or in folders named after characters"
    )
    parser.add_argument(
        "--alphabet", choices=ALPHABET_NAMES, default=DEFAULT_ALPHABET, help="of --folder; default: %(default)s"
    )
    parser.add_argument(
        "--sheets",
        type=Path,
        help=(
            "folder for contact-sheet.png, what the network is given in every style, and errors.png; of --folder:"
            " accuracy.png"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.emnist_root is None and arguments.folder is None:
        parser.error("give --emnist-root (or EMNIST_ROOT), the folder that holds EMNIST/raw, or --folder")
    if arguments.pictures < 0:
        parser.error("--pictures must be 0 (none) or more")
    try:
        if arguments.sheets:
            arguments.sheets.mkdir(parents=True, exist_ok=True)
        if arguments.folder:
            score = score_folder(Recognizer(arguments.model), arguments.folder, arguments.alphabet)
            print(json.dumps(score.to_dict()) if arguments.json else score.table())
            if arguments.sheets:
                plots.save(
                    plots.accuracy_bars(score.intervals(), f"Accuracy, {score.fraction()}"),
                    arguments.sheets / "accuracy.png",
                )
            return 0
        recognizer, data = Recognizer(arguments.model), load_emnist(arguments.emnist_root, arguments.split, "test")
        result = evaluate(recognizer, data, arguments.pictures)
        if arguments.sheets:
            contact_sheet(recognizer, data, arguments.sheets / "contact-sheet.png")
            error_sheet(recognizer, data, arguments.sheets / "errors.png")
    except (DataError, ModelError, UnknownAlphabet, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if arguments.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
