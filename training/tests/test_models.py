import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from training.augment import augment
from training.models import count_multiply_adds, count_parameters, make_model
from training.settings import AugmentSettings, ModelSettings, load_recipe

STILL = AugmentSettings(rotation=0, shear=0, scale=0, shift=0, elastic=0, stroke=0, blur=0)


def test_the_flagship_is_compact():
    model = make_model(load_recipe("flagship").model, 47)
    assert count_parameters(model) <= 1_500_000
    assert count_multiply_adds(model, 28) <= 34e6
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 47)


def test_the_flagships_weights_keep_their_names():
    """By which checkpoints are read back."""
    block = [
        f"{layer}.{part}"
        for layer in ("conv1", "norm1", "conv2", "norm2", "shortcut.0", "shortcut.1")
        for part in ("weight", "bias")
    ]
    kept = {name for name in block if name not in {"conv1.bias", "conv2.bias", "shortcut.0.bias"}}
    names = {name for name, _ in make_model(load_recipe("flagship").model, 47).named_parameters()}
    stem_and_head = {"stem.0.weight", "stem.1.weight", "stem.1.bias", "head.3.weight", "head.3.bias"}
    assert names == stem_and_head | {f"stages.{stage}.{name}" for stage in range(3) for name in kept}


def test_multiply_adds_are_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )
    assert count_multiply_adds(net, size=8) == 4 * 64 * 9 + 8 * 16 * 9 * 2 + 8 * 16 * 10


def test_counting_leaves_the_mode_alone():
    model = make_model(ModelSettings(stem=4, widths=(4,)), 3).train()
    count_multiply_adds(model, 28)
    assert all(module.training for module in model.modules())


def test_no_augmentation_is_the_identity(emnist):
    images = emnist.images[:32].unsqueeze(1).float() / 255
    assert torch.equal(augment(images, STILL), images)
    assert torch.allclose(augment(images, replace(STILL, rotation=1e-9)), images, atol=1e-5)
    assert torch.equal(augment(images, AugmentSettings(), strength=0), images)


@pytest.mark.parametrize("field", ["rotation", "shear", "scale", "shift", "elastic", "stroke", "blur"])
def test_each_augmentation_changes_images_and_keeps_their_range(emnist, field):
    images = emnist.images[:64].unsqueeze(1).float() / 255
    strength = 1.0 if field in {"stroke", "blur"} else getattr(AugmentSettings(), field)
    torch.manual_seed(0)
    varied = augment(images, replace(STILL, **{field: strength}))
    assert varied.shape == images.shape
    assert varied.min() >= 0
    assert varied.max() <= 1.0001
    changed = (varied - images).abs().amax(dim=(1, 2, 3)) > 0.05
    assert changed.float().mean() > 0.8
    assert (varied - images).abs().mean() < 0.25, "still the same characters"


def test_shift_moves_by_at_most_so_many_pixels(emnist):
    images = emnist.images[:200].unsqueeze(1).float() / 255
    weight = torch.arange(28.0)

    def centre(batch):
        return (batch.sum(dim=(1, 2)) * weight).sum(1) / batch.sum(dim=(1, 2, 3))

    moved = (centre(augment(images, replace(STILL, shift=2.0))) - centre(images)).abs()
    assert 1.5 < moved.max() < 2.3


def test_augmentation_is_a_function_of_the_seed(emnist):
    images = emnist.images[:16].unsqueeze(1).float() / 255
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, AugmentSettings()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.slow
def test_augmentation_leaves_85_percent_of_the_speed(emnist):
    """Of the forward and backward pass of the flagship, whose step it is a part of; the middle of repeated pairs."""
    model = make_model(load_recipe("flagship").model, 47).to(memory_format=torch.channels_last)
    images = emnist.images[:256].unsqueeze(1).float() / 255

    def step(settings):
        started = time.perf_counter()
        batch = images if settings is None else augment(images, settings)
        with torch.autocast("cpu", torch.bfloat16):
            model(batch.contiguous(memory_format=torch.channels_last)).sum().backward()
        return time.perf_counter() - started

    for settings in (None, AugmentSettings()):
        step(settings)
    ratios = sorted(step(None) / step(AugmentSettings()) for _ in range(15))
    assert ratios[len(ratios) // 2] >= 0.85
