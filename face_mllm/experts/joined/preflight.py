"""A stage's expert on paper: which one, how it is joined, its sizes, without its weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from face_mllm.configio import load_yaml_model
from face_mllm.errors import UserError, brief
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.head import WEIGHT, ExpClipHead
from face_mllm.experts.exp_clip.preflight import teacher_width_of
from face_mllm.experts.exp_clip.prompts import CLASSES
from face_mllm.experts.joined.heads import ExpertHead
from face_mllm.experts.joined.join import first_base, settled_base
from face_mllm.experts.joined.settings import ExpertBase, ExpertSettings
from face_mllm.experts.loading import FILES, kind_of, training_of
from face_mllm.experts.mask_fer.config import LossSettings, MaskFerConfig
from face_mllm.experts.mask_fer.expert import build_model, read_info, shape_of
from face_mllm.experts.preflight import here
from face_mllm.features import FrozenClip
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.expert import ExpertProjector
from face_mllm.model.vision import vision_width
from face_mllm.plan import part_config
from face_mllm.train import config_kind

VERDICT_TOKENS = 8  # of a class with its number, in most tokenizers
TOKEN_LAYER = "mask.layers.0.weight"  # of a patch head: its norm is as wide as a patch token


@dataclass(frozen=True)
class Outline:
    """Sizes of an expert.

    Attributes:
        kind: ``mask_fer`` or ``exp_clip``.
        width: of its vectors.
        classes: names it knows.
        head: its trained part on the meta device.
        clip: reference of its frozen CLIP.
        loss: terms of a mask-FER's own loss, None for the cross-entropy alone.
        source: where this is known from.
    """

    kind: str
    width: int
    classes: tuple[str, ...]
    head: nn.Module
    clip: str
    loss: LossSettings | None
    source: str


@dataclass(frozen=True)
class PlannedExpert:
    """How a stage joins an expert, and its sizes."""

    base: ExpertBase
    outline: Outline

    @property
    def prompt_tokens(self) -> int:
        """What it adds to a face's row: its token, its words."""
        return self.base.token + self.base.text * VERDICT_TOKENS * self.base.most

    def join(
        self, model: FaceMLLMForConditionalGeneration, settings: ExpertSettings | None
    ) -> None:
        """Give a model on the meta device what the expert adds to it."""
        if not self.base.token:
            return
        width = model.config.text_config.hidden_size
        with torch.device("meta"):
            model.expert = ExpertProjector(self.outline.width, width, self.base.hidden)
        if settings is not None and settings.head == "full":
            model.expert_head = ExpertHead(self.outline.head)

    def words(self, settings: ExpertSettings | None) -> list[str]:
        """What the pre-flight says of it."""
        outline, base = self.outline, self.base
        ways = ", ".join(way for way in ("token", "text", "fusion") if getattr(base, way))
        more = f"tokens a face: +{self.prompt_tokens}"
        count = sum(parameter.numel() for parameter in outline.head.parameters())
        lines = [
            f"expert: {outline.kind} ({outline.source}), {len(outline.classes)} classes, vectors "
            f"of {outline.width}, {count / 1e6:.2f} M trained parameters on {outline.clip}; "
            f"joined by {ways}; {more}; its frozen CLIP is not in the estimate"
        ]
        if settings is not None and settings.head == "full":
            terms = "cross-entropy"
            if outline.loss is not None:
                terms += f" + {outline.loss.separation:g} separation"
                terms += f" + {outline.loss.diversity:g} diversity"
            lines.append(
                f"the expert's own loss ({terms}) weighs {settings.loss_weight:g} of a labelled "
                f"face's answers, its head learns at {settings.head_learning_rate:g}"
            )
        return lines


def planned_expert(
    settings: ExpertSettings | None,
    before: PlannedExpert | None,
    init_from: Path | None,
    siblings: Path,
) -> PlannedExpert | None:
    """The expert of a stage; neither it nor the stage before need have been trained.

    Args:
        settings: of the stage; None goes on as before.
        before: of the stage before.
        init_from: artifact of the stage before.
        siblings: folder of configs, one of which may say what the expert will be.

    Raises:
        UserError: settings that lead nowhere, or an expert nobody writes.
    """
    if settings is None and before is None:
        return None
    given = settings or ExpertSettings()
    outline = before.outline if before else None
    if given.model is not None:
        outline = outline_of(Path(given.model).expanduser(), siblings)
    kind = outline.kind if outline else ""
    inherited = before.base if before else None
    base = first_base(given, inherited, init_from, lambda _folder: kind)
    settled = settled_base(given, base, inherited)
    if settled is None or outline is None:
        return None
    if settled.kind == "exp_clip":
        outline = dataclasses.replace(outline, classes=CLASSES[: settled.classes])
    return PlannedExpert(settled, outline)


def outline_of(folder: Path, siblings: Path) -> Outline:
    """Sizes of the expert a folder holds or will hold.

    Args:
        folder: as ``expert.model`` names it.
        siblings: folder of configs; its experts are known by their ``out``.

    Raises:
        UserError: neither written nor any sibling's ``out``, or damaged.
    """
    if any((folder / about).is_file() for about, _ in FILES.values()):
        return _written(folder)
    for path in (*sorted(siblings.glob("*.yaml")), *sorted(siblings.glob("experts/*.yaml"))):
        source = f"{path.name}, not run yet"
        kind = config_kind(path)
        if kind == "mask_fer":
            mask_fer = load_yaml_model(path, MaskFerConfig)
            if mask_fer.out == folder:
                return _of_mask_fer(mask_fer, source)
        elif kind == "exp_clip":
            exp_clip = load_yaml_model(path, ExpClipConfig)
            if exp_clip.out == folder:
                return _of_exp_clip(exp_clip, source)
    raise UserError(
        f"expert.model: {folder}: not written, and no config beside this one writes it",
        "train it with `face-mllm mask-fer train` or `exp-clip train`, or give another folder",
    )


def _written(folder: Path) -> Outline:
    kind, clip = kind_of(folder), training_of(folder).get("clip", "")
    weights = folder / FILES[kind][1]
    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{weights}: missing or damaged ({brief(error)})", "train the expert again"
        ) from error
    if kind == "exp_clip":
        if WEIGHT not in shapes:
            raise UserError(f"{weights}: holds no matrix {WEIGHT}", "train the head again")
        teacher, width = shapes[WEIGHT]
        return _exp_clip(width, teacher, clip, str(folder))
    shape, training = read_info(folder)
    with torch.device("meta"):
        head = build_model(shape, shape.clip["width"], (shapes.get(TOKEN_LAYER) or [0])[0])
    loss = LossSettings(**training.get("config", {}).get("loss", {}))
    name = str(shape.clip["model"])
    return Outline(kind, head.width, shape.classes, head, name, loss, str(folder))


def _of_mask_fer(config: MaskFerConfig, source: str) -> Outline:
    name = config.clip.model
    width = config.clip.width
    if not width and here(name):
        width = FrozenClip(name).width
    if not width:
        raise UserError(f"{source}: how wide is {name}?", "set clip.width there")
    if config.mask.weights and not here(config.mask.weights):
        bare = config.mask.model_copy(update={"weights": None})
        config = config.model_copy(update={"mask": bare})
    tokens = 0
    if config.mask.kind == "patch_head":
        tokens = vision_width(part_config(name, "vision")[0], -1)
    shape = shape_of(config, width, size=config.mask.size)
    with torch.device("meta"):
        head = build_model(shape, width, tokens)
    return Outline("mask_fer", width, config.classes, head, name, config.loss, source)


def _of_exp_clip(config: ExpClipConfig, source: str) -> Outline:
    clip, teacher = config.clip_width, config.teacher.width
    if not clip and here(config.clip):
        clip = FrozenClip(config.clip).width
    if not teacher and here(config.teacher.model):
        teacher = teacher_width_of(config.teacher)
    if not (clip and teacher):
        raise UserError(f"{source}: its widths are not known", "set clip_width and teacher.width")
    return _exp_clip(clip, teacher, config.clip, source)


def _exp_clip(clip: int, teacher: int, name: str, source: str) -> Outline:
    with torch.device("meta"):
        head = ExpClipHead(clip, teacher)
    return Outline("exp_clip", teacher, CLASSES[:7], head, name, None, source)
