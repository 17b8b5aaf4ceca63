"""How a picture becomes a tower's pixels, where a paper differs from the tower's processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PixelRule:
    """The default is the tower's own processor.

    Args:
        squash: resize to the tower's square without regard to shape, instead of its own crop.
        mean, std: normalisation per channel; None takes the processor's.
    """

    squash: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


OWN_PIXELS = PixelRule()


def squash(images: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """Resize pictures without regard to their shape, uint8 [N, 3, height, width]."""
    resized = [
        np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
