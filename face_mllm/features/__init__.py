"""Frozen features computed once: what never trains need not run twice.

``cache`` keeps columns by content on disk; ``clip`` fills it with joint-space vectors for the
experts, ``tower`` with the hidden states [tokens, channels] that the MLLM's projector reads.
"""

from face_mllm.features.cache import Columns, FeatureCache, content_key, face_features
from face_mllm.features.clip import FrozenClip
from face_mllm.features.pixels import IMAGENET_MEAN, IMAGENET_STD, OWN_PIXELS, PixelRule, squash
from face_mllm.features.tower import FrozenTower

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OWN_PIXELS",
    "Columns",
    "FeatureCache",
    "FrozenClip",
    "FrozenTower",
    "PixelRule",
    "content_key",
    "face_features",
    "squash",
]
