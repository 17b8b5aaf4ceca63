"""The embedded CLIP: a small image and text tower trained on labelled faces."""

from face_mllm.face_clip.model import FaceClipModel, load_face_clip
from face_mllm.face_clip.zero_shot import ZeroShot

__all__ = ["FaceClipModel", "ZeroShot", "load_face_clip"]
