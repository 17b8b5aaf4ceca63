"""``morph2``: MORPH Album 2, age and gender of mug shots over years (Ricanek and Tesafaye 2006).

Splits go by person: the random 80/20 split of the literature puts a person's pictures on both
sides and is not offered. Where a person's rows disagree on the gender (arXiv 1811.06446 counts
such rows) it is unknown. Race, facial hair and glasses have undocumented codes and are left out.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import first, home, iter_csv, need, need_home, translated
from data_pipeline.sources.base import Rows, Source, SourceOptions, Variant, hash_split, reading
from face_mllm.errors import UserError

LIST = (
    "morph_2008_nonCommercial.csv",
    "CSV/morph_2008_nonCommercial.csv",
    "morph_2008_commercial.csv",
)
COLUMNS = ("photo", "id_num", "gender", "age")
PICTURES = "Album2"


def detect(root: Path) -> Variant | None:
    """Recognise MORPH-II by its csv."""
    base = home(root, *LIST, inner=("CSV", PICTURES))
    if base is None:
        return None
    missing = () if first(base, PICTURES) else (PICTURES,)
    return Variant(need(base, *LIST).stem, missing)


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield a record per row of the csv.

    Raises:
        UserError: no csv, a column that is not there, or a cell that is no age or gender.
    """
    base = need_home(root, "MORPH-II", *LIST, inner=("CSV", PICTURES))
    path, name = need(base, *LIST), options.name or "morph2"
    table = pd.concat(list(iter_csv(path, COLUMNS)))
    table["gender"] = translated(table["gender"], codes("morph2", "gender"), path)
    table["id_num"] = table["id_num"].str.strip()
    certain = table.groupby("id_num")["gender"].transform("nunique") == 1
    ages = _ages(table, path)
    for photo, person, gender, sure, age in zip(
        table["photo"], table["id_num"], table["gender"], certain, ages, strict=True
    ):
        file = photo.strip().replace("\\", "/")
        subject = f"{name}_{person}"
        yield FaceRecord(
            id=f"{name}_{Path(file).stem}",
            source=name,
            split=hash_split(subject, protocol.settings["split"]),
            subject=subject,
            image=str(_picture(base.resolve(), file)),
            labels={"age": age} | ({"gender": gender} if sure else {}),
            licence=options.licence,
        )


def _picture(base: Path, file: str) -> Path:
    """Return the path of a photo, which the list writes with or without its folder."""
    return base / file if file.startswith(f"{PICTURES}/") else base / PICTURES / file


def _ages(table: pd.DataFrame, path: Path) -> list[int]:
    with reading(path, ValueError):
        ages = pd.to_numeric(table["age"], errors="coerce")
    bad = ~ages.between(1, 120)
    if bad.any():
        row = table.index[bad.argmax()]
        raise UserError(
            f"{path}: row {row}, column 'age': {table['age'][row]!r} is no age", "mend the row"
        )
    return ages.astype(int).tolist()


SOURCE = Source(
    name="morph2",
    summary="MORPH-II: age and gender, splits by person",
    read_rows=read_rows,
    protocols=protocols("morph2"),
    detect=detect,
    licence="research agreement",
)
