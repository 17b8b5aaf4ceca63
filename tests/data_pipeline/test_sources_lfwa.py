"""LFWA's MATLAB files: both versions, indices that do not fit, labels that mean nothing."""

from pathlib import Path

import numpy as np
import pytest
from source_fixtures import lfwa
from test_sources_attr import read, records

from data_pipeline.sources import get_source
from face_mllm.errors import UserError


def test_files_saved_again_as_an_older_version_read_alike(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    lfwa.write(tmp_path / "new")
    lfwa.write(tmp_path / "old")
    table = {"name": np.array(lfwa.FILES, object)[:, None], "label": np.array(lfwa.LABELS)}
    table["AttrName"] = np.array(lfwa.COLUMNS, object)[:, None]
    scipy_io.savemat(tmp_path / "old/lfw_att_40.mat", table)
    scipy_io.savemat(tmp_path / "old/indices_train_test.mat", lfwa.INDICES)
    new, old = (records(read("lfwa", tmp_path / name)) for name in ("new", "old"))
    assert {key: row.labels for key, row in new.items()} == {k: r.labels for k, r in old.items()}
    assert all(Path(row.image).is_file() for row in old.values())


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ({"indices_img_train": [0.0, 1.0], "indices_img_test": [2.0]}, "runs from 0 to 1"),
        ({"indices_img_train": [1.0, 5.0], "indices_img_test": [2.0]}, "but there are 4 pictures"),
        ({"indices_img_train": [1.0, 2.0], "indices_img_test": [2.0]}, "in both lists"),
        ({"indices_img_train": [1.0, 2.0]}, "no indices_img_test"),
    ],
)
def test_indices_that_do_not_fit_are_refused(tmp_path, indices, said):
    lfwa.write(tmp_path)
    lfwa.save_v73(tmp_path / "indices_train_test.mat", **indices)
    with pytest.raises(UserError, match=f"indices_train_test.mat: .*{said}"):
        read("lfwa", tmp_path)


def test_labels_of_another_kind_are_refused(tmp_path):
    lfwa.write(tmp_path)
    path = tmp_path / "lfw_att_40.mat"
    lfwa.save_v73(path, name=lfwa.FILES, AttrName=lfwa.COLUMNS, label=[[0, 1, 0.5]] * 4)
    with pytest.raises(UserError, match=r"column 'Eyeglasses': '0\.5' is none of 1, 0"):
        read("lfwa", tmp_path)
    lfwa.save_v73(path, name=lfwa.FILES, AttrName=lfwa.COLUMNS[:2], label=lfwa.LABELS)
    with pytest.raises(UserError, match="not LFWA's name, AttrName and label"):
        read("lfwa", tmp_path)


def test_what_is_missing_is_named(tmp_path):
    lfwa.write(tmp_path)
    with pytest.raises(UserError, match=r"lfw_att_73.mat: no such file"):
        read("lfwa", tmp_path, attributes="73")
    (tmp_path / "indices_train_test.mat").unlink()
    assert get_source("lfwa").detect(tmp_path).missing == ("indices_train_test.mat",)
    with pytest.raises(UserError, match=r"indices_train_test.mat: no such file"):
        read("lfwa", tmp_path)
