"""Photographs to pictures of faces, cut as the faces were that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_pipeline.faces import NO_FACES, FacePolicy, cut_face, find_faces
from data_pipeline.records import open_rgb
from face_mllm.artifact import Artifact, read_artifact
from face_mllm.errors import UserError

FACES = ("auto", "none", "detect")


@dataclass(frozen=True)
class FacePicture:
    """One face to ask about.

    Args:
        image: the picture the model sees.
        box: of the face, whole pixels of the photograph; the picture itself where none was cut.
    """

    image: Image.Image
    box: tuple[int, int, int, int]


def policy_for(model: Path, faces: str = "auto") -> FacePolicy:
    """Return how photographs are cut for a model.

    Args:
        model: artifact folder.
        faces: ``auto``: as its training faces were, if those were cut from photographs, else the
            picture as it is; ``none``: the picture as it is; ``detect``: as its training faces
            were, else by the default policy.

    Raises:
        UserError: another word, or no artifact.
    """
    if faces not in FACES:
        raise UserError(f"faces {faces!r}", f"choose {', '.join(FACES)}")
    if faces == "none":
        return NO_FACES
    recorded = recorded_policy(read_artifact(model))
    return FacePolicy() if faces == "detect" and recorded == NO_FACES else recorded


def recorded_policy(artifact: Artifact) -> FacePolicy:
    """Return the crop policy of the data of the last stage."""
    return FacePolicy.from_manifest(artifact.chain[-1].get("faces")) if artifact.chain else NO_FACES


def face_pictures(photograph: Image.Image, name: str, policy: FacePolicy) -> list[FacePicture]:
    """Return the faces of an upright RGB photograph, the largest first.

    Args:
        photograph: the decoded file.
        name: what the error calls it.
        policy: of :func:`policy_for`; mode ``none`` gives the photograph itself.

    Raises:
        UserError: no face in it, or no detector installed.
    """
    width, height = photograph.size
    if policy.mode == "none":
        return [FacePicture(photograph, (0, 0, width, height))]
    found = find_faces(photograph, policy)
    if not found:
        raise UserError(
            f"{name}: no face found",
            "leave it out, or pass --faces none if the picture is a face already cut out",
        )
    pictures = []
    for face in found:
        x0, y0, x1, y1 = (round(value) for value in face.box)
        box = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
        pictures.append(FacePicture(cut_face(photograph, face, policy).image, box))
    return pictures


def open_faces(path: Path | str, policy: FacePolicy) -> list[FacePicture]:
    """Return the faces in a file, the largest first; errors as :func:`face_pictures`."""
    return face_pictures(open_rgb(str(path), str(path)), str(path), policy)
