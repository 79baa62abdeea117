"""A run's settings: one frozen dataclass, filled from a YAML recipe and `--set section.field=value`.

Whatever does not fit is refused with a `SettingsError` that names the field, what is expected, and the nearest known
name.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

RECIPES = Path(__file__).parent / "recipes"
STRICT = ConfigDict(extra="forbid")

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Dropout: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Split: TypeAlias = Literal["balanced", "bymerge", "byclass", "letters", "digits", "mnist"]
Source: TypeAlias = Literal["emnist", "mnist", "kaggle-csv", "sd19", "folders", "names"]


class SettingsError(ValueError):
    """A recipe or an override that does not fit; the message says what to write instead."""


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    source: Source = "emnist"  # the form that the pictures come in: training/data/
    path: str = ""  # their folder; empty: EMNIST_ROOT
    classes: str = ""  # these characters alone, in EMNIST's order, or digits, cap_letters or low_letters; empty: all
    limit: Annotated[int, Field(ge=0)] = (
        0  # at most so many images a class, of training and of test, chosen by validation_seed; 0: all
    )
    train_split: Split = "bymerge"  # the EMNIST split whose `train` file is trained on
    test_split: Split = "balanced"  # the EMNIST split, of the same classes, whose `test` file is reported
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = (
        0.15  # of each class, held out where the source has no test part of its own
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of each class of the training file, held out
    validation_limit: Annotated[int, Field(ge=1)] = 100  # at most so many images a class
    validation_seed: Annotated[int, Field(ge=0)] = 0  # the same images are held out whatever the run's own seed
    balance: Share = (
        1.0  # 0: classes as frequent as in the file; 1: each equally often; between: class size ** (1 - balance)
    )
    test_pictures: Annotated[int, Field(ge=0)] = (
        1000  # test images that are reported on in every style of training.evaluation.robustness
    )
    degraded_copies: Annotated[int, Field(ge=0)] = 0  # of every training image, made by training.pool
    degraded_share: Share = 0.5  # of the images of a batch, where there are copies


@dataclass(frozen=True, config=STRICT)
class ConvolutionSettings:
    """A convolution of the model `plain`, with what follows it."""

    width: Count  # channels that it gives
    kernel: Count = 3  # pixels a side
    padding: Annotated[int, Field(ge=0)] = 0  # pixels of black on each side
    norm: bool = False  # batch norm, before the activation
    activation: Literal["relu", "none"] = "relu"
    pool: Count = 1  # side of the max pooling, which is its stride too; 1: none


@dataclass(frozen=True, config=STRICT)
class DenseSettings:
    """A hidden linear layer of the model `plain`, with its ReLU."""

    width: Count
    dropout: Dropout = 0.0  # after it


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    name: Literal["resnet", "plain"] = "resnet"  # a key of training.models.MODELS
    input_size: Count = 28  # pixels a side of the images, which are brought to it when they are loaded
    stem: Count = 32  # resnet: channels of the first convolution
    imagenet_stem: bool = (
        False  # resnet: 7x7 with stride 2 and a max pooling, and no stride in the first stage; else 3x3 at full size
    )
    # Resnet: channels of the stages, each at half the side of the one before.
    widths: tuple[Count, ...] = (
        64,
        112,
        224,
    )
    blocks: tuple[Count, ...] = ()  # resnet: residual blocks in each stage; empty: one
    bottleneck: bool = False  # resnet: blocks of 1x1, 3x3 and 1x1 that give four times the stage's channels
    dropout: Dropout = 0.0  # resnet: before the last layer
    convolutions: tuple[ConvolutionSettings, ...] = ()  # plain: in their order
    dense: tuple[DenseSettings, ...] = ()  # plain: the hidden layers between the convolutions and the classes

    def __post_init__(self) -> None:
        if self.blocks and len(self.blocks) != len(self.widths):
            raise ValueError(f"blocks needs one number for each of the {len(self.widths)} widths, or none at all")


@dataclass(frozen=True, config=STRICT)
class OptimizerSettings:
    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.15  # the peak of the schedule
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    nesterov: bool = True  # sgd only
    weight_decay: NotNegative = (
        5e-4  # not on biases and batch norm; adam adds it to the gradient, adamw takes it from the weights
    )


@dataclass(frozen=True, config=STRICT)
class ScheduleSettings:
    """How long to train, and the learning rate by training.schedules. Validation losses are those that checkpoints are
    chosen by.
    """

    epochs: Positive = 16.0  # one epoch is as many images as the training part has
    patience: Annotated[int, Field(ge=0)] = (
        0  # stop after so many epochs in a row without a lower validation loss; 0: never
    )
    batch_size: Annotated[int, Field(ge=2)] = 256
    name: Literal["cosine", "one-cycle", "step", "plateau", "constant"] = "cosine"
    warmup: Share = 0.15  # cosine, one-cycle: share of the steps in which lr rises
    milestones: tuple[Positive, ...] = ()  # step: epochs at which lr changes, rising
    factors: tuple[Positive, ...] = ()  # step: from each milestone on, lr is this times the peak
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = (
        0.1  # plateau: lr times this, when the validation loss has stopped falling
    )
    plateau_patience: Annotated[int, Field(ge=0)] = (
        3  # plateau: epochs without a lower validation loss that are let pass
    )
    plateau_lr: NotNegative = 0.0  # plateau: the lowest lr
    # share of the steps, at the end, over which augmentation fades out, for it hides fine differences; longer overfits
    fade: Share = 0.04
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ema: Annotated[float, Field(ge=0, lt=1)] = (
        0.999  # decay a step of the averaged weights, which are validated and exported; 0: no average
    )

    def __post_init__(self) -> None:
        if len(self.milestones) != len(self.factors) or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise, and factors must hold one number for each of them")


@dataclass(frozen=True, config=STRICT)
class DistillSettings:
    """Soft labels from trained models (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network")."""

    teachers: tuple[
        str, ...
    ] = ()  # exported models of the same classes; their probabilities for the clean image are averaged
    weight: Share = 0.7  # of the soft labels; the rest is the label itself


@dataclass(frozen=True, config=STRICT)
class AugmentSettings:
    """Magnitudes are the ends of uniform distributions; lengths are pixels of the image."""

    rotation: NotNegative = 8.0  # degrees
    shear: NotNegative = 0.12
    scale: Share = 0.08
    shift: NotNegative = 1.5  # pixels
    elastic: NotNegative = 0.7  # pixels, standard deviation of a smooth displacement
    stroke: Share = 0.1  # share of images whose strokes are made thinner or thicker
    blur: Share = 0.05  # share of images that are softened


@dataclass(frozen=True, config=STRICT)
class ReportSettings:
    """What a run writes for TensorBoard while it goes on; 0 is never. The report at the end is always written."""

    scalars: Annotated[int, Field(ge=0)] = 50  # steps between two notes of loss, accuracy, learning rate and throughput
    figures: Annotated[int, Field(ge=0)] = (
        10  # epochs between two sets of samples, confusion matrix, bars and ROC curves, which take seconds
    )
    graph: bool = True  # the network's graph, once


@dataclass(frozen=True, config=STRICT)
class Settings:
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = dataclasses.field(default_factory=ScheduleSettings)
    distill: DistillSettings = dataclasses.field(default_factory=DistillSettings)
    augment: AugmentSettings = dataclasses.field(default_factory=AugmentSettings)
    report: ReportSettings = dataclasses.field(default_factory=ReportSettings)
    start: str = ""  # a checkpoint whose averaged weights are the first ones, to fine-tune; empty: random weights
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the processor multiplies in it
    compile: Literal["auto", "always", "never"] = "auto"  # torch.compile; auto: where a compiler is at hand

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts that `from_dict` and YAML read back."""
        plain: dict[str, Any] = TypeAdapter(Settings).dump_python(self, mode="json")
        return plain


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Give a command the arguments `recipe` and `overrides`, which `load_recipe` takes."""
    parser.add_argument(
        "--recipe", default="flagship", help="a file of training/recipes/ without .yaml, or a path that ends in .yaml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="overrides", help="repeatable"
    )


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Settings:
    """Read a recipe by its name in training/recipes/, or by a path that ends in .yaml, then apply `a.b=value`
    overrides.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"no recipe '{name}'{_nearest(name, recipe_names())}; there are: {', '.join(recipe_names())}"
        )
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{path} must map sections to fields, not hold {tree!r}")
    return from_dict(tree, overrides)


def from_dict(tree: dict[str, Any], overrides: Iterable[str] = ()) -> Settings:
    """Build Settings from nested dicts (changed in place), then apply `a.b=value` overrides."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise SettingsError(f"--set takes section.field=value, not '{override}'")
        branch = tree
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise SettingsError(f"'{key}': '{parent}' is a value and has no fields")
        try:
            branch[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {override}: the value is not valid YAML: {error}") from error
    try:
        return TypeAdapter(Settings).validate_python(tree)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(dict(e)) for e in error.errors())) from error


def differences(old: Settings, new: Settings) -> list[str]:
    """The fields that differ, as `section.field: old, now new`."""

    def fields(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            found |= fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    before, now = fields(old.to_dict()), fields(new.to_dict())
    return [f"{name}: {before[name]}, now {value}" for name, value in now.items() if before[name] != value]


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown setting '{where}'{_nearest(where, _field_names(Settings))}"
    if error["type"] == "value_error":  # of a whole section
        return f"'{where}': {error['ctx']['error']}"
    return f"'{where}' cannot be {error['input']!r}: {error['msg'].lower()}"


def _field_names(cls: Any, prefix: str = "") -> list[str]:
    names = []
    for f in dataclasses.fields(cls):
        section = f.default_factory
        nested = isinstance(section, type) and dataclasses.is_dataclass(section)
        names += _field_names(section, f"{prefix}{f.name}.") if nested else [prefix + f.name]
    return names


def _nearest(name: str, known: list[str]) -> str:
    """The known name nearest to `name`, by the whole or by its last part, as the end of an error message."""
    by_leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
        name.rsplit(".", 1)[-1], by_leaf, n=1
    )
    return f"; did you mean '{by_leaf.get(near[0], near[0])}'?" if near else ""
