"""Faces in photographs: alignment, crop policy, and records cut from drawn fixtures.

The detector is a stand-in that reads where the faces are from the fixture; the real one has its
own tests in ``test_faces_detector.py``.
"""

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from data_pipeline.build import build
from data_pipeline.faces import NO_FACES, Face, FacePolicy, crop_record, cut_face, find_faces
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
from data_pipeline.recipe import load_recipe
from data_pipeline.records import FaceRecord, iter_records, write_dataset
from data_pipeline.sources import Dropped
from data_pipeline.synth.pose import pose_matrix
from face_mllm.errors import UserError

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
    assert FaceRecord.from_row(found.to_row()) == found


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


# --- in a build


def in_photographs(image):
    """A stand-in detector: as many faces as the red of the first pixel says."""
    places = (face_at(50, 60, 100), face_at(0, 0, 40))
    return list(places[: image.getpixel((0, 0))[0]])


in_photographs.name = "known 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten photographs with 0, 1 or 2 faces, and one with a box."""
    monkeypatch.setattr(crop_module, "default_detector", lambda: in_photographs)
    with write_dataset(tmp_path / "photos") as writer:
        for number in range(11):
            image = photograph()
            image.putpixel((0, 0), (number % 3, 0, 0))
            box = (100.0, 100.0, 150.0, 150.0) if number == 10 else ()
            name = {"id": f"s_{number}", "subject": f"p{number}"}
            writer.add(record(image, box=box, **name))
    return tmp_path


def recipe(folder, sources=({"source": "records", "root": "photos"},), **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sources": list(sources), **changes}))
    return path


def test_a_build_cuts_counts_and_remembers(folder):
    manifest = build(recipe(folder, faces="detect"), folder / "out")
    assert manifest["faces"] == {"policy": "box-224-m0.1", **FacePolicy().model_dump()}
    (source,) = manifest["sources"]
    assert source["kept"] == {"train": 7}
    assert source["dropped"]["no face found"]["count"] == 4
    assert source["faces"] == {
        "policies": {"box-224-m0.1": 7},
        "found_by": {"known 1": 6, "source": 1},
    }
    for found in iter_records(folder / "out"):
        assert found.crop["policy"] == "box-224-m0.1"
        assert found.open_image().size == (224, 224)
    assert "box-224-m0.1" in (folder / "out" / "README.md").read_text()


def test_the_same_build_again_gives_the_same_bytes(folder):
    path = recipe(folder, faces={"align": "eyes", "several": "all", "size": 64})
    for name in ("a", "b"):
        build(path, folder / name)
    shards = [(folder / name / "train-00000.parquet").read_bytes() for name in ("a", "b")]
    assert shards[0] == shards[1]
    ids = [found.id for found in iter_records(folder / "a")]
    assert ids[:3] == ["s_1_f0", "s_2_f0", "s_2_f1"]


def test_a_source_can_have_its_own_policy(folder):
    cropped = [{"source": "records", "root": "photos", "faces": "none"}]
    manifest = build(recipe(folder, cropped, faces="detect"), folder / "out")
    assert (manifest["faces"], manifest["sources"][0]["kept"]) == ("none", {"train": 11})


def test_a_dataset_of_crops_keeps_its_policy_when_built_anew(folder):
    build(recipe(folder, faces={"align": "eyes", "margin": 0.3}), folder / "crops")
    again = build(recipe(folder, [{"source": "records", "root": "crops"}]), folder / "out")
    assert again["faces"]["policy"] == "eyes-224-m0.3"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"faces": "detct"}, "'faces.mode' is 'detct'"),
        ({"faces": {"margn": 1}}, "did you mean 'margin'"),
        ({"faces": "detect", "images": "link"}, "images: embed"),
        ({"faces": {"several": "first"}}, "'faces.several' is 'first'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(folder, changes, said):
    with pytest.raises(UserError, match=said):
        load_recipe(recipe(folder, **changes))


def test_options_can_be_set_on_the_command_line(folder):
    loaded = load_recipe(recipe(folder), ["faces.margin=0.4", "sources.0.faces=none"])
    assert (loaded.recipe.faces.margin, loaded.recipe.faces.mode) == (0.4, "detect")
    assert loaded.sources[0].faces == NO_FACES
