"""``sfew``: SFEW 2.0, frames of films in class folders, aligned faces.

``Val/Val_Aligned_Faces/Angry/21_012215600_00000004.png``; the test labels are private. Layout:
loaders of the distribution; Dhall et al. 2011, 2015.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import RESEARCH, absent, class_rows, find, need
from data_pipeline.sources.base import Rows, Source, SourceOptions, Variant

SETS = ("Train", "Val")
FACES = tuple(f"{name}/{name}_Aligned_Faces" for name in SETS)
FRAMES = tuple(f"{name}/Angry" for name in SETS)


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per aligned face, or per frame where the class folders hold frames.

    Raises:
        UserError: neither is there, or a folder is no class.
    """
    home = need(root, *FACES, *FRAMES).parent.parent
    for name, split in protocol.settings["splits"].items():
        folder = home / name / f"{name}_Aligned_Faces"
        place = folder if folder.is_dir() else home / name
        if place.is_dir():
            yield from class_rows("sfew", options, [(split, place)], codes("sfew", "expression"))


def detect(root: Path) -> Variant | None:
    """Tell aligned faces from original frames."""
    if faces := find(root, *FACES):
        test = ("the test set has no public labels and is not read",)
        return Variant("aligned faces", absent(faces.parent.parent, *FACES), test)
    if frames := find(root, *FRAMES):
        home = frames.parent.parent
        return Variant("original frames", absent(home, *SETS), ("whole frames, no face boxes",))
    return None


SOURCE = Source(
    name="sfew",
    summary="SFEW 2.0: film frames in class folders, aligned faces",
    read_rows=read_rows,
    protocols=protocols("sfew"),
    detect=detect,
    licence=RESEARCH,
    overlaps=("afew",),  # its frames are of AFEW's clips: a `video_list` with `name: afew`
)
