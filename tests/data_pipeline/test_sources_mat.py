"""MATLAB files: both kinds must read alike."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
import scipy.io

from data_pipeline.sources._mat import load_mat
from face_mllm.errors import UserError


def write_v73(path, user_block=512):
    """As MATLAB's -v7.3: transposed arrays, characters as uint16, cells as references."""
    with h5py.File(path, "w", userblock_size=user_block) as file:
        file["label"] = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]).T
        file["one"] = np.array([[3.0]])
        words = []
        for number, word in enumerate(("Bald", "No_Beard ")):
            text = file.create_dataset(
                f"#refs#/{number}", data=np.array([[ord(c)] for c in word], np.uint16)
            )
            text.attrs["MATLAB_class"] = np.bytes_("char")
            words.append(text.ref)
        file.create_dataset("name", data=np.array([words], dtype=h5py.ref_dtype))
        file["sub/x"] = np.array([[1.0, 2.0]]).T
    return path


def write_v5(path):
    names = np.array([["Bald", "No_Beard "]], dtype=object)
    label = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    sub = {"x": np.array([[1.0, 2.0]])}
    scipy.io.savemat(path, {"label": label, "one": 3.0, "name": names, "sub": sub})
    return path


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_both_matlab_versions_give_the_same(tmp_path, write):
    found = load_mat(write(tmp_path / "m.mat"))
    assert set(found) == {"label", "one", "name", "sub"}
    assert found["label"].tolist() == [[1, 0, 1], [0, 0, 1]]
    assert (found["one"], found["name"]) == (3.0, ["Bald", "No_Beard "])
    assert found["sub"]["x"].tolist() == [1, 2]
    assert set(load_mat(tmp_path / "m.mat", only=("one", "absent"))) == {"one"}


def test_hdf5_without_matlabs_own_header(tmp_path):
    assert load_mat(write_v73(tmp_path / "m.mat", user_block=0))["one"] == 3.0


def test_unreadable_mat(tmp_path):
    with pytest.raises(UserError, match=r"m\.mat: no such file"):
        load_mat(tmp_path / "m.mat")
    (tmp_path / "m.mat").write_bytes(b"not matlab" * 60)
    with pytest.raises(UserError, match=r"m\.mat: not a readable MATLAB file"):
        load_mat(tmp_path / "m.mat")


@pytest.mark.parametrize(("write", "package"), [(write_v5, "scipy.io"), (write_v73, "h5py")])
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, write, package):
    path = write(tmp_path / "m.mat")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'face-mllm\[readers\]'"):
        load_mat(path)
