"""A stage on paper: its models on the meta device, from sizes alone, and what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from peft import LoraConfig
from rich.table import Table
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from face_mllm.artifact import STAGE_FILE, Artifact, read_adapter, read_artifact
from face_mllm.compose import Bases
from face_mllm.config import LoraSettings, StageConfig
from face_mllm.configio import load_yaml_model
from face_mllm.errors import UserError, brief
from face_mllm.estimate import (
    Decoder,
    Load,
    Weights,
    activation_bytes,
    decoder_of,
    look,
    meta_tower,
    weights_of,
)
from face_mllm.flops import StepFormula
from face_mllm.model import FaceMLLMConfig, FaceMLLMForConditionalGeneration
from face_mllm.model.heads import chunk_rows
from face_mllm.references import is_cached, is_hub_id, resolve
from face_mllm.stages import PartRow, add_lora, apply_freeze, attach_adapter, matched_words

if TYPE_CHECKING:
    from face_mllm.experts.joined.preflight import PlannedExpert

SHAPES = Path(__file__).with_name("shapes.yaml")
PREFIX_TOKENS = 40  # system text and template around the picture
# tokens of a question with its answer, and labelled ones among them, where none can be counted
TYPICAL = {"caption": (80, 64), "vqa": (40, 12)}
CLOSED = (24, 3)
# dense bf16 operations a second, as the makers state them
PEAKS = {"A100-80GB": 312e12, "H100": 989e12, "L40S": 362e12, "RTX4090": 165e12}
EFFICIENCY = 0.4  # share of the peak that training reaches at this size on a good day
COLUMNS = ("GPUs", "DDP GiB", "ZeRO-2 GiB", "ZeRO-3 / FSDP2 GiB", "hours")
SHARDINGS = ("ddp", "zero2", "zero3")  # FSDP2 shards as ZeRO-3 does


@dataclass
class Planned:
    """What a stage starts from, written or only planned.

    Attributes:
        bases: its models.
        adapters: part -> adapter it inherits: settings, or the configuration of a written one.
        source: where this is known from.
        fresh: part -> layers that get an adapter in this stage, in words.
        expert: the stage's expert, where it has one.
    """

    bases: Bases
    adapters: dict[str, LoraSettings | LoraConfig] = field(default_factory=dict)
    source: str = "this config"
    fresh: dict[str, str] = field(default_factory=dict)
    expert: PlannedExpert | None = None

    @property
    def expert_tokens(self) -> int:
        """What the expert adds to a face's row."""
        return self.expert.prompt_tokens if self.expert else 0


@dataclass(frozen=True)
class Sheet:
    """Everything the estimate of a stage needs."""

    model: FaceMLLMForConditionalGeneration
    table: list[PartRow]
    weights: Weights
    decoder: Decoder
    load: Load
    questions: int
    formula: StepFormula
    tower_training: str
    quant: str


def planned_start(stage: StageConfig, siblings: Path) -> Planned:
    """Bases, adapters and expert of a stage; a stage before it need not have run.

    Args:
        stage: the stage.
        siblings: folder of configs, one of which may say what ``init_from`` will hold.

    Raises:
        UserError: ``init_from`` or the expert is neither written nor any sibling's ``out``.
    """
    if stage.init_from is None:
        start = Planned(
            Bases(
                stage.vision.model or "",
                stage.llm.model or "",
                stage.vision.layer,
                stage.vision.select,
                stage.projector.hidden,
            )
        )
    elif (stage.init_from / STAGE_FILE).exists():
        artifact = read_artifact(stage.init_from)
        adapters: dict[str, LoraSettings | LoraConfig] = {
            part: read_adapter(stage.init_from, part) for part in artifact.adapters
        }
        start = Planned(artifact.bases, adapters, str(stage.init_from))
        if artifact.expert is not None:
            start.expert = _written_expert(artifact, stage.init_from, siblings)
    else:
        start = _sibling_start(stage, siblings)
    changes: dict[str, Any] = {
        "vision": stage.vision.model or start.bases.vision,
        "llm": stage.llm.model or start.bases.llm,
        "llm_quant": stage.llm.quant or start.bases.llm_quant,
    }
    start = replace(start, bases=replace(start.bases, **changes))
    if stage.expert is not None or start.expert is not None:
        from face_mllm.experts.joined.preflight import planned_expert

        start.expert = planned_expert(stage.expert, start.expert, stage.init_from, siblings)
    return start


def _written_expert(artifact: Artifact, folder: Path, siblings: Path) -> PlannedExpert:
    from face_mllm.experts.joined.expert import FOLDER
    from face_mllm.experts.joined.preflight import PlannedExpert, outline_of

    assert artifact.expert is not None
    return PlannedExpert(artifact.expert, outline_of(folder / FOLDER, siblings))


def _sibling_start(stage: StageConfig, siblings: Path) -> Planned:
    for path in sorted(siblings.glob("*.yaml")):
        try:
            before = load_yaml_model(path, StageConfig)
        except UserError:
            continue  # another kind of config
        if before.out == stage.init_from and before.stage != stage.stage:
            start = planned_start(before, siblings)
            adapters = dict(start.adapters)
            for part, settings in (("llm", before.llm.lora), ("vision", before.vision.lora)):
                if before.part_trainings()[part] == "lora":
                    adapters.setdefault(part, settings)
            source = f"{path.name}, not run yet"
            return Planned(start.bases, adapters, source, expert=start.expert)
    raise UserError(
        f"{stage.init_from}: not written, and no config beside this one writes it",
        "train the stage before, or give init_from=FOLDER",
    )


def part_config(reference: str, kind: str) -> tuple[PretrainedConfig, str]:
    """Sizes of a tower or LLM and where they are from: its folder, the shapes kept here, the hub.

    Args:
        reference: as in a stage config.
        kind: ``vision`` or ``llm``; of a CLIP, vision takes the image half.
    """
    shapes = yaml.safe_load(SHAPES.read_text())
    local = Path(reference).expanduser().is_dir() or is_cached(reference)
    if reference in shapes and not local:
        shape = dict(shapes[reference])
        return AutoConfig.for_model(shape.pop("model_type"), **shape), "sizes kept in shapes.yaml"
    place = reference if is_hub_id(reference) and not local else str(resolve(reference))
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{reference}: its sizes are not known here ({brief(error)})",
            "give a folder that holds its config.json",
        ) from error
    inner = getattr(config, "vision_config", None) if kind == "vision" else None
    return inner or config, "its config.json"


def meta_model(
    start: Planned, dtype: torch.dtype, attention: str
) -> FaceMLLMForConditionalGeneration:
    """The composed model without weights, adapters of earlier stages included.

    Args:
        start: what the stage starts from.
        dtype: of the LLM's weights.
        attention: implementation it is to run with.
    """
    vision, _ = part_config(start.bases.vision, "vision")
    text, _ = part_config(start.bases.llm, "llm")
    with torch.device("meta"):
        tower = AutoModel.from_config(vision)
        llm = AutoModelForCausalLM.from_config(text, dtype=dtype, attn_implementation=attention)
        config = FaceMLLMConfig(
            tower.config,
            llm.config,
            vision_layer=start.bases.vision_layer,
            vision_select=start.bases.vision_select,
            image_token_id=text.vocab_size,
            projector_hidden=start.bases.projector_hidden,
        )
        model = FaceMLLMForConditionalGeneration(config, tower, llm)
        model.config.image_tokens = look(model, meta_tower(model)).shape[1]
        for part, adapter in start.adapters.items():
            if isinstance(adapter, LoraSettings):
                add_lora(model, adapter, part)
            else:
                attach_adapter(model, adapter, part)
    return model


def fill_in_sheet(
    model: FaceMLLMForConditionalGeneration,
    stage: StageConfig,
    quant: str,
    dtype: str,
    tokens: int | None = None,
    beside: int = 0,
) -> Sheet:
    """Freeze the model as the stage says and gather what its estimate needs.

    Args:
        model: composed, on any device, with the adapters the stage trains.
        stage: the stage.
        quant: of the LLM.
        dtype: ``bfloat16`` or ``float32``, of the products.
        tokens: of a row, where they could be counted.
        beside: tokens of a face that an expert adds.
    """
    table = apply_freeze(model, stage)
    trainings = stage.part_trainings()
    decoder = decoder_of(model, trainings["llm"])
    low = 2 if dtype == "bfloat16" else 4
    per_question, labels = typical_question(stage)
    prefix = PREFIX_TOKENS + model.config.image_tokens + beside
    questions = max(
        1, min(stage.max_questions_per_face, (stage.max_tokens - prefix) // per_question)
    )
    row = tokens or min(stage.max_tokens, prefix + questions * per_question)
    load = Load(
        stage.faces_per_device,
        row,
        int(stage.faces_per_device * questions * labels),
        low,
        4 if trainings["llm"] == "full" else low,
        stage.gradient_checkpointing,
    )
    return Sheet(
        model,
        table,
        weights_of(model, quant),
        decoder,
        load,
        questions,
        StepFormula(model, decoder, trainings),
        trainings["vision"],
        quant,
    )


def typical_question(stage: StageConfig) -> tuple[int, int]:
    """Tokens of a question with its answer and labelled ones among them, by the stage's tasks."""
    shares = stage.tasks or {"": 1.0}
    total = sum(shares.values())
    kinds = [(share / total, TYPICAL.get(task, CLOSED)) for task, share in shares.items()]
    tokens = sum(share * kind[0] for share, kind in kinds)
    labels = sum(share * kind[1] for share, kind in kinds)
    return round(tokens), max(1, round(labels))


def device_bytes(sheet: Sheet, sharding: str, devices: int) -> int:
    """Peak memory of one device: its share of the weights and states, and one micro-batch.

    ZeRO-2 shards gradients and optimiser states, ZeRO-3 and FSDP the weights too and gather two
    layers at a time.
    """
    weights, load = sheet.weights, sheet.load
    held = weights.trained + weights.frozen
    states = weights.gradients + weights.optimiser
    if sharding in ("zero2", "zero3"):
        states //= devices
    if sharding == "zero3":
        gathered = 2 * held // max(1, sheet.decoder.layers) if devices > 1 else 0
        held = held // devices + gathered
    copies = weights.trained // 4 * 2 * (load.compute_bytes == 2)  # autocast's narrow ones
    kept = activation_bytes(sheet.model, sheet.decoder, load, sheet.tower_training)
    chunk = chunk_rows(sheet.decoder.vocabulary)
    head = min(load.labels, chunk) * sheet.decoder.vocabulary * (load.compute_bytes + 4)
    head += (load.labels > chunk) * chunk * sheet.decoder.vocabulary * 4  # one is made again
    return held + states + copies + kept + head


def question_seconds(sheet: Sheet, peak: float, efficiency: float = EFFICIENCY) -> float:
    """Seconds one device takes for one question."""
    step = sheet.formula(sheet.load)
    return (step.useful + step.repeated) / (peak * efficiency) / (sheet.load.rows * sheet.questions)


def estimate_rows(
    sheet: Sheet, counts: Sequence[int], million_questions: float = 1.0, gpu: str = "A100-80GB"
) -> list[list[str]]:
    """One row per number of GPUs: memory of each under each sharding, hours for the questions."""
    seconds = question_seconds(sheet, PEAKS[gpu]) * million_questions * 1e6
    rows = []
    for count in counts:
        cells = [f"{device_bytes(sheet, kind, count) / 2**30:.1f}" for kind in SHARDINGS]
        if sheet.quant == "nf4":
            cells[-1] = "-"  # refused: see cluster.py
        rows.append([str(count), *cells, f"{seconds / 3600 / count:.2f}"])
    return rows


def estimate_table(rows: Sequence[Sequence[str]], title: str) -> Table:
    """The estimate for the screen."""
    table = Table(title=title)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def plan(stage: StageConfig, siblings: Path, dtype: str, attention: str) -> tuple[Sheet, Planned]:
    """The sheet of a stage on the meta device; nothing is downloaded but small files, or nothing.

    Args:
        stage: the stage.
        siblings: see :func:`planned_start`.
        dtype: ``bfloat16`` or ``float32``.
        attention: ``eager`` or ``sdpa``.
    """
    start = planned_start(stage, siblings)
    model = meta_model(start, getattr(torch, dtype), attention)
    with torch.device("meta"):
        for part, settings in (("llm", stage.llm.lora), ("vision", stage.vision.lora)):
            if stage.part_trainings()[part] == "lora" and part not in start.adapters:
                start.fresh[part] = matched_words(add_lora(model, settings, part))
    if start.expert is not None:
        start.expert.join(model, stage.expert)
    beside = start.expert_tokens
    return fill_in_sheet(model, stage, start.bases.llm_quant, dtype, beside=beside), start
