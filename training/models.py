"""The networks that a recipe can name. Each takes float (B, 1, S, S) in 0..1, light on black, and gives logits (B, C).

There is no other normalisation: black is 0, so it equals the zero padding of every convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.settings import ModelSettings, SettingsError

EXPANSION = 4  # a bottleneck's outputs for each channel inside it


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, "Deep Residual Learning", figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016, figure 5), the stride in the middle one as
    torchvision has it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stem, then residual blocks in stages, each at half the side of the one before, then the mean over the picture.

    With `imagenet_stem` it is torchvision's ResNet for one input channel: ResNet-18, 34 or 50 by `blocks` and
    `bottleneck`.
    """

    def __init__(self, classes: int, settings: ModelSettings) -> None:
        super().__init__()
        if settings.imagenet_stem:
            stem = [
                nn.Conv2d(1, settings.stem, 7, 2, padding=3, bias=False),
                nn.BatchNorm2d(settings.stem),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, padding=1),
            ]
        else:
            stem = [nn.Conv2d(1, settings.stem, 3, padding=1, bias=False), nn.BatchNorm2d(settings.stem), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        block, expansion = (Bottleneck, EXPANSION) if settings.bottleneck else (ResidualBlock, 1)
        stages: list[nn.Module] = []
        channels = settings.stem
        for stage, width in enumerate(settings.widths):
            for place in range(settings.blocks[stage] if settings.blocks else 1):
                halves = place == 0 and not (settings.imagenet_stem and stage == 0)
                stages.append(block(channels, width * expansion, 2 if halves else 1))
                channels = width * expansion
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(settings.dropout), nn.Linear(channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


class PlainCNN(nn.Module):
    """Convolutions one after the other, flattened, then linear layers, as the recipe lists them. Raises SettingsError
    if a picture runs out.
    """

    def __init__(self, classes: int, settings: ModelSettings) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels, size = 1, settings.input_size
        for layer in settings.convolutions:
            features.append(nn.Conv2d(channels, layer.width, layer.kernel, padding=layer.padding, bias=not layer.norm))
            features += [nn.BatchNorm2d(layer.width)] if layer.norm else []
            features += [nn.ReLU()] if layer.activation == "relu" else []
            features += [nn.MaxPool2d(layer.pool)] if layer.pool > 1 else []
            channels, size = layer.width, (size + 2 * layer.padding - layer.kernel + 1) // layer.pool
            if size < 1:
                raise SettingsError(
                    f"model.convolutions leave nothing of {settings.input_size} pixels; use fewer, smaller kernels or"
                    " less pooling"
                )
        self.features = nn.Sequential(*features)
        head: list[nn.Module] = [nn.Flatten()]
        width = channels * size * size
        for hidden in settings.dense:
            head += [nn.Linear(width, hidden.width), nn.ReLU(), nn.Dropout(hidden.dropout)]
            width = hidden.width
        self.head = nn.Sequential(*head, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


MODELS: dict[str, Callable[[int, ModelSettings], nn.Module]] = {
    "plain": PlainCNN,
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


def count_multiply_adds(model: nn.Module, size: int) -> int:
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
