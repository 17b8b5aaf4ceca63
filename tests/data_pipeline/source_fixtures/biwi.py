"""BIWI: raw frames with rotation matrices (png and jpg), and a pack with degrees and blue first."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.sources.base import hash_split
from source_fixtures import Case, picture

NAME = "biwi"
COLOURS = [(200, 20, 40), (10, 30, 220)]  # red and blue, as one sees them


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Head to camera, x right, y down, z away."""
    a, b, c = np.radians([yaw, pitch, roll])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def write_frame(folder: Path, number: int, angles, suffix: str = "png") -> None:
    frame = folder / f"frame_{number:05d}"
    picture(frame.with_name(f"{frame.name}_rgb.{suffix}"))
    lines = [" ".join(f"{cell:.9f}" for cell in row) + " " for row in rotation(*angles)]
    text = "\n".join([*lines, "", "12.5 -30.1 880.2 ", ""])
    frame.with_name(f"{frame.name}_pose.txt").write_text(text)
    frame.with_name(f"{frame.name}_depth.bin").write_bytes(b"\0")


def write_pack(path: Path, poses) -> None:
    pixels = np.array([np.full((8, 8, 3), colour[::-1], np.uint8) for colour in COLOURS])
    np.savez(path, image=pixels, pose=np.array(poses, float), img_size=64)


def write(root: Path) -> None:
    base = root / "hpdb"
    write_frame(base / "03", 3, (30, 0, 0))
    write_frame(base / "03", 4, (0, 20, 0))
    write_frame(base / "15", 9, (0, 0, 40), "jpg")  # the person of sequence 03
    write_frame(base / "01", 5, (-50, 25, -10))
    (base / "03" / "rgb.cal").write_text("575.8 0 320")
    write_pack(root / "BIWI_train.npz", [(30, 20, -10), (0, 0, 0)])
    write_pack(root / "BIWI_test.npz", [(-5, 4, 3), (1, 2, 3)])


def pose(yaw: float, pitch: float, roll: float):
    return {"head_pose": {"yaw": float(yaw), "pitch": float(pitch), "roll": float(roll)}}


RAW = {
    "biwi_01_frame_00005": ("F01", pose(-50, 25, -10)),
    "biwi_03_frame_00003": ("F03", pose(30, 0, 0)),
    "biwi_03_frame_00004": ("F03", pose(0, 20, 0)),
    "biwi_15_frame_00009": ("F03", pose(0, 0, 40)),
}
PEOPLE = {key: f"biwi_{person}" for key, (person, _) in RAW.items()}

CASES = [
    Case(
        records={key: ("test", labels) for key, (_, labels) in RAW.items()},
        subjects=PEOPLE,
    ),
    Case(
        protocol="biwi/hash-70-0-30",
        records={
            key: (hash_split(PEOPLE[key], "hash-70-0-30"), labels)
            for key, (_, labels) in RAW.items()
        },
    ),
    Case(
        protocol="biwi/packs-70-30",
        records={
            "biwi_BIWI_train_00000": ("train", pose(30, 20, -10)),
            "biwi_BIWI_train_00001": ("train", pose(0, 0, 0)),
            "biwi_BIWI_test_00000": ("test", pose(-5, 4, 3)),
            "biwi_BIWI_test_00001": ("test", pose(1, 2, 3)),
        },
        subjects={"biwi_BIWI_test_00001": "biwi_BIWI_test_00001"},
    ),
]
