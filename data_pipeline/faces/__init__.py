"""Faces in photographs: detection, landmarks, alignment and the crop policy, in one place."""

from data_pipeline.faces.crop import Crop, crop_record, cut_face, find_faces
from data_pipeline.faces.detector import Face, FaceDetector, default_detector
from data_pipeline.faces.policy import NO_FACES, FacePolicy, Faces

__all__ = [
    "NO_FACES",
    "Crop",
    "Face",
    "FaceDetector",
    "FacePolicy",
    "Faces",
    "crop_record",
    "cut_face",
    "default_detector",
    "find_faces",
]
