"""The networks that a recipe can name. Each takes float (B, 1, S, S) in 0..1, light on black, and gives logits (B, C).

There is no other normalisation: black is 0, so it equals the zero padding of every convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.settings import ModelSettings

INPUT_SIZE = 28  # pixels


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, "Deep Residual Learning", figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem at the image's full size, then one residual block a stage; every stage halves the side."""

    def __init__(self, classes: int, settings: ModelSettings) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, settings.stem, 3, padding=1, bias=False), nn.BatchNorm2d(settings.stem), nn.ReLU())
        channels = (settings.stem, *settings.widths)
        self.stages = nn.Sequential(*(ResidualBlock(inputs, outputs, stride=2) for inputs, outputs in itertools.pairwise(channels)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(settings.dropout), nn.Linear(channels[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


MODELS: dict[str, Callable[[int, ModelSettings], nn.Module]] = {
    "resnet": ResNet,
}


def make_model(settings: ModelSettings, classes: int) -> nn.Module:
    return MODELS[settings.name](classes, settings)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Multiply-adds of a convolution or a linear layer for one image of its `output` (B, ...); 0 for other layers."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return 0
    return output[0].numel() * module.weight[0].numel()  # each output value is one product with one filter


def count_multiply_adds(model: nn.Module, size: int = INPUT_SIZE) -> int:
    """Multiply-adds of convolutions and linear layers for one image of `size` x `size` pixels."""
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += multiply_adds(module, output)

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was_training = model.training
    device = next(model.parameters()).device
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, size, size, device=device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return total
