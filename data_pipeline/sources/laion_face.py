"""``laion_face``: LAION-Face, web pictures with a face and their web captions (Zheng et al. 2022).

The dataset is a list of ids (``laion_face_ids.pth``) into LAION-400M: joined with its parquet parts
it gives links, which img2dataset downloads. This reads what img2dataset wrote, in any of its three
forms. The ids and ``sample2detect_*.pth`` are pickles and are only recognised, never loaded.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._img2dataset import form, samples
from data_pipeline.sources._lists import home
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
)
from face_mllm.errors import UserError

IDS = "laion_face_ids.pth"
HOW = (
    "join the ids with LAION-400M's parquet parts and download the links: img2dataset --url_list "
    "laion_face_part_00000.parquet --input_format parquet --url_col URL --caption_col TEXT "
    '--output_format webdataset --save_additional_columns \'["SAMPLE_ID","NSFW"]\''
)


def detect(root: Path) -> Variant | None:
    """Recognise ids, link lists named after the set, or shards of img2dataset beside them."""
    base = home(root, IDS) or root
    if not base.is_dir():
        return None
    lists = sorted(base.glob("laion_face_part_*.parquet"))
    known = (base / IDS).exists() or lists or "laion" in base.resolve().name.lower()
    if not known:
        return None
    kind = form(base)
    if kind:
        return Variant(f"pictures by img2dataset ({kind})")
    if lists:
        return Variant("links without pictures", ("00000.tar",), (HOW,))
    return (
        Variant("ids without pictures", ("00000.tar",), (HOW,)) if (base / IDS).exists() else None
    )


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield a record per downloaded picture.

    Raises:
        UserError: ids or links alone, or a shard that cannot be read.
    """
    base, name = home(root, IDS) or root, options.name or "laion_face"
    if not form(base):
        raise UserError(f"{base}: no pictures: no shards of img2dataset", HOW)
    for sample in samples(base):
        key = f"{name}_{sample.key}"
        if sample.image is None:
            yield Dropped("link not downloaded", sample.key)
        elif str(sample.facts.get("nsfw")).upper() in protocol.settings["refused"]:
            yield Dropped("marked NSFW by LAION", sample.key)
        else:
            yield FaceRecord(
                id=key,
                source=name,
                split=hash_split(key, protocol.settings["split"]),
                subject=key,
                image=sample.image,
                labels={},
                caption=" ".join(str(sample.facts.get("caption") or "").split()),
                licence=options.licence,
            )


SOURCE = Source(
    name="laion_face",
    summary="LAION-Face: web captions, as img2dataset downloaded them",
    read_rows=read_rows,
    protocols=protocols("laion_face"),
    detect=detect,
    licence="ids CC BY 4.0, pictures of their owners",
    overlaps=("facecaption",),
)
