"""The layers of a recipe's network, in the order in which an image passes them: output shape, parameters,
multiply-adds.

python -m training.reports.summary --recipe flagship [--classes 47] [--set model.stem=16]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.data import CLASSES, DataError
from training.data.splits import wanted_classes
from training.models import make_model, multiply_adds
from training.settings import SettingsError, add_recipe, load_recipe


@dataclass(frozen=True)
class Layer:
    name: str  # of the module in the network
    kind: str
    shape: tuple[int, ...]  # of what comes out, for one image
    parameters: int
    multiply_adds: int


def layers(model: nn.Module, size: int) -> list[Layer]:
    """One row for each call of a module that has no modules inside or has parameters of its own; the model stays as it
    is.

    What a network computes by functions (its additions and most of its ReLUs) is no module and has neither parameters
    nor multiply-adds. The sums are those of `count_parameters` and `count_multiply_adds`; `size` is the image's side in
    pixels.
    """
    rows: list[Layer] = []
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}

    def note(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        first = all(row.name != names[module] for row in rows)
        parameters = sum(p.numel() for p in module.parameters(recurse=False)) if first else 0
        rows.append(
            Layer(
                names[module], type(module).__name__, tuple(output.shape[1:]), parameters, multiply_adds(module, output)
            )
        )

    def shown(module: nn.Module) -> bool:
        return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))

    hooks = [module.register_forward_hook(note) for module in names if shown(module)]
    was_training = {module: module.training for module in model.modules()}
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, size, size, device=next(model.parameters()).device))
    for module, mode in was_training.items():
        module.training = mode
    for hook in hooks:
        hook.remove()
    return rows


def cells(rows: Sequence[Layer]) -> list[tuple[str, str, str, str, str]]:
    """The table as text, its last row the sums."""
    lines = [
        (row.name, row.kind, " x ".join(map(str, row.shape)), f"{row.parameters:,}", f"{row.multiply_adds:,}")
        for row in rows
    ]
    total = (f"{sum(row.parameters for row in rows):,}", f"{sum(row.multiply_adds for row in rows):,}")
    return [*lines, ("total", "", "", *total)]


HEADER = ("layer", "kind", "output", "parameters", "multiply-adds")


def table(rows: Sequence[Layer]) -> str:
    """The rows in lines for a terminal."""
    lines = [HEADER, *cells(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    numbers_from = 3
    return "\n".join(
        "  ".join(
            text.rjust(width) if column >= numbers_from else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.reports.summary", description="List the layers of a recipe's network."
    )
    add_recipe(parser)
    parser.add_argument("--classes", type=int, help="how many; default: those of the recipe's data.test_split")
    arguments = parser.parse_args(argv)
    if arguments.classes is not None and arguments.classes < 1:
        parser.error("--classes must be 1 or more")
    try:
        settings = load_recipe(arguments.recipe, arguments.overrides)
        classes = wanted_classes(settings.data.classes) or CLASSES[settings.data.test_split]
    except (DataError, SettingsError, OSError) as error:
        print(f"summary: {error}", file=sys.stderr)
        return 1
    model = make_model(settings.model, arguments.classes or len(classes))
    print(table(layers(model, settings.model.input_size)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
