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
from training.settings import SettingsError, load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description="Read a recipe's data and say what was found and refused."
    )
    add_root(parser, "the folder of the data; default: EMNIST_ROOT, else download", "root", nargs="?")
    parser.add_argument(
        "--recipe", default="flagship", help="a file of training/recipes/ without .yaml, or a path that ends in .yaml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="overrides", help="repeatable"
    )
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
