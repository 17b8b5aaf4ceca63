"""LAION-Face in miniature: WebDataset of img2dataset, a failed link, a refused picture."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from data_pipeline.sources import hash_split
from source_fixtures import Case

NAME = "laion_face"
SAMPLES = {
    "000000000": {"caption": "a  man in Paris", "NSFW": "UNLIKELY", "SAMPLE_ID": 7},
    "000000001": {"caption": "", "NSFW": "NSFW"},
    "000000002": {"caption": None, "url": "https://example.org/2.jpg"},
}


def jpeg(size=(24, 24)):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write(root: Path) -> None:
    files = {}
    for key, facts in SAMPLES.items():
        files |= {
            f"{key}.jpg": jpeg(),
            f"{key}.txt": b"-",
            f"{key}.json": json.dumps(facts).encode(),
        }
    pack(root / "00000.tar", files)
    pack(root / "00001.tar", {"000010000.json": b'{"status": "failed_to_download"}'})
    (root / "00000_stats.json").write_text("{}")
    (root / "laion_face_ids.pth").write_bytes(b"not loaded")


CASES = [
    Case(
        records={
            f"laion_face_{key}": (hash_split(f"laion_face_{key}", "hash-98-1-1"), {})
            for key in ("000000000", "000000002")
        },
        dropped={"link not downloaded": 1, "marked NSFW by LAION": 1},
    )
]
