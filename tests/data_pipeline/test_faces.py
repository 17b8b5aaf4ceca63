"""Faces in photographs: alignment, crop policy, and records cut from drawn fixtures.

The detector is a stand-in that reads where the faces are from the fixture; the real one has its
own tests in ``test_faces_detector.py``.
"""

import json

import numpy as np
import pytest
from drawn_faces import MARKS, Known, face_at, photograph, record, transform
from PIL import Image

from data_pipeline.faces import NO_FACES, FacePolicy, crop_record, cut_face, find_faces
from data_pipeline.faces import crop as crop_module
from data_pipeline.faces.align import (
    TEMPLATE,
    box_matrix,
    cut,
    eyes_matrix,
    inverse,
    moved,
    moved_box,
    scale_of,
    similarity,
    turn_of,
)
from data_pipeline.faces.pose import turned_pose
from data_pipeline.records import FaceRecord, iter_records, write_dataset
from data_pipeline.sources import Dropped
from data_pipeline.synth.pose import pose_matrix
from face_mllm.errors import UserError

# --- similarity transforms


@pytest.mark.parametrize(
    "scale, degrees, shift", [(1, 0, (0, 0)), (0.3, 35, (12, -7)), (2.5, -170, (100, 40))]
)
def test_a_known_transform_is_recovered(scale, degrees, shift):
    known = transform(scale, degrees, shift)
    points = np.array(MARKS) * 100
    found = similarity(points, moved(points, known))
    assert np.allclose(found, known)
    assert (scale_of(found), turn_of(found)) == (pytest.approx(scale), pytest.approx(degrees))
    assert np.allclose(moved(moved(points, found), inverse(found)), points)


def test_noise_is_met_in_the_least_squares_sense():
    rng = np.random.default_rng(0)
    points = np.array(MARKS) * 100
    noisy = moved(points, transform(1.4, 20, (5, 5))) + rng.normal(0, 1, points.shape)
    best = similarity(points, noisy)
    error = ((moved(points, best) - noisy) ** 2).sum()
    steps = np.zeros((4, 2, 3))  # the directions in which it stays a similarity
    steps[0, :, :2], steps[1, :, :2] = np.eye(2), [[0, -1], [1, 0]]
    steps[2, 0, 2] = steps[3, 1, 2] = 1
    for _ in range(200):
        other = best + np.tensordot(rng.normal(0, 1e-2, 4), steps, 1)
        assert ((moved(points, other) - noisy) ** 2).sum() >= error


def test_a_mirrored_face_is_turned_never_mirrored():
    points = np.array(MARKS) * 100
    found = similarity(points, points * [-1, 1])
    assert np.linalg.det(found[:, :2]) > 0


def test_points_that_are_one_are_refused():
    with pytest.raises(ValueError, match="same"):
        similarity([(1, 1)] * 5, TEMPLATE)


def test_both_alignments_frame_an_upright_face_alike():
    face = face_at(40, 30, 100)
    eyes, box = eyes_matrix(face.landmarks5, 224, 0.1), box_matrix(face.box, 224, 0.1)
    assert np.allclose(eyes, box)
    assert moved_box(face.box, box) == pytest.approx((18.67, 18.67, 205.33, 205.33), abs=0.01)


# --- cutting


def test_a_crop_shows_what_the_box_holds_and_black_beyond_the_photograph():
    image = photograph(red=(50, 50, 149, 149))
    whole = np.asarray(cut(image, box_matrix((50, 50, 150, 150), 64, 0.0), 64))
    assert np.abs(whole[4:-4, 4:-4].astype(int) - (255, 0, 0)).max() <= 3
    beyond = np.asarray(cut(image, box_matrix((-100, 0, 0, 100), 64, 0.0), 64))
    assert beyond.max() == 0
    half = np.asarray(cut(image, box_matrix((-50, 0, 50, 100), 64, 0.0), 64))
    assert half[:, :28].max() == 0
    assert half[10, 40] == pytest.approx(128, abs=1)


@pytest.mark.parametrize("side", [200, 1000])
def test_landmarks_land_where_the_template_has_them(side):
    """A soft dot on a landmark of a turned face is found at its place in the crop."""
    face = face_at(0.3 * side, 0.3 * side, 0.4 * side, degrees=25)
    rows, columns = np.indices((side, side)) + 0.5
    marks = [face.landmarks5[number] for number in (0, 4)]  # an eye, a corner of the mouth
    reach = 2 * (side * 0.012) ** 2
    dots = sum(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / reach) for x, y in marks)
    image = Image.fromarray((255 * dots).astype(np.uint8)).convert("RGB")
    policy = FacePolicy(align="eyes", size=128, margin=0.2)
    grey = np.asarray(cut_face(image, face, policy).image.convert("L")).astype(float)
    for number in (0, 4):
        want = (np.array(TEMPLATE[number]) + 0.2) / 1.4 * 128
        around = np.zeros_like(grey)
        x, y = want.round().astype(int)
        around[y - 8 : y + 8, x - 8 : x + 8] = grey[y - 8 : y + 8, x - 8 : x + 8]
        rows, columns = np.indices(grey.shape) + 0.5
        place = np.array([(around * columns).sum(), (around * rows).sum()]) / around.sum()
        assert place == pytest.approx(want, abs=0.2)


def test_shrinking_does_not_alias():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = np.asarray(cut(Image.fromarray(stripes), box_matrix((0, 0, 512, 512), 64, 0.0), 64))
    assert crop[8:56, 8:56].std() < 3


# --- labels of a turned face


@pytest.mark.parametrize("roll", [-40.0, 15.0])
def test_turning_a_face_upright_takes_its_roll_away(roll):
    pose = turned_pose({"yaw": 0.0, "pitch": 0.0, "roll": roll}, -roll)
    assert pose == pytest.approx({"yaw": 0.0, "pitch": 0.0, "roll": 0.0})


@pytest.mark.parametrize("angles", [(30, 0, 0), (-50, 25, -10), (70, -35, 30)])
def test_the_pose_of_a_turned_picture_is_that_of_a_turned_head(angles):
    pose = turned_pose(dict(zip(("yaw", "pitch", "roll"), angles, strict=True)), 20)
    turn = pose_matrix(0, 0, 20)  # about the line of sight, clockwise
    assert np.allclose(
        pose_matrix(pose["yaw"], pose["pitch"], pose["roll"]),
        turn @ pose_matrix(*angles),
        atol=1e-5,
    )


def test_a_pose_known_in_part_is_unknown_after_a_turn():
    labels = {"head_pose": {"roll": 10.0}, "age": 3.0}
    assert crop_module.labels_in_crop(labels, transform(1, 5, (0, 0))) == {"age": 3.0}
    assert crop_module.labels_in_crop(labels, transform(2, 0, (9, 9))) == labels


def test_landmarks_follow_the_crop():
    labels = {"landmarks": [[10.0, 20.0], [30, 40]]}
    moved_ones = crop_module.labels_in_crop(labels, transform(2, 0, (1, -1)))
    assert moved_ones == {"landmarks": [[21.0, 39.0], [61.0, 79.0]]}
    assert crop_module.labels_in_crop({"landmarks": {"a": 1}}, transform(2, 0, (0, 0))) == {}


# --- choosing faces


def test_faces_that_count_come_largest_first():
    detector = Known(
        face_at(0, 0, 40), face_at(9, 9, 90), face_at(50, 0, 60, 0.3), face_at(0, 9, 9)
    )
    found = find_faces(photograph(), FacePolicy(), detector)
    assert [face.box[2] - face.box[0] for face in found] == [90, 40]


def test_a_large_photograph_is_searched_small_and_answered_large():
    detector = Known(face_at(10, 20, 30))
    (face,) = find_faces(Image.new("RGB", (1280, 960)), FacePolicy(), detector)
    assert detector.asked == [(640, 480)]
    assert face.box == (20, 40, 80, 100)
    assert face.landmarks5[0] == pytest.approx((39.8, 62.8))


# --- records


def test_one_face_keeps_its_id_and_labels_and_says_how_it_was_cut():
    (found,) = crop_record(record(), FacePolicy(), Known(face_at(50, 60, 100)))
    assert (found.id, found.labels) == ("s_1", {"expression": "happiness"})
    assert found.open_image().size == (224, 224)
    assert found.box == pytest.approx((18.67, 18.67, 205.33, 205.33), abs=0.01)
    assert found.crop["policy"] == "box-224-m0.1"
    assert found.crop["box"] == pytest.approx([40, 50, 160, 170])
    assert found.crop["face"] == [50, 60, 150, 160]
    assert found.crop["landmarks"][0] == [83, 98]
    assert (found.crop["found_by"], found.crop["faces_in_photograph"]) == ("known 1", 1)


def test_how_it_was_cut_survives_on_disk(tmp_path):
    (found,) = crop_record(record(), FacePolicy(), Known(face_at(50, 60, 100)))
    with write_dataset(tmp_path / "d") as writer:
        writer.add(found)
        writer.add(record(id="s_2"))
    cut_out, as_it_was = iter_records(tmp_path / "d")
    assert (cut_out.crop, as_it_was.crop) == (found.crop, {})
    assert cut_out.box == pytest.approx(found.box)


def test_no_face_is_dropped_with_the_reason():
    assert crop_record(record(), FacePolicy(), Known()) == [Dropped("no face found", "s_1")]


def test_a_picture_that_does_not_decode_is_dropped():
    broken = record(image=photograph())
    cut_short = FaceRecord(**{**broken.__dict__, "image": broken.image[:-40]})
    assert crop_record(cut_short, FacePolicy(), Known()) == [Dropped("image unreadable", "s_1")]


def test_of_several_the_largest_all_or_none():
    detector = Known(face_at(0, 0, 40), face_at(50, 60, 100))
    (largest,) = crop_record(record(), FacePolicy(), detector)
    assert (largest.id, largest.crop["face"]) == ("s_1", [50, 60, 150, 160])
    assert largest.crop["faces_in_photograph"] == 2
    with pytest.raises(UserError, match=r"s_1: 2 faces.*several: largest"):
        crop_record(record(), FacePolicy(several="error"), detector)


def test_all_faces_are_records_and_nobody_guesses_whose_the_labels_are():
    full = record(caption="a crowd")
    both = crop_record(full, FacePolicy(several="all"), Known(face_at(0, 0, 40), face_at(9, 9, 90)))
    assert [found.id for found in both] == ["s_1_f0", "s_1_f1"]
    assert [found.subject for found in both] == ["p", "p"]
    assert [(found.labels, found.caption) for found in both] == [({}, ""), ({}, "")]
    (alone,) = crop_record(full, FacePolicy(several="all"), Known(face_at(0, 0, 40)))
    assert (alone.id, alone.labels, alone.caption) == ("s_1_f0", full.labels, "a crowd")


def test_a_box_of_the_source_is_the_face_and_needs_no_detector():
    image = photograph(red=(100, 20, 139, 59))
    (found,) = crop_record(record(image, box=(100, 20, 140, 60)), FacePolicy(margin=0))
    assert np.asarray(found.open_image())[20:200, 20:200].mean((0, 1)) == pytest.approx(
        (254, 0, 0), abs=2
    )
    assert (found.crop["found_by"], found.crop["landmarks"]) == ("source", [])


def test_a_box_can_be_passed_over():
    policy = FacePolicy(use_boxes=False)
    (found,) = crop_record(record(box=(0, 0, 50, 50)), policy, Known(face_at(50, 60, 100)))
    assert found.crop["face"] == [50, 60, 150, 160]


def test_the_eyes_of_a_boxed_face_are_those_found_in_its_box():
    """The detector sees the box with some room; of two faces there the one in the box counts."""
    boxed = record(box=(100, 100, 140, 140))
    detector = Known(face_at(0, 0, 21), face_at(21, 19, 40))  # within the part from (80, 80) on
    (found,) = crop_record(boxed, FacePolicy(align="eyes"), detector)
    assert detector.asked == [(80, 80)]
    assert found.crop["landmarks"][2] == pytest.approx([80 + 21 + 20, 80 + 19 + 23.2])
    nothing = crop_record(boxed, FacePolicy(align="eyes"), Known(face_at(0, 0, 21)))
    assert nothing == [Dropped("no landmarks found in the source's box", "s_1")]


@pytest.mark.parametrize(
    "box, reason",
    [
        ((300, 300, 340, 340), "the source's box lies outside the picture"),
        ((50, 50, 40, 60), "the source's box lies outside the picture"),
        ((50, 50, 60, 90), "face smaller than 16 px"),
    ],
)
def test_a_box_that_shows_no_face_is_dropped(box, reason):
    assert crop_record(record(box=box), FacePolicy()) == [Dropped(reason, "s_1")]


def test_a_crop_is_not_cropped_again():
    (found,) = crop_record(record(), FacePolicy(), Known(face_at(50, 60, 100)))
    assert crop_record(found, FacePolicy()) == [found]
    with pytest.raises(UserError, match=r"already cropped as box-224-m0\.1.*faces: none"):
        crop_record(found, FacePolicy(align="eyes"))


# --- the policy in words


@pytest.mark.parametrize(
    "policy",
    [FacePolicy(), FacePolicy(align="eyes", margin=0.25, size=112), FacePolicy(margin=0)],
)
def test_a_policy_comes_back_from_its_manifest_and_its_framing_from_its_name(policy):
    assert FacePolicy.from_manifest(json.loads(json.dumps(policy.as_manifest()))) == policy
    assert FacePolicy.from_name(policy.name) == policy


def test_no_policy_is_none():
    assert (NO_FACES.name, NO_FACES.as_manifest()) == ("none", "none")
    assert FacePolicy.from_manifest("none") == FacePolicy.from_manifest(None) == NO_FACES
    with pytest.raises(UserError, match="not one this version knows"):
        FacePolicy.from_manifest({"align": "ears"})
    with pytest.raises(UserError, match="no crop policy"):
        FacePolicy.from_name("ears-1")
