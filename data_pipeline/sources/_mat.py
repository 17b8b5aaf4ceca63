"""MATLAB files as plain numpy: up to v7 through scipy, v7.3 (HDF5) through h5py, in one shape.

Both libraries are an optional extra and are imported when the first such file is read.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.sources.base import reading
from face_mllm.errors import UserError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # MATLAB writes its own header before the HDF5 signature


def load_mat(path: Path, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return variable name -> value of a ``.mat`` file of any version.

    Arrays come in MATLAB's orientation without dimensions of length one (1x7 -> 7, 1x1 -> number),
    character arrays as ``str``, cell arrays as lists, structures as dicts.

    Args:
        only: read these variables alone (those that exist); all when empty.

    Raises:
        UserError: no such file, not a MATLAB file, or the reading library is not installed.
    """
    with reading(path), path.open("rb") as file:
        head = file.read(_USER_BLOCK + len(_HDF5))
    reader = _load_hdf5 if _HDF5 in (head[:8], head[_USER_BLOCK:]) else _load_v5
    try:
        return reader(path, only)
    except UserError:
        raise
    except Exception as error:  # what parsers raise of broken files has no common base
        raise UserError(
            f"{path}: not a readable MATLAB file ({error})", "unpack it again"
        ) from error


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"{path}: reading MATLAB files needs {package}", "pip install 'face-mllm[readers]'"
        ) from error


def _load_v5(path: Path, only: tuple[str, ...]) -> dict[str, Any]:
    read = _library("scipy.io", path).loadmat
    found = read(path, variable_names=list(only) or None, simplify_cells=True)
    return {name: _plain(value) for name, value in found.items() if not name.startswith("__")}


def _plain(value: Any) -> Any:
    """Lists for the cell arrays scipy gives as arrays of objects or strings."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return [_plain(item) for item in value.ravel(order="F")]
    return value


def _load_hdf5(path: Path, only: tuple[str, ...]) -> dict[str, Any]:
    h5py = _library("h5py", path)
    with h5py.File(path, "r") as file:
        names = [name for name in file if not name.startswith("#") and (not only or name in only)]
        return {name: _hdf5_value(file[name], file) for name in names}


def _hdf5_value(item: Any, file: Any) -> Any:
    if hasattr(item, "keys"):  # a structure is a group
        return {name: _hdf5_value(item[name], file) for name in item}
    kind = item.attrs.get("MATLAB_class", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if item.attrs.get("MATLAB_empty", 0):
        return {"char": "", "cell": []}.get(kind, np.empty(0))
    array = np.asarray(item[()])
    if array.dtype.kind == "O":  # a cell array holds references
        # HDF5 keeps MATLAB's column order, so C order here is column order there
        return [_hdf5_value(file[reference], file) for reference in array.ravel()]
    if kind == "char" or (not kind and array.dtype == np.uint16):
        rows = ["".join(map(chr, row)) for row in np.atleast_2d(array.T)]
        return rows[0] if len(rows) == 1 else rows
    squeezed = np.squeeze(array.T)
    return squeezed.item() if squeezed.ndim == 0 else squeezed
