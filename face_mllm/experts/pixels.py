"""How published experts make pixels, where that is not the tower's own processor."""

from __future__ import annotations

from face_mllm.features import IMAGENET_MEAN, IMAGENET_STD, OWN_PIXELS, PixelRule

# the released Exp-CLIP heads saw pictures squashed and divided by 255, without mean and std:
# probably an oversight, but a comparison with their figures needs it
EXP_CLIP_PAPER = PixelRule(squash=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# mask-FER hands one tensor with ImageNet's mean and std to both of its towers
MASK_FER_PAPER = PixelRule(squash=True, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def exp_clip_rule(paper_preprocess: bool) -> PixelRule:
    """CLIP's own processor, or Exp-CLIP's plain resize."""
    return EXP_CLIP_PAPER if paper_preprocess else OWN_PIXELS


def mask_fer_rule(paper_preprocess: bool) -> PixelRule:
    """CLIP's own processor, or mask-FER's squash with ImageNet's mean and std."""
    return MASK_FER_PAPER if paper_preprocess else OWN_PIXELS
