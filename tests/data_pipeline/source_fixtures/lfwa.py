"""LFWA in miniature: v7.3 files, backslashes, blanks after names, indices from 1 as floats."""

from pathlib import Path

import numpy as np

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "lfwa"
COLUMNS = ["Male ", "No_Beard", "Eyeglasses  "]
FILES = ["Ann_A\\Ann_A_0001.jpg", "Ann_A\\Ann_A_0002.jpg", "Bo_B\\Bo_B_0001.jpg", "C\\C_0001.jpg"]
LABELS = [[0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]]
INDICES = {"indices_img_train": [1.0, 2.0], "indices_img_test": [3.0]}


def save_v73(path, **values):
    """Write variables as MATLAB 7.3 does: columns first, cells as references, text as uint16."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in values.items():
            if isinstance(value[0], str):
                cell = file.create_dataset(name, (1, len(value)), h5py.ref_dtype)
                cell.attrs["MATLAB_class"] = np.bytes_("cell")
                for place, text in enumerate(value):
                    letters = np.array([[ord(letter)] for letter in text], np.uint16)
                    item = file.create_dataset(f"#refs#/{name}{place}", data=letters)
                    item.attrs["MATLAB_class"] = np.bytes_("char")
                    cell[0, place] = item.ref
            else:
                array = file.create_dataset(name, data=np.atleast_2d(np.asarray(value, float)).T)
                array.attrs["MATLAB_class"] = np.bytes_("double")


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    save_v73(root / "lfw_att_40.mat", name=FILES, AttrName=COLUMNS, label=LABELS)
    save_v73(root / "indices_train_test.mat", **INDICES)
    for file in FILES:
        picture(root / "lfw" / file.replace("\\", "/"))


def face(male, beard, eyeglasses):
    flags = {"male": male, "beard": beard, "eyeglasses": eyeglasses}
    return {"attributes": flags, "gender": "male" if male else "female"}


RECORDS = {
    "lfwa_Ann_A_0001": ("train", face(False, False, False)),
    "lfwa_Ann_A_0002": ("train", face(False, False, True)),
    "lfwa_Bo_B_0001": ("test", face(True, True, False)),
}
CASES = [
    Case(
        records=RECORDS,
        dropped={"in neither list of indices": 1},
        subjects={"lfwa_Ann_A_0002": "lfwa_Ann_A"},
    ),
    Case(
        protocol="lfwa/official-val10",
        records={
            key: (split if split == "test" else hash_split(key[:-5], "hash-90-10-0"), labels)
            for key, (split, labels) in RECORDS.items()
        },
        dropped={"in neither list of indices": 1},
    ),
]
