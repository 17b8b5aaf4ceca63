"""Traps of the head-pose readers that one good miniature cannot show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from reading import read, records, written
from source_fixtures import biwi

from data_pipeline.sources import get_source, hash_split
from data_pipeline.sources._pose import rotation_pose
from data_pipeline.synth.pose import pose_matrix
from face_mllm.errors import UserError

POSES = [(30, 0, 0), (0, 20, 0), (0, 0, 40), (-50, 25, -10), (70, -35, 30)]


def threeddfa(yaw, pitch, roll):
    """The rotation 3DDFA rebuilds a fitted face with: x right, y up, z to the camera."""
    a, b, c = np.radians([yaw, pitch, roll])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    about_z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


@pytest.mark.parametrize("angles", POSES)
def test_300wlp_angles_mean_what_the_renderer_means(angles):
    ours = pose_matrix(*angles)  # x right, y away, z up
    to_3ddfa = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert np.allclose(to_3ddfa @ ours @ to_3ddfa.T, threeddfa(*angles))


@pytest.mark.parametrize("angles", POSES)
def test_a_camera_rotation_gives_the_angles_of_300wlp(angles):
    to_camera = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # x right, y down, z away
    found = rotation_pose(to_camera @ pose_matrix(*angles) @ to_camera.T)["head_pose"]
    assert [found["yaw"], found["pitch"], found["roll"]] == pytest.approx(angles, abs=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_signs_in_the_picture(axis):
    """Yaw > 0 to the image's left, pitch > 0 up, roll > 0 clockwise."""
    angles = [0, 0, 0]
    angles[axis] = 20
    turned = threeddfa(*angles)
    nose, right = turned @ [0, 0, 1], turned @ [1, 0, 0]
    assert (nose[0] < 0, nose[1] > 0, right[1] < 0) == (axis == 0, axis == 1, axis == 2)


def test_300wlp_given_one_level_off(tmp_path):
    root = written("w300lp", tmp_path / "300W_LP")
    for place in (tmp_path, root / "AFW"):
        assert len(records(read("300wlp", place))) == 4
    assert get_source("300wlp").detect(root).missing == (
        "HELEN_Flip",
        "IBUG_Flip",
        "LFPW",
        "LFPW_Flip",
    )
    with pytest.raises(UserError, match="none of the folders AFW"):
        read("300wlp", root / "Code")


def test_pose_files_without_a_pose_are_named(tmp_path):
    scipy.io.savemat(tmp_path / "image00002.mat", {"pt2d": np.zeros((2, 21))})
    with pytest.raises(UserError, match=r"image00002\.mat: no Pose_Para"):
        read("aflw2000", tmp_path)
    pose = np.zeros((1, 7))
    scipy.io.savemat(tmp_path / "image00002.mat", {"Pose_Para": pose, "pt2d": np.zeros((21, 2))})
    with pytest.raises(UserError, match=r"landmarks of shape \(21, 2\)"):
        read("aflw2000", tmp_path)
    scipy.io.savemat(tmp_path / "image00002.mat", {"Pose_Para": pose * np.nan})
    assert read("aflw2000", tmp_path)[0].reason == "no pose within 99 degrees"


# --- BIWI


def test_biwi_names_the_pictures_that_are_there(tmp_path):
    rows = {row.id: Path(row.image).name for row in read("biwi", written("biwi", tmp_path))}
    assert rows["biwi_03_frame_00003"] == "frame_00003_rgb.png"
    assert rows["biwi_15_frame_00009"] == "frame_00009_rgb.jpg"


def test_biwi_second_recordings_are_known():
    settings = get_source("biwi").protocols["biwi/hash-70-0-30"].settings
    people = settings["people"]
    assert (len(people), len(set(people.values()))) == (24, 20)
    rule = settings["split"]
    assert {hash_split(f"biwi_{person}", rule) for person in people.values()} == {"train", "test"}


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_biwi_packs_hold_blue_first(tmp_path, channels):
    pack = tmp_path / "BIWI_noTrack.npz"
    biwi.write_pack(pack, [(0, 0, 0), (0, 0, 0)])
    colours = [row.open_image().getpixel((0, 0)) for row in read("biwi", pack, channels=channels)]
    assert colours == [c if channels == "bgr" else c[::-1] for c in biwi.COLOURS]
    assert get_source("biwi").detect(tmp_path).name == "BIWI, numpy packs (BIWI_noTrack)"
    with pytest.raises(UserError, match=r"nothing for biwi/packs-70-30, which reads BIWI_train"):
        read("biwi", pack, "biwi/packs-70-30")
    with pytest.raises(UserError, match=r"which reads 01/frame_00003_pose\.txt"):
        read("biwi", pack, "biwi/hash-70-0-30")


def test_biwi_malformed_files_are_named(tmp_path):
    root = written("biwi", tmp_path)
    path = root / "hpdb" / "03" / "frame_00004_pose.txt"
    for text in ("1 0 0\n0 1 0\n", "1 0 0\n0 1 0\n0 0 -1\n", "a b c\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"frame_00004_pose\.txt: does not begin with"):
            read("biwi", root)
    np.savez(root / "BIWI_test.npz", pose=np.zeros((1, 3)))
    with pytest.raises(UserError, match=r"BIWI_test\.npz: no pack of"):
        read("biwi", root, "biwi/packs-70-30")
