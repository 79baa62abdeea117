"""Random variations of whole batches, on the device where the batch is: no picture is ever handled alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.settings import AugmentSettings

ELASTIC_GRID = 4  # the displacement is drawn on a grid of so many points a side
BLUR_KERNEL = (0.25, 0.5, 0.25)


def augment(images: Tensor, settings: AugmentSettings, strength: float = 1.0) -> Tensor:
    """Vary images float (B, 1, S, S) in 0..1, light on black; draws from torch's global generator of their device.

    `strength`, 0 to 1, is a factor to all magnitudes and shares; at 0 the images stay as they are.
    """
    images = _strokes(images, strength * settings.stroke)
    if strength > 0 and any((settings.rotation, settings.shear, settings.scale, settings.shift, settings.elastic)):
        images = _warp(images, settings, strength)
    return _blur(images, strength * settings.blur)


def _uniform(count: int, limit: float, like: Tensor) -> Tensor:
    return (torch.rand(count, device=like.device) * 2 - 1) * limit


def _warp(images: Tensor, settings: AugmentSettings, strength: float) -> Tensor:
    """Rotation, shear, scale and shift, and a smooth displacement on top, in one bilinear resampling."""
    count, _, _, size = images.shape
    angle = _uniform(count, strength * math.radians(settings.rotation), images)
    shear = _uniform(count, strength * settings.shear, images)
    scale_x, scale_y = (1 + _uniform(count, strength * settings.scale, images) for _ in range(2))
    shift_x, shift_y = (_uniform(count, strength * 2 * settings.shift / size, images) for _ in range(2))  # in units of the half side
    cos, sin = angle.cos(), angle.sin()
    rows = [cos / scale_x, (shear * cos - sin) / scale_x, shift_x, sin / scale_y, (shear * sin + cos) / scale_y, shift_y]
    theta = torch.stack(rows, dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, S, S, 2)
    if settings.elastic > 0:
        coarse = torch.randn(count, 2, ELASTIC_GRID, ELASTIC_GRID, device=images.device) * (strength * 2 * settings.elastic / size)
        smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _strokes(images: Tensor, share: float) -> Tensor:
    """Thin or thicken the strokes of a `share` of the images by part of a pixel: a mix with the 3x3 minimum or maximum."""
    chosen = (torch.rand(len(images), device=images.device) < share).nonzero().squeeze(1)
    if len(chosen) == 0:
        return images
    part = images[chosen]
    thick = F.max_pool2d(part, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-part, 3, stride=1, padding=1)
    amount = _uniform(len(chosen), 0.7, images).view(-1, 1, 1, 1)  # beyond 0.7 thin strokes vanish
    varied = part + amount.clamp(min=0) * (thick - part) + (-amount).clamp(min=0) * (thin - part)
    return images.index_copy(0, chosen, varied)


def _blur(images: Tensor, share: float) -> Tensor:
    """Soften a `share` of the images by a binomial 3x3 filter."""
    chosen = (torch.rand(len(images), device=images.device) < share).nonzero().squeeze(1)
    if len(chosen) == 0:
        return images
    line = torch.tensor(BLUR_KERNEL, device=images.device)
    kernel = (line[:, None] * line)[None, None]
    return images.index_copy(0, chosen, F.conv2d(images[chosen], kernel, padding=1))
