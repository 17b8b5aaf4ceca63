"""Photographs with drawn faces, and a detector that knows where they are."""

import io

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.faces import Face
from data_pipeline.faces.align import moved
from data_pipeline.records import FaceRecord

MARKS = ((0.33, 0.38), (0.67, 0.38), (0.5, 0.58), (0.357, 0.73), (0.643, 0.73))


def transform(scale, degrees, shift):
    turn = np.radians(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.column_stack([scale * rotation, shift])


def face_at(x0, y0, side, score=0.9, degrees=0.0):
    """A face whose landmarks lie as in the template, turned about its box's centre."""
    centre = np.array([x0 + side / 2, y0 + side / 2])
    points = (np.array(MARKS) - 0.5) * side
    marks = moved(points, transform(1, degrees, centre))
    return Face((x0, y0, x0 + side, y0 + side), tuple(map(tuple, marks.tolist())), score)


class Known:
    """A detector that knows the answer."""

    name = "known 1"

    def __init__(self, *faces):
        self.faces = list(faces)
        self.asked = []

    def __call__(self, image):
        self.asked.append(image.size)
        return self.faces


def photograph(side=200, **colours):
    """Grey with coloured squares: name -> (colour, box)."""
    image = Image.new("RGB", (side, side), (128, 128, 128))
    for colour, box in colours.items():
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def record(image=None, **changes):
    base = {
        "id": "s_1",
        "source": "s",
        "split": "train",
        "subject": "p",
        "image": png(image or photograph()),
        "labels": {"expression": "happiness"},
    }
    return FaceRecord(**{**base, **changes})
