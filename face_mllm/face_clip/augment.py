"""Batched augmentation on uint8 pictures; every move is known, so labels follow it exactly."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from face_mllm.face_clip.config import AugmentConfig

MEAN, STD = 0.5, 0.25  # as the image processor's
LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG and Pillow


@dataclass(frozen=True)
class Moves:
    """What is done to each picture of a batch.

    Args:
        flip: [batch] bool, mirrored first.
        degrees: [batch] then turned clockwise.
        shift: [batch, 2] then moved right and down, as a share of the side.
        zoom: [batch] scale about the centre.
        gray: [batch] bool, without colour.
        blurred: [batch] bool, out of focus.
    """

    flip: torch.Tensor
    degrees: torch.Tensor
    shift: torch.Tensor
    zoom: torch.Tensor
    gray: torch.Tensor
    blurred: torch.Tensor


def draw_moves(count: int, config: AugmentConfig, generator: torch.Generator) -> Moves:
    """Draw the moves of ``count`` pictures."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    low, high = config.zoom
    return Moves(
        flip=uniform(count) < config.flip,
        degrees=(2 * uniform(count) - 1) * config.rotate,
        shift=(2 * uniform(count, 2) - 1) * config.shift,
        zoom=low * (high / low) ** uniform(count),
        gray=uniform(count) < config.gray,
        blurred=uniform(count) < config.blur,
    )


def still(count: int) -> Moves:
    """Return the moves that change nothing."""
    no = torch.zeros(count, dtype=torch.bool)
    return Moves(no, torch.zeros(count), torch.zeros(count, 2), torch.ones(count), no, no)


def move(images: torch.Tensor, moves: Moves, size: int) -> torch.Tensor:
    """Mirror, turn, shift and scale, and cut the central ``size`` square, in one resampling.

    Args:
        images: [batch, 3, side, side] uint8, side >= size.

    Returns:
        [batch, 3, size, size] float32 in 0-1.
    """
    radians = moves.degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    scale = size / images.shape[-1] / moves.zoom
    mirror = torch.where(moves.flip, -1.0, 1.0)
    # rows map an output place to its source: undo shift, then the turn, then the mirror
    rows = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    rows = rows * scale[:, None, None]
    offset = -(rows @ (2 * moves.shift)[:, :, None])
    theta = torch.cat([rows, offset], -1)
    theta[:, 0] *= mirror[:, None]
    grid = functional.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    pixels = images.float().div_(255)
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def spoil(
    pixels: torch.Tensor, moves: Moves, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    """Jitter colours, drop colour, blur, add noise and compress shares of the batch.

    Args:
        pixels: [batch, 3, size, size] in 0-1, as :func:`move` returns; changed in place.
        moves: says which lose colour and focus, since labels depend on it.
    """
    pixels = _colour(pixels, moves.gray, config.colour, generator)
    noisy = torch.rand(len(pixels), generator=generator) < config.noise
    packed = torch.rand(len(pixels), generator=generator) < config.jpeg
    for chosen, spoiler in ((moves.blurred, _blur), (noisy, _noise), (packed, _jpeg)):
        if chosen.any():
            pixels[chosen] = spoiler(pixels[chosen], generator)
    return pixels.clamp_(0, 1)


def _colour(
    pixels: torch.Tensor, gray: torch.Tensor, strength: float, generator: torch.Generator
) -> torch.Tensor:
    """One 3x3 matrix and offset a picture: saturation about luma, contrast about the middle."""
    count = len(pixels)
    drawn = 1 + strength * (2 * torch.rand(count, 4, generator=generator) - 1)
    saturation = torch.where(gray, torch.zeros(count), drawn[:, 0])
    brightness, contrast = 1 + (drawn[:, 1] - 1) * 0.7, drawn[:, 2]
    warmth = torch.where(gray, torch.zeros(count), (drawn[:, 3] - 1) * 0.3)
    mix = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * LUMA
    gains = torch.stack([1 + warmth, torch.ones(count), 1 - warmth], 1)[:, :, None]
    matrix = mix * gains * (brightness * contrast)[:, None, None]
    offset = (0.5 * (1 - contrast))[:, None, None]
    flat = torch.baddbmm(offset, matrix, pixels.flatten(2))
    return flat.reshape(pixels.shape)


def _blur(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    sigma = 0.5 + 1.2 * torch.rand(1, generator=generator)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, 7)
    wide = functional.pad(pixels, (3, 3, 3, 3), mode="reflect")
    across = functional.conv2d(wide, taps, groups=3)
    return functional.conv2d(across, taps.transpose(2, 3), groups=3)


def _noise(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    sigma = 0.06 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return pixels + sigma * torch.randn(pixels.shape, generator=generator)


def _jpeg(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    qualities = torch.randint(25, 90, (len(pixels),), generator=generator)
    arrays = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    again = [_compressed(array, int(q)) for array, q in zip(arrays, qualities, strict=True)]
    return torch.from_numpy(np.stack(again)).permute(0, 3, 1, 2).float() / 255


def _compressed(array: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Scale 0-1 pictures to what the tower reads, channels last in memory."""
    return ((pixels - MEAN) / STD).contiguous(memory_format=torch.channels_last)
