"""``maadface``: MAAD-Face, 47 attributes of VGGFace2's pictures (Terhörst et al. 2021).

Labels were transferred by machine; 1 is present, -1 absent and 0 undefined, which is unknown.
``images`` points to VGGFace2 (folders ``train`` and ``test``).
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import Flags, csv_header, home, iter_csv, need, need_home
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
)
from data_pipeline.sources.vggface2 import person_folder

LIST = ("MAAD_Face.csv", "MAAD-Face.csv")
KEYS = ("Filename", "Identity")


class MaadOptions(SourceOptions):
    """Options of ``maadface``.

    Args:
        images: VGGFace2's folder; that of the list when absent.
    """

    images: Path | None = None


def detect(root: Path) -> Variant | None:
    """Recognise MAAD-Face by its csv."""
    base = home(root, *LIST)
    if base is None:
        return None
    count = len(csv_header(need(base, *LIST))) - len(KEYS)
    there = any((base / name).is_dir() for name in ("train", "test", "data"))
    note = "no pictures beside the list: give VGGFace2's folder as `images:`"
    return Variant(f"{count} attributes", notes=() if there else (note,))


def read_rows(root: Path, options: MaadOptions, protocol: Protocol) -> Rows:
    """Yield a record per row of the csv, in its order, a part of it in memory at a time.

    Raises:
        UserError: no csv, a column that is not there, or a code other than 1, 0 and -1.
    """
    base, name = need_home(root, "MAAD-Face", *LIST), options.name or "maadface"
    path, images = need(base, *LIST), (options.images or base).resolve()
    columns = [column for column in csv_header(path) if column not in KEYS]
    flags, rule = Flags(columns, codes("maadface", "attribute")), protocol.settings.get("split")
    for table in iter_csv(path, (*KEYS, *columns), text=False):
        persons = table["Identity"].astype(str)
        for file, person, row in zip(
            table["Filename"], persons, flags.rows(table, path), strict=True
        ):
            where = file if "/" in file else f"{person}/{file}"
            person, _, picture = where.partition("/")
            part, folder = person_folder(images, person) or (None, images / "train" / person)
            if rule is None and part is None:
                yield Dropped("identity in neither train nor test folder", where)
                continue
            subject = f"{name}_{person}"
            yield FaceRecord(
                id=f"{subject}_{picture.rsplit('.', 1)[0]}",
                source=name,
                split=hash_split(subject, rule) if rule else str(part),
                subject=subject,
                image=f"{folder}/{picture}",
                labels=flags.labels(row),
                licence=options.licence,
            )


SOURCE = Source(
    name="maadface",
    summary="MAAD-Face: 47 attributes of VGGFace2 (`images:`), 0 is unknown",
    read_rows=read_rows,
    options=MaadOptions,
    protocols=protocols("maadface"),
    detect=detect,
    licence="labels CC BY-SA 4.0, pictures non-commercial research",
    overlaps=("vggface2",),
)
