"""Frozen features computed once: a CLIP that is never trained, and a cache keyed by content.

A feature depends on the picture's bytes, the tower's weights, how pixels are made and the number
format, so exactly these are the key: a renamed dataset finds its features again, another
checkpoint never does. Parts are written whole or not at all; several processes may share a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from data_pipeline.records import FaceRecord
from face_mllm.compose import folder_fingerprint
from face_mllm.embedded.cache import cache_dir
from face_mllm.errors import UserError
from face_mllm.face_clip.model import load_face_clip
from face_mllm.hardware import usable_cpus
from face_mllm.model.processing import load_image_processor
from face_mllm.model.vision import image_tokens
from face_mllm.progress import Progress
from face_mllm.references import resolve

Columns = dict[str, torch.Tensor]  # name -> [pictures, ...]
Compute = Callable[[list[Image.Image]], Columns]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64
PART = 2048  # pictures in one file of the cache: what an interruption can cost
# settings of a processor that say where it came from, not what it does
_IDLE_SETTINGS = ("_name_or_path", "processor_class", "_processor_class", "transformers_version")


@dataclass(frozen=True)
class PixelRule:
    """How a picture becomes the tower's pixels; the default is the tower's own processor.

    Args:
        squash: resize to the tower's square without regard to shape, instead of its own crop.
        mean, std: normalisation per channel; None takes the processor's.
    """

    squash: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class FrozenClip:
    """A CLIP, SigLIP or dual-encoder folder in eval mode, without gradients.

    Args:
        reference: hub id, folder or ``embedded:NAME``.
        rule: how pixels are made; papers differ from the tower's processor here.
        dtype: of weights and features.
        device: where it runs; what it returns is on the CPU.
        fingerprint: of the weights an artifact was trained on; another one is refused.

    Raises:
        UserError: no such model, not a dual encoder, or another fingerprint.
    """

    def __init__(
        self,
        reference: str,
        rule: PixelRule = PixelRule(),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        fingerprint: str = "",
    ) -> None:
        self.reference, self.rule, self.dtype, self.device = reference, rule, dtype, device
        self.folder = resolve(reference)
        self.fingerprint = folder_fingerprint(self.folder)
        if fingerprint and fingerprint != self.fingerprint:
            raise UserError(
                f"{reference} is not the CLIP this expert was trained on "
                f"(fingerprint {self.fingerprint[:12]}, expected {fingerprint[:12]})",
                "point the reference at the original weights",
            )
        self.model: Any = _load_clip(self.folder, dtype).to(device).requires_grad_(False).eval()
        self.processor: Any = load_image_processor(self.folder)
        blank = self.pixels(self.squares([Image.new("RGB", (64, 64))]))
        features = self.forward(blank, tokens=True)
        self.size: int = blank.shape[-1]
        self.width: int = features["embedding"].shape[-1]
        self.token_width: int = features["tokens"].shape[-1]

    @property
    def logit_scale(self) -> torch.Tensor:
        """The inverse temperature CLIP was trained to, exp(logit_scale)."""
        return self.model.logit_scale.detach().float().exp().cpu()

    def squares(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Cut pictures to the tower's square, uint8 [N, 3, size, size]."""
        if not self.rule.squash:
            made = self.processor(
                list(images), do_rescale=False, do_normalize=False, return_tensors="pt"
            )
            return made["pixel_values"].round().clamp(0, 255).to(torch.uint8)
        side = self._side()
        resized = [image.convert("RGB").resize((side, side), _BILINEAR) for image in images]
        return torch.from_numpy(np.stack([np.asarray(i) for i in resized])).permute(0, 3, 1, 2)

    def _side(self) -> int:
        made = self.processor([Image.new("RGB", (64, 64))], return_tensors="pt")
        return made["pixel_values"].shape[-1]

    def pixels(self, squares: torch.Tensor) -> torch.Tensor:
        """Normalise squares: uint8, or float in 0-1, to what the tower reads."""
        scaled = squares.float() / 255 if squares.dtype == torch.uint8 else squares
        mean = torch.tensor(self.rule.mean or self.processor.image_mean).view(3, 1, 1)
        std = torch.tensor(self.rule.std or self.processor.image_std).view(3, 1, 1)
        return (scaled - mean.to(scaled.device)) / std.to(scaled.device)

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor, tokens: bool = False) -> Columns:
        """Features of normalised pixels.

        Returns:
            ``embedding`` [N, D], in the joint space and not normalised; with ``tokens`` also
            ``tokens`` [N, T, C], the patch states (or cells of a CNN) before the projection.
        """
        pixels = pixels.to(self.device, self.dtype)
        made = {"embedding": self.model.get_image_features(pixel_values=pixels).pooler_output}
        if tokens:
            made["tokens"] = image_tokens(self.model.vision_model, pixels, -1, "patch")
        return {name: value.cpu() for name, value in made.items()}

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Joint-space embeddings [texts, D], not normalised."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**inputs.to(self.device)).pooler_output.cpu()

    def identity(self) -> dict[str, Any]:
        """All that decides a feature beside the picture."""
        settings = self.processor.to_dict()
        return {
            "weights": self.fingerprint,
            "processor": {k: v for k, v in settings.items() if k not in _IDLE_SETTINGS},
            "rule": dataclasses.asdict(self.rule),
            "dtype": str(self.dtype),
        }

    def features(
        self,
        records: Iterable[FaceRecord],
        *,
        tokens: bool = False,
        mirror: bool = False,
        root: Path | None = None,
        progress: Progress | None = None,
    ) -> Columns:
        """Features of faces, from the cache where they are known.

        Args:
            records: the faces, in the order of the rows returned.
            tokens: patch states too, see :meth:`forward`.
            mirror: of the mirrored pictures.
            root: cache folder, the user's if not given.
            progress: told of pictures done.
        """

        def compute(images: list[Image.Image]) -> Columns:
            pixels = self.pixels(self.squares(images))
            return self.forward(pixels.flip(-1) if mirror else pixels, tokens)

        cache = FeatureCache({**self.identity(), "tokens": tokens, "mirror": mirror}, root)
        return cache.features(records, compute, progress)


_BILINEAR = Image.Resampling.BILINEAR


def _load_clip(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind == "vision-text-dual-encoder":  # the stock class cannot pool a CNN
            return load_face_clip(folder, dtype)
        model = AutoModel.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a model this transformers version can load ({error})",
            "give a Hugging Face CLIP or SigLIP folder or id",
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "vision_model"):
        raise UserError(
            f"{folder}: a {kind} model has no image embedding in a joint space",
            "give a CLIP, SigLIP or vision-text dual encoder",
        )
    return model


class FeatureCache:
    """Columns of features by content of the picture, in memory and on disk.

    Args:
        identity: all that decides a feature beside the picture; JSON-able.
        root: folder of all caches; the user's cache folder if not given.
    """

    def __init__(self, identity: Mapping[str, Any], root: Path | None = None) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.folder = (root or cache_dir() / "features") / digest[:32]
        self.identity = text
        self.rows: dict[bytes, tuple[Columns, int]] = {}
        for path in sorted(self.folder.glob("part-*.safetensors")):
            self._read(path)

    def features(
        self, records: Iterable[FaceRecord], compute: Compute, progress: Progress | None = None
    ) -> Columns:
        """Columns of the records, computing what is not known yet.

        Args:
            records: a face each row; read once, a part at a time.
            compute: upright RGB pictures -> columns with one row a picture.
            progress: told of pictures done; the total is 0 where ``records`` has no length.

        Raises:
            UserError: a broken or missing picture, by id; no records.
        """
        total = len(records) if isinstance(records, Sequence) else 0
        keys: list[bytes] = []
        stream = iter(records)
        with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow lets go of the interpreter lock
            while chunk := list(islice(stream, PART)):
                chunk = list(pool.map(_with_bytes, chunk))
                names = [content_key(record) for record in chunk]
                new = {n: r for n, r in zip(names, chunk, strict=True) if n not in self.rows}
                if new:
                    self._add(list(new), _in_batches(list(new.values()), compute, pool))
                keys += names
                if progress:
                    progress(len(keys), total, "frozen features")
        if not keys:
            raise UserError("no faces to compute features of", "check the split and its labels")
        found = [self.rows[key] for key in keys]
        return {n: torch.stack([columns[n][row] for columns, row in found]) for n in found[0][0]}

    def _add(self, keys: list[bytes], columns: Columns) -> None:
        """Remember a part and write it whole or not at all."""
        self._remember(keys, columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "identity.json").write_text(self.identity + "\n")
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        partial = self.folder / f".{name}.{uuid.uuid4().hex[:8]}"
        table = torch.from_numpy(np.frombuffer(b"".join(keys), np.uint8).copy()).view(-1, 32)
        try:
            save_file({**columns, "keys": table}, partial)
            os.replace(partial, self.folder / f"part-{name}.safetensors")
        finally:
            partial.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            columns = load_file(path)
            keys = [row.tobytes() for row in columns.pop("keys").numpy()]
        except (OSError, SafetensorError, KeyError):
            return  # damaged: what it held is computed again
        self._remember(keys, columns)

    def _remember(self, keys: list[bytes], columns: Columns) -> None:
        self.rows.update({key: (columns, row) for row, key in enumerate(keys)})


def content_key(record: FaceRecord) -> bytes:
    """sha256 of the encoded picture and its box, 32 bytes."""
    digest = hashlib.sha256(_with_bytes(record).image)  # type: ignore[arg-type]
    if record.box:
        digest.update(np.asarray(record.box, np.float32).tobytes())
    return digest.digest()


def _with_bytes(record: FaceRecord) -> FaceRecord:
    """The record with its picture's encoded bytes, read from the file if it names one."""
    if isinstance(record.image, bytes):
        return record
    try:
        return dataclasses.replace(record, image=Path(record.image).read_bytes())
    except OSError as error:
        raise UserError(
            f"{record.id}: {record.image} cannot be read ({error.strerror})", "check the path"
        ) from error


def _in_batches(records: list[FaceRecord], compute: Compute, pool: ThreadPoolExecutor) -> Columns:
    parts = []
    for start in range(0, len(records), BATCH):
        images = list(pool.map(FaceRecord.open_image, records[start : start + BATCH]))
        parts.append(compute(images))
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
