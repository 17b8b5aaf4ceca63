"""How Exp-CLIP's frozen CLIP is read: pixels and temperature."""

from __future__ import annotations

from face_mllm.experts.features import FrozenClip, PixelRule

MAX_SCALE = 100.0  # where CLIP clips its inverse temperature
# the released heads saw pictures squashed and divided by 255, without CLIP's mean and std: probably
# an oversight, but a comparison with their figures needs it
PAPER = PixelRule(squash=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def clip_rule(paper_preprocess: bool) -> PixelRule:
    """CLIP's own processor, or the paper's plain resize."""
    return PAPER if paper_preprocess else PixelRule()


def frozen_scale(clip: FrozenClip) -> float:
    """CLIP's inverse temperature, at most 100."""
    return min(MAX_SCALE, float(clip.logit_scale))
