"""``fairface``: FairFace, age bands and gender of balanced photographs (Kärkkäinen and Joo 2021).

A spreadsheet turns the band 3-9 into the date ``9-Mar``: such cells are read back where the date
can only be a band of FairFace, and refused otherwise. The dataset's race column is not a label of
this package and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from data_pipeline.labels.ages import FAIRFACE_BANDS, canonical_band
from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import absent, first, home, iter_csv, need, need_home, translated
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
)
from face_mllm.errors import UserError

LISTS = {"train": "fairface_label_train.csv", "val": "fairface_label_val.csv"}
COLUMNS = ("file", "age", "gender", "service_test")
PICTURES = {
    "margin025": "fairface-img-margin025-trainval",
    "margin125": "fairface-img-margin125-trainval",
}


class FairFaceOptions(SourceOptions):
    """Options of ``fairface``.

    Args:
        pictures: which of the two archives to read where both are unpacked.
    """

    pictures: Literal["margin025", "margin125"] = "margin025"


def detect(root: Path) -> Variant | None:
    """Recognise FairFace by its label lists."""
    base = home(root, *LISTS.values())
    if base is None:
        return None
    there = [word for word, folder in PICTURES.items() if (base / folder).is_dir()]
    name = f"pictures of {' and '.join(there)}" if there else "pictures in the root"
    pictures = () if there else ((PICTURES["margin025"], "train"),)
    missing = absent(base, *((file,) for file in LISTS.values()), *pictures)
    ages = {age for file in LISTS.values() if (base / file).is_file() for age in _ages(base / file)}
    dated = sorted(age for age in ages if age[-1:].isalpha())
    notes = (f"ages turned into dates by a spreadsheet, read back: {', '.join(dated)}",)
    return Variant(name, missing, notes if dated else ())


def _ages(path: Path) -> Iterable[str]:
    for table in iter_csv(path, ("file", "age")):
        yield from table["age"].unique()


def read_rows(root: Path, options: FairFaceOptions, protocol: Protocol) -> Rows:
    """Yield a record per row of both lists.

    Raises:
        UserError: a list that is not there, or a cell that is no band, gender or flag.
    """
    base, name = need_home(root, "FairFace", *LISTS.values()), options.name or "fairface"
    folder = first(base, PICTURES[options.pictures], *PICTURES.values()) or base
    for part, file in LISTS.items():
        path = need(base, file)
        for table in iter_csv(path, COLUMNS):
            for picture, band, gender, service in _cells(table, path):
                key = f"{name}_{picture.rsplit('.', 1)[0].replace('/', '_')}"
                if protocol.settings.get("only_service_test") and not service:
                    yield Dropped("not in the service_test subset", picture)
                    continue
                yield FaceRecord(
                    id=key,
                    source=name,
                    split=_split(part, key, protocol),
                    subject=key,
                    image=f"{folder.resolve()}/{picture}",
                    labels={"age_band": band, "gender": gender},
                    licence=options.licence,
                )


def _cells(table: pd.DataFrame, path: Path) -> Iterable[tuple[str, str, str, bool]]:
    bands = {word: band for word in table["age"].unique() if (band := _band(word, table, path))}
    return zip(
        table["file"].str.strip().str.replace("\\", "/"),
        (bands[word] for word in table["age"]),
        translated(table["gender"], codes("fairface", "gender"), path),
        translated(table["service_test"], codes("fairface", "service_test"), path),
        strict=True,
    )


def _band(word: str, table: pd.DataFrame, path: Path) -> str:
    try:
        band = canonical_band(word)
    except UserError:
        band = ""
    if band in FAIRFACE_BANDS:
        return band
    row = table.index[(table["age"] == word).argmax()]
    raise UserError(
        f"{path}: row {row}, column 'age': {word!r} is no age band of FairFace",
        "a spreadsheet may have turned it into a date; download the file again",
    )


def _split(part: str, key: str, protocol: Protocol) -> str:
    if part == "train" and "hold_out" in protocol.settings:
        return hash_split(key, protocol.settings["hold_out"])
    return protocol.settings.get(part, part)


SOURCE = Source(
    name="fairface",
    summary="FairFace: age bands and gender, either picture margin",
    read_rows=read_rows,
    options=FairFaceOptions,
    protocols=protocols("fairface"),
    detect=detect,
    licence="CC BY 4.0",
)
