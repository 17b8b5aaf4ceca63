"""The paper's augmentation, batched: Gaussian noise, mirroring, random erasing.

What is done to each picture is drawn first, so that two towers with other sizes and normalisation
see the same picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from face_mllm.experts.mask_fer.config import AugmentSettings

ERASE_RATIO = (0.3, 3.3)  # sides of the rectangle, as torchvision's RandomErasing
ERASE_TRIES = 10


@dataclass(frozen=True)
class Spoils:
    """What is done to each picture of a batch.

    Args:
        flip: [N] bool, mirrored.
        noise: [N] bool.
        boxes: [N, 4] top, left, height, width as shares of the side; 0 wide for none.
    """

    flip: torch.Tensor
    noise: torch.Tensor
    boxes: torch.Tensor


def draw_spoils(count: int, config: AugmentSettings, generator: torch.Generator) -> Spoils:
    """Draw what is done to ``count`` pictures."""
    flip = torch.rand(count, generator=generator) < config.flip
    noise = torch.rand(count, generator=generator) < config.noise
    erased = torch.rand(count, generator=generator) < config.erase
    boxes = _boxes(count, config.erase_area, generator) * erased[:, None]
    return Spoils(flip, noise, boxes)


def _boxes(count: int, area: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Rectangles that fit the picture, the first of ten draws that does; none if none does."""
    shape = (count, ERASE_TRIES)
    share = area[0] + (area[1] - area[0]) * torch.rand(shape, generator=generator)
    low, high = (math.log(side) for side in ERASE_RATIO)
    ratio = torch.exp(low + (high - low) * torch.rand(shape, generator=generator))
    height, width = (share * ratio).sqrt(), (share / ratio).sqrt()
    fits = (height < 1) & (width < 1)
    first = fits.float().argmax(1, keepdim=True)
    height, width = height.gather(1, first)[:, 0], width.gather(1, first)[:, 0]
    top = torch.rand(count, generator=generator) * (1 - height)
    left = torch.rand(count, generator=generator) * (1 - width)
    return torch.stack([top, left, height, width], 1) * fits.any(1)[:, None]


def spoil(
    squares: torch.Tensor, spoils: Spoils, variance: float, generator: torch.Generator
) -> torch.Tensor:
    """Mirror and add noise.

    Args:
        squares: [N, 3, S, S] uint8.
        variance: of the noise, in levels of 0-255 squared.

    Returns:
        [N, 3, S, S] float in 0-1.
    """
    pixels = torch.where(spoils.flip[:, None, None, None], squares.flip(-1), squares).float()
    noise = torch.randn(pixels.shape, generator=generator) * math.sqrt(variance)
    return (pixels + noise * spoils.noise[:, None, None, None]).clamp_(0, 255) / 255


def erase(pixels: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Set each picture's rectangle to 0, which after normalisation is the mean colour."""
    side = pixels.shape[-1]
    top, left, height, width = (boxes * side).round().unbind(1)
    place = torch.arange(side)
    rows = (place >= top[:, None]) & (place < (top + height)[:, None])
    columns = (place >= left[:, None]) & (place < (left + width)[:, None])
    return pixels.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
