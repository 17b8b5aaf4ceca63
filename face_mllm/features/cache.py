"""Columns of features by content, in parts on disk that appear whole or not at all.

A feature depends on the item's bytes and on whatever computes it, so exactly these are the key: a
renamed dataset finds its features again, another checkpoint never does. Parts are memory-mapped,
so a cache may be larger than memory; several processes may fill one folder, at worst computing the
same feature twice, and a killed one loses the part it had not yet written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_pipeline.records import FaceRecord
from face_mllm.embedded.cache import cache_dir
from face_mllm.errors import UserError
from face_mllm.hardware import usable_cpus
from face_mllm.outputs import whole_file, write_whole
from face_mllm.progress import Progress

Columns = dict[str, torch.Tensor]  # name -> [items, ...]
Item = TypeVar("Item")

FORMAT = 1  # of the parts; another one is another folder
BATCH = 64
PART_ROWS, PART_BYTES = 2048, 256 << 20  # what is computed before a part is written
# settings of a processor or model that say where it came from, not what it does
_IDLE = ("_name_or_path", "processor_class", "_processor_class", "transformers_version", "dtype")


class FeatureCache:
    """Columns of features by key.

    Args:
        identity: all that decides a feature beside the item; JSON-able.
        root: folder of all caches; the user's cache folder if not given.
    """

    def __init__(self, identity: Mapping[str, Any], root: Path | None = None) -> None:
        self.identity = json.dumps({**identity, "format": FORMAT}, sort_keys=True, default=str)
        digest = hashlib.sha256(self.identity.encode()).hexdigest()
        self.folder = (root or cache_dir() / "features") / digest[:32]
        self._rows: dict[bytes, tuple[Columns, int]] = {}
        self._parts: set[str] = set()
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> None:
        """Take up parts that other processes have written since."""
        for path in sorted(self.folder.glob("part-*.safetensors")):
            if path.name not in self._parts:
                self._read(path)

    def fill(
        self,
        items: Iterable[tuple[bytes, Item]],
        compute: Callable[[list[Item]], Columns],
        *,
        batch: int = BATCH,
        total: int = 0,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Compute what is not known yet.

        Args:
            items: (key, item) pairs, read once; memory holds a batch of items and a part.
            compute: at most ``batch`` items -> columns with one row an item.
            total: number of items, told to ``progress``; 0 for unknown.
            progress: told of items done.

        Returns:
            The keys in the order of the items, for :meth:`gather`.
        """
        self.refresh()
        keys: list[bytes] = []
        part = _Part()
        stream = iter(items)
        try:
            while chunk := list(islice(stream, batch)):
                keys += [key for key, _ in chunk]
                new = {k: i for k, i in chunk if k not in self._rows and k not in part.keys}
                if new:
                    part.add(list(new), compute(list(new.values())))
                if part.is_full:
                    self._write(part)
                    part = _Part()
                if progress:
                    progress(len(keys), total, "frozen features")
        finally:  # an interruption keeps what was computed
            self._write(part)
        return keys

    def gather(self, keys: Sequence[bytes]) -> Columns:
        """Columns of the keys, in their order.

        Raises:
            KeyError: a key that no part holds.
        """
        if any(key not in self._rows for key in keys):
            self.refresh()
        found = [self._rows[key] for key in keys]
        return {n: torch.stack([columns[n][row] for columns, row in found]) for n in found[0][0]}

    def _write(self, part: _Part) -> None:
        """Put a part on disk, then read it from there: the map costs no memory."""
        if not part.keys:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"part-{hashlib.sha256(b''.join(part.keys)).hexdigest()[:24]}.safetensors"
        table = np.frombuffer(b"".join(part.keys), np.uint8).copy()
        keys = torch.from_numpy(table).view(len(part.keys), -1)
        write_whole(self.folder / "identity.json", self.identity + "\n")
        with whole_file(self.folder / name) as path:
            save_file({**part.joined(), "keys": keys}, path)
        self._read(self.folder / name)

    def _read(self, path: Path) -> None:
        self._parts.add(path.name)
        try:
            columns = load_file(path)
            keys = [row.tobytes() for row in columns.pop("keys").numpy()]
        except (OSError, SafetensorError, KeyError):
            return  # damaged: what it held is computed again
        self._rows.update({key: (columns, row) for row, key in enumerate(keys)})


class _Part:
    """Rows that are computed and not yet written."""

    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.columns: list[Columns] = []
        self.bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.keys) >= PART_ROWS or self.bytes >= PART_BYTES

    def add(self, keys: list[bytes], columns: Columns) -> None:
        self.keys.update(dict.fromkeys(keys))
        self.columns.append(columns)
        self.bytes += sum(value.nbytes for value in columns.values())

    def joined(self) -> Columns:
        names = self.columns[0]
        return {n: torch.cat([each[n] for each in self.columns]).contiguous() for n in names}


def face_features(
    cache: FeatureCache,
    records: Iterable[FaceRecord],
    compute: Callable[[list[Image.Image]], Columns],
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> list[bytes]:
    """Fill a cache with features of faces, keyed by the bytes of their pictures.

    Args:
        records: read once.
        compute: upright RGB pictures -> columns with one row a picture.

    Returns:
        A key each record.

    Raises:
        UserError: a broken or missing picture, by id; no records.
    """
    total = len(records) if isinstance(records, Sequence) else 0
    with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow lets go of the interpreter lock

        def opened(faces: list[FaceRecord]) -> Columns:
            return compute(list(pool.map(FaceRecord.open_image, faces)))

        pairs = _with_keys(records, pool, batch)
        keys = cache.fill(pairs, opened, batch=batch, total=total, progress=progress)
    if not keys:
        raise UserError("no faces to compute features of", "check the split and its labels")
    return keys


def _with_keys(
    records: Iterable[FaceRecord], pool: ThreadPoolExecutor, batch: int
) -> Iterator[tuple[bytes, FaceRecord]]:
    stream = iter(records)
    while chunk := list(islice(stream, batch)):
        yield from zip(pool.map(content_key, chunk), chunk, strict=True)


def content_key(record: FaceRecord) -> bytes:
    """sha256 of the encoded picture, 32 bytes; a file and its bytes are one picture.

    Raises:
        UserError: a file that cannot be read, by id.
    """
    if isinstance(record.image, bytes):
        return hashlib.sha256(record.image).digest()
    try:
        return hashlib.sha256(Path(record.image).read_bytes()).digest()
    except OSError as error:
        raise UserError(
            f"{record.id}: {record.image} cannot be read ({error.strerror})", "check the path"
        ) from error


def model_identity(model: torch.nn.Module) -> dict[str, Any]:
    """What a model is, whatever it is called: its settings and every weight it holds."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings: Any = getattr(model, "config", None)
    return {"weights": digest.hexdigest(), "config": settings_identity(settings)}


def settings_identity(settings: Any) -> dict[str, Any]:
    """A processor's or model's settings without what says only where it came from."""
    found = settings.to_dict() if settings is not None else {}
    return {key: value for key, value in found.items() if key not in _IDLE}
