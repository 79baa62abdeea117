"""Random variations of whole batches, on the device where the batch is: no picture is ever handled alone.

Shapes do not depend on the random numbers: else the program would wait for a GPU to tell it how many images were
chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.settings import AugmentSettings

ELASTIC_GRID = 4  # the displacement is drawn on a grid of so many points a side
ALL = slice(None)


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch of `count` images, of which those of `part` are wanted: each image's are the same
    whoever wants it.
    """

    count: int
    part: slice
    device: torch.device

    def uniform(self, limit: float) -> Tensor:
        """Between -limit and limit, one an image of the part: (P,)."""
        return _uniform(self.count, limit, self.device)[self.part]

    def normal(self, *shape: int) -> Tensor:
        """Of a standard normal distribution: (P, *shape)."""
        return torch.randn(self.count, *shape, device=self.device)[self.part]

    def chosen(self, share: float) -> Tensor:
        """The places in the whole batch (K,) of share * count images; K is known without a look at the random numbers.

        Where that is no whole number, the last place is at times `count`, which is none: so that the share is right on
        average.
        """
        wanted = share * self.count
        places = torch.rand(self.count, device=self.device).topk(math.ceil(wanted)).indices
        counted = torch.arange(len(places), device=self.device) + torch.rand(1, device=self.device)
        return places.masked_fill(counted >= wanted, self.count)

    def within(self, places: Tensor) -> Tensor:
        """Places in the whole batch (K,), counted from the part's start; those outside of the part become P, the first
        behind it.
        """
        start, stop, _ = self.part.indices(self.count)
        return (places - start).masked_fill((places < start) | (places >= stop), stop - start)


def augment(images: Tensor, settings: AugmentSettings, strength: float = 1.0, part: slice = ALL) -> Tensor:
    """Vary images float (B, 1, S, S) in 0..1, light on black; draws from torch's global generator of their device.

    `strength`, 0 to 1, is a factor to all magnitudes and shares; at 0 the images stay as they are. Returns the images
    of `part` alone, as they would be among all.
    """
    draws = Draws(len(images), part, images.device)
    images = _strokes(images[part], draws, strength * settings.stroke)
    if strength > 0 and any((settings.rotation, settings.shear, settings.scale, settings.shift, settings.elastic)):
        images = _warp(images, draws, settings, strength)
    return _blur(images, draws, strength * settings.blur)


def _uniform(count: int, limit: float, device: torch.device) -> Tensor:
    return (torch.rand(count, device=device) * 2 - 1) * limit


def _warp(images: Tensor, draws: Draws, settings: AugmentSettings, strength: float) -> Tensor:
    """Rotation, shear, scale and shift, and a smooth displacement on top, in one bilinear resampling."""
    count, size = len(images), images.shape[-1]
    angle = draws.uniform(strength * math.radians(settings.rotation))
    shear = draws.uniform(strength * settings.shear)
    scale_x, scale_y = (1 + draws.uniform(strength * settings.scale) for _ in range(2))
    # In units of the half side.
    shift_x, shift_y = (draws.uniform(strength * 2 * settings.shift / size) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    rows = [
        cos / scale_x,
        (shear * cos - sin) / scale_x,
        shift_x,
        sin / scale_y,
        (shear * sin + cos) / scale_y,
        shift_y,
    ]
    theta = torch.stack(rows, dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, S, S, 2)
    if settings.elastic > 0:
        coarse = draws.normal(2, ELASTIC_GRID, ELASTIC_GRID) * (strength * 2 * settings.elastic / size)
        smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _strokes(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Thin or thicken the strokes of a `share` of the images by part of a pixel: a mix with the 3x3 minimum or
    maximum.
    """

    def vary(part: Tensor) -> Tensor:
        thick = F.max_pool2d(part, 3, stride=1, padding=1)
        thin = -F.max_pool2d(-part, 3, stride=1, padding=1)
        return part + amount.clamp(min=0) * (thick - part) + (-amount).clamp(min=0) * (thin - part)

    places = draws.chosen(share)
    amount = _uniform(len(places), 0.7, images.device).view(-1, 1, 1, 1)  # beyond 0.7 thin strokes vanish
    return _change(images, draws.within(places), vary)


def _blur(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Soften a `share` of the images by a binomial 3x3 filter: the mean of neighbours twice."""

    def soften(part: Tensor) -> Tensor:
        return F.avg_pool2d(F.avg_pool2d(part, 2, stride=1, padding=1), 2, stride=1)

    return _change(images, draws.within(draws.chosen(share)), soften)


def _change(images: Tensor, places: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Images (P, 1, S, S), with those at `places` (K,) changed; a place P is that of a blank image, which is left out
    again.
    """
    if len(places) == 0:
        return images
    changed = torch.cat([images, images.new_zeros(1, *images.shape[1:])])
    return changed.index_copy_(0, places, change(changed[places]))[:-1]
