"""Read what a run would read, and say what was found; nothing is trained."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from training.data.datasheet import lines, summary, table
from training.data.images import DataError
from training.data.root import add_root
from training.data.splits import find_data, load_splits
from training.settings import SettingsError, add_recipe, load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description="Read a recipe's data and say what was found and refused."
    )
    add_root(parser, "the folder of the data; default: EMNIST_ROOT, else download", "root", nargs="?")
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load_recipe(arguments.recipe, arguments.overrides)
        root = find_data(settings.data, arguments.root)
        report = summary(settings.data, load_splits(settings.data, root, settings.model.input_size))
    except (DataError, SettingsError, OSError) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    print(
        json.dumps(report, indent=1, ensure_ascii=False)
        if arguments.json
        else "\n".join([*table(report), *lines(report)])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
