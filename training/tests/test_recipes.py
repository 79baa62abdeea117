"""The recipes of the systems A to E: what they build is what those systems had, and every one of them trains."""

import re
from dataclasses import replace

import pytest
import torch

from handlers.alphabets import BY_MERGE, DIGITS, LOWER, VIN
from handlers.recognizer import Recognizer
from training.checkpoint import load_checkpoint, network_of, new_state
from training.data import CLASSES, load_splits
from training.data.splits import wanted_classes
from training.evaluate import evaluate
from training.export import export
from training.models import count_multiply_adds, count_parameters, make_model
from training.run import Run
from training.schedules import learning_rate
from training.settings import SettingsError, from_dict, load_recipe, recipe_names
from training.train import train

SYSTEMS = {"system-a": BY_MERGE, "system-b": DIGITS, "system-c": VIN, "system-d": LOWER, "system-e": BY_MERGE}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(name, *overrides):
    return make_model(load_recipe(name, overrides).model, len(SYSTEMS[name])).eval()


@pytest.mark.parametrize(("name", "classes"), SYSTEMS.items())
def test_the_systems_classes_and_shapes(name, classes):
    settings = load_recipe(name)
    assert (wanted_classes(settings.data.classes) or CLASSES[settings.data.train_split]) == classes
    size = settings.model.input_size
    assert network(name)(torch.rand(2, 1, size, size)).shape == (2, len(classes))


def test_system_b_has_93322_parameters():
    assert count_parameters(network("system-b")) == 93_322


def test_system_as_layers_by_hand():
    convolutions = 14 * (4 + 1) + 28 * (14 * 4 + 1) + 56 * (28 * 9 + 1)
    dense = 512 * (56 * 5 * 5 + 1) + 248 * (512 + 1) + 128 * (248 + 1) + 47 * (128 + 1)
    net = network("system-a")
    assert count_parameters(net) == convolutions + dense
    names = [type(module).__name__ for module in net.features]
    assert names == ["Conv2d", "MaxPool2d", "Conv2d", "ReLU", "Conv2d", "MaxPool2d"]
    assert [m.p for m in net.head if isinstance(m, torch.nn.Dropout)] == [0.2, 0.15, 0.1]


@pytest.mark.parametrize(
    ("overrides", "torchvisions", "width"),
    [
        (["model.blocks=[2,2,2,2]"], 11_689_512, 512),
        ([], 21_797_672, 512),
        (["model.bottleneck=true"], 25_557_032, 2048),
    ],
    ids=["18", "34", "50"],
)
def test_system_cs_networks_are_torchvisions(overrides, torchvisions, width):
    """Whose published counts are for 3 channels and 1,000 classes."""
    net = network("system-c", *overrides)
    assert count_parameters(net) == torchvisions - 2 * 64 * 7 * 7 - (width + 1) * 1000 + (width + 1) * 33
    features = net.stages(net.stem(torch.rand(1, 1, 224, 224)))
    assert features.shape == (1, width, 7, 7)


def test_system_ds_layers_by_hand():
    assert (
        count_multiply_adds(network("system-d"), 96)
        == 6 * 9 * 94**2 + 16 * 54 * 45**2 + 16 * 22**2 * 400 + 400 * 120 + 120 * 26
    )
    assert new_state(load_recipe("system-d"), 26, torch.device("cpu")).optimizer.defaults["nesterov"] is False


def test_system_es_three_stages():
    settings = load_recipe("system-e")
    rates = [learning_rate(settings.schedule, settings.optimizer.lr, epoch, 70) for epoch in range(70)]
    assert rates == pytest.approx([1e-3] * 30 + [5e-4] * 20 + [1e-4] * 20)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_systems_had_none_of_the_flagships_means(name):
    settings = load_recipe(name)
    assert (
        settings.data.balance,
        settings.data.degraded_copies,
        settings.schedule.label_smoothing,
        settings.schedule.ema,
    ) == (0, 0, 0, 0)
    assert settings.data.validation_limit > 250_000, "the share alone decides what is held out"


@pytest.mark.parametrize(("name", "classes"), SYSTEMS.items())
def test_every_recipe_trains(name, classes, emnist_root, tmp_path):
    """One epoch on the classes that the fixture has, in batches that it can fill; the largest one narrower, to save
    time.
    """
    overrides = ["schedule.epochs=1", "schedule.batch_size=64", "compile=never", "precision=float32"]
    recipe = load_recipe(name, overrides + (["model.widths=[8, 16, 32, 64]"] if name == "system-c" else []))
    known = "".join(c for c in classes if c in BY_MERGE)
    settings = replace(
        recipe, data=replace(recipe.data, source="emnist", train_split="balanced", test_split="balanced", classes=known)
    )
    run = Run(
        settings, load_splits(settings.data, emnist_root, settings.model.input_size), tmp_path, torch.device("cpu")
    )
    train(run)
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    assert checkpoint["resume"]["step"] == run.steps >= 1
    fresh = new_state(settings, len(known), torch.device("cpu")).model
    moved = [
        not torch.equal(value, fresh.state_dict()[key]) for key, value in network_of(checkpoint).state_dict().items()
    ]
    assert all(moved)
    assert checkpoint["samples"].shape[1:] == (settings.model.input_size,) * 2


def test_a_network_of_another_size_is_evaluated_as_it_answers(untrained_checkpoint, emnist, tmp_path):
    """On EMNIST's images, in every style of pictures, and whatever the size at which the images were loaded."""
    settings = from_dict({"model": {"name": "plain", "input_size": 40, "convolutions": [{"width": 4, "pool": 4}]}})
    export(untrained_checkpoint(BY_MERGE, settings), tmp_path / "emnist.pt")
    recognizer = Recognizer(tmp_path / "emnist.pt")
    assert recognizer.input_size == 40
    some = emnist.take(torch.arange(50))
    from_28, from_40 = (evaluate(recognizer, images, 0) for images in (some, some.resized(40)))
    assert from_28 == from_40
    assert {row["n"] for row in evaluate(recognizer, some.resized(40), 3)["pictures"]} == {3}


def test_convolutions_that_leave_nothing():
    settings = from_dict(
        {"model": {"name": "plain", "convolutions": [{"width": 2, "pool": 5}, {"width": 2, "kernel": 6}]}}
    ).model
    with pytest.raises(SettingsError, match=r"model.convolutions leave nothing of 28 pixels"):
        make_model(settings, 10)


def test_blocks_that_do_not_fit_the_widths():
    with pytest.raises(SettingsError, match=r"^'model': blocks needs one number for each of the 4 widths"):
        load_recipe("system-c", ["model.blocks=[2,2]"])


def test_the_readme_lists_the_recipes(root):
    text = (root / "training" / "README.md").read_text()
    table = text[text.index("| recipe | network") :].partition("\n\n")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| ([\d,]+) \| ([\d.]+) M \|$", table, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == recipe_names()
    for name, parameters, multiply_adds in rows:
        settings = load_recipe(name)
        net = make_model(settings.model, len(SYSTEMS.get(name, BY_MERGE)))
        assert parameters == f"{count_parameters(net):,}"
        assert multiply_adds == f"{count_multiply_adds(net, settings.model.input_size) / 1e6:.1f}"
