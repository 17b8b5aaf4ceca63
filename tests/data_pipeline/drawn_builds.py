"""A dataset of labelled drawings for tests of builds, and what two builds are compared by."""

import hashlib
import io

import numpy as np
import yaml
from PIL import Image

from data_pipeline.records import FaceRecord, write_dataset


def drawing(number, side=40, **save):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side * 3 // 2), Image.Resampling.BICUBIC).save(buffer, "JPEG", **save)
    return buffer.getvalue()


PICTURES = [drawing(number) for number in range(8)]


def face(number, **changes):
    settings = {
        "id": f"s_{number}",
        "source": "s",
        "split": ("train", "train", "val", "test")[number % 4],
        "subject": f"p{number}",
        "image": PICTURES[number % 8] if number % 9 else b"broken",
        "labels": {
            "expression": ("neutral", "happiness", "fear")[number % 3],
            "attributes": {"beard": number % 5 == 0, "smiling": number % 2 == 0},
            "age": 20.0 + number % 50,
            "head_pose": {"yaw": (number * 7) % 61 - 30.5},
        },
    }
    return FaceRecord(**{**settings, **changes})


def write_inputs(root, faces):
    """Write a dataset and two recipes: ``r.yaml`` takes all of it, ``few.yaml`` 20 of a split."""
    with write_dataset(root / "faces") as writer:
        for number in range(faces):
            writer.add(face(number))
    content = {
        "seed": 3,
        "rows_per_shard": 100,
        "max_questions_per_face": 4,
        "sources": [{"source": "records", "root": "faces"}],
    }
    (root / "r.yaml").write_text(yaml.safe_dump(content))
    few = {"source": "records", "root": "faces", "take": "first:20"}
    (root / "few.yaml").write_text(yaml.safe_dump({**content, "sources": [few]}))


def digests(root):
    """Hashes of all files; the card holds the name of the folder."""
    files = (path for path in root.iterdir() if path.name != "README.md")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
