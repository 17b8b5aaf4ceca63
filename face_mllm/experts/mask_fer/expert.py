"""A trained mask-FER: one folder of safetensors and json that loads alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig

from face_mllm.errors import UserError, brief
from face_mllm.experts.mask_fer.backbone import (
    PatchHeadMask,
    ResNetMask,
    load_start,
    resnet_config,
)
from face_mllm.experts.mask_fer.config import MaskFerConfig, MaskSettings
from face_mllm.experts.mask_fer.inputs import Inputs, MaskEye, Read
from face_mllm.experts.mask_fer.model import LogitsFrom, MaskFer
from face_mllm.experts.pixels import mask_fer_rule
from face_mllm.experts.preflight import WEIGHT_FILES, checked_width
from face_mllm.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenClip,
    PixelRule,
)
from face_mllm.model.processing import load_image_processor
from face_mllm.references import resolve
from face_mllm.train import absolute

INFO_FILE, WEIGHTS_FILE = "mask_fer.json", "mask_fer.safetensors"
BATCH = 64


@dataclass
class Shape:
    """Everything that rebuilds the trained part without its data or first weights.

    Args:
        classes: names in the order of the logits.
        clip: reference, fingerprint, dtype and rule of the frozen CLIP.
        mask: the mask settings.
        resnet: configuration of the mask's ResNet; empty without one.
        eye: what the mask network reads.
        logits_from: which logits answer.
    """

    classes: tuple[str, ...]
    clip: dict[str, Any]
    mask: dict[str, Any]
    resnet: dict[str, Any]
    eye: dict[str, Any]
    logits_from: LogitsFrom = "fc"


class MaskFerExpert:
    """Frozen CLIP and trained mask together, ready to answer.

    Args:
        model: the trained part.
        clip: the frozen one.
        shape: how both are built.
        training: what the artifact says of its training.
    """

    def __init__(
        self, model: MaskFer, clip: FrozenClip, shape: Shape, training: dict[str, Any]
    ) -> None:
        self.model, self.clip, self.shape, self.training = model, clip, shape, training
        self.classes, self.eye = shape.classes, MaskEye(**shape.eye)

    @classmethod
    def fresh(cls, config: MaskFerConfig, device: str = "cpu") -> MaskFerExpert:
        """Build an untrained one as the config says; its first weights depend on the seed alone.

        Raises:
            UserError: a model that cannot be had, or that does not fit.
        """
        dtype = getattr(torch, config.clip.dtype)
        clip = FrozenClip(config.clip.model, mask_fer_rule(config.paper_preprocess), dtype, device)
        checked_width(config.clip.model, clip.width, config.clip.width, "clip.width")
        shape = shape_of(config, clip.width, clip.size, clip.fingerprint)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = build_model(shape, clip.width, clip.token_width)
        if config.mask.weights and isinstance(model.mask, ResNetMask):
            load_start(model.mask, config.mask.weights)
        return cls(model.to(device), clip, shape, {})

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> MaskFerExpert:
        """Load the folder a training wrote.

        Raises:
            UserError: no such artifact, damaged, or its CLIP is not the one it was trained on.
        """
        folder = Path(folder)
        shape, training = read_info(folder)
        with damage_named(folder / INFO_FILE):
            reference, fingerprint = shape.clip["model"], shape.clip["fingerprint"]
            rule, dtype = PixelRule(**shape.clip["rule"]), getattr(torch, shape.clip["dtype"])
        clip = FrozenClip(reference, rule, dtype, device, fingerprint)
        model = build_model(shape, clip.width, clip.token_width)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{folder / WEIGHTS_FILE}: missing or damaged ({str(error).splitlines()[0]})",
                "train it again with `face-mllm mask-fer train`",
            ) from error
        return cls(model.to(device).eval(), clip, shape, training)

    def save(self, folder: Path) -> None:
        """Write weights and description into an existing folder."""
        state = {name: value.cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        info = {"kind": "mask_fer", **asdict(self.shape), "training": self.training}
        (folder / INFO_FILE).write_text(json.dumps(info, indent=1, default=str) + "\n")

    def log_probabilities(
        self, images: Sequence[Image.Image], logits_from: LogitsFrom | None = None
    ) -> torch.Tensor:
        """Natural-log probabilities [N, classes] of upright RGB pictures of one face each."""
        return self.answer(self.read(images), logits_from)

    @property
    def width(self) -> int:
        """Of its vectors: CLIP's joint space."""
        return self.model.width

    def vectors(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Masked features x [N, D], what an expert token is projected from."""
        return self.masked(self.read(images))

    def read(self, images: Sequence[Image.Image]) -> Read:
        """What the model reads of pictures, without the feature cache."""
        squares = self.clip.squares(images)
        tokens = self.eye.reads == "tokens"
        made = self.clip.forward(self.clip.pixels(squares), tokens=tokens)
        pixels = self.eye.pixels(squares.float() / 255) if self.eye.reads == "pixels" else None
        return made["embedding"].float(), made["tokens"].float() if tokens else pixels

    @torch.no_grad()
    def masked(self, read: Read) -> torch.Tensor:
        """x of a batch."""
        features, seen = read
        device = self.model.fc.weight.device
        return self.model.masked(
            features.to(device), None if seen is None else seen.to(device)
        ).cpu()

    @torch.no_grad()
    def answer(self, read: Read, logits_from: LogitsFrom | None = None) -> torch.Tensor:
        """Log-probabilities of a batch."""
        x = self.masked(read).to(self.model.fc.weight.device)
        logits = self.model.logits(x, logits_from or self.shape.logits_from)
        return logits.float().log_softmax(-1).cpu()

    def answer_all(
        self, inputs: Inputs, count: int, logits_from: LogitsFrom | None = None
    ) -> torch.Tensor:
        """Log-probabilities [count, classes] of faces whose features are computed."""
        self.model.eval()
        starts = range(0, count, BATCH)
        batches = [inputs.clean(range(at, min(at + BATCH, count))) for at in starts]
        return torch.cat([self.answer(batch, logits_from) for batch in batches])


def shape_of(config: MaskFerConfig, width: int, size: int, fingerprint: str = "") -> Shape:
    """Describe what a config builds on a CLIP.

    Args:
        config: the settings.
        width: of CLIP's joint space.
        size: side of its pixels.
        fingerprint: of its weights.
    """
    about = {
        "model": absolute(config.clip.model),
        "fingerprint": fingerprint,
        "dtype": config.clip.dtype,
        "rule": asdict(mask_fer_rule(config.paper_preprocess)),
        "width": width,
    }
    resnet = resnet_config(config.mask).to_dict() if config.mask.kind == "resnet" else {}
    mask = config.mask.model_dump(mode="json")
    eye = asdict(_eye(config, size))
    return Shape(config.classes, about, mask, resnet, eye, config.logits_from)


def _eye(config: MaskFerConfig, size: int) -> MaskEye:
    reads = {"resnet": "pixels", "patch_head": "tokens", "none": "nothing"}[config.mask.kind]
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    weights = config.mask.weights
    if weights and not weights.endswith(WEIGHT_FILES) and not config.paper_preprocess:
        processor: Any = load_image_processor(resolve(weights))  # pixels as it was trained on
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return MaskEye(reads, config.mask.size or size, mean, std)


def build_model(shape: Shape, width: int, token_width: int) -> MaskFer:
    """The trained part with fresh weights."""
    settings = MaskSettings(**shape.mask)
    mask: ResNetMask | PatchHeadMask | None = None
    if settings.kind == "resnet":
        mask = ResNetMask(ResNetConfig.from_dict(shape.resnet))
    elif settings.kind == "patch_head":
        mask = PatchHeadMask(token_width, settings.hidden, width)
    return MaskFer(mask, width, len(shape.classes), settings.match)


def read_info(folder: Path) -> tuple[Shape, dict[str, Any]]:
    """Read ``mask_fer.json``.

    Raises:
        UserError: not a mask-FER artifact, or damaged.
    """
    path = folder / INFO_FILE
    if not path.exists():
        raise UserError(
            f"{folder}: no {INFO_FILE} there, so not a mask-FER artifact",
            "give the folder `face-mllm mask-fer train` wrote",
        )
    with damage_named(path):
        info = json.loads(path.read_text())
        training = info.pop("training")
        info.pop("kind")
        shape = Shape(**info)
        shape.classes = tuple(shape.classes)
        MaskSettings(**shape.mask), MaskEye(**shape.eye)
        return shape, training


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what a damaged description raises into one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({brief(error)})", "train it again") from error
