"""``afad``: Asian Face Age Dataset, folders ``<age>/<111 male | 112 female>`` (Niu et al. 2016).

Files are ``<id>-n.jpg``; pictures of one id are one subject, so they never stand in two splits.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import home, need_home
from data_pipeline.sources.base import (
    IMAGE_SUFFIXES,
    LITTER,
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
)

MARKS = tuple(f"{age}/{gender}" for age in range(15, 76) for gender in (111, 112))
FILE = re.compile(r"(.+)-(\d+)\.\w+")
LITE = range(15, 41)


def detect(root: Path) -> Variant | None:
    """Recognise AFAD by a folder of an age that holds a folder of a gender."""
    base = home(root, *MARKS)
    if base is None:
        return None
    full = any(age not in LITE for age in _ages(base))
    return Variant("Full (ages beyond 40)" if full else "Lite (ages 15-40)")


def _ages(base: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(base) if name.isdigit())


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield a record per picture, ages and ids ascending.

    Raises:
        UserError: when no folder has the shape ``<age>/<111 or 112>``.
    """
    base, name = need_home(root, "AFAD", *MARKS), options.name or "afad"
    for age in _ages(base):
        for code, gender in codes("afad", "gender").items():
            folder = base / str(age) / str(code)
            for file in sorted(os.listdir(folder)) if folder.is_dir() else ():
                where, fields = f"{age}/{code}/{file}", FILE.fullmatch(file)
                if file in LITTER:
                    continue
                if Path(file).suffix.lower() not in IMAGE_SUFFIXES:
                    yield Dropped("not an image file", where)
                elif fields is None:
                    yield Dropped("malformed name", where)
                else:
                    subject = f"{name}_{fields[1]}"
                    yield FaceRecord(
                        id=f"{name}_{age}_{code}_{fields[1]}-{fields[2]}",
                        source=name,
                        split=hash_split(subject, protocol.settings["split"]),
                        subject=subject,
                        image=f"{folder.resolve()}/{file}",
                        labels={"age": age, "gender": gender},
                        licence=options.licence,
                    )


SOURCE = Source(
    name="afad",
    summary="AFAD: age and gender from the folders",
    read_rows=read_rows,
    protocols=protocols("afad"),
    detect=detect,
    licence="non-commercial research",
)
