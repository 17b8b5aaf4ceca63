"""Training of face-clip: ``face-mllm train stage_configs/embedded/face_clip.yaml``.

:func:`train_face_clip` is the table of contents. Every random choice of a step comes from
(seed, step), so a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from data_pipeline.records import whole_folder
from face_mllm.errors import UserError
from face_mllm.face_clip.augment import draw_moves, move, normalise, spoil
from face_mllm.face_clip.card import model_card
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.faces import Faces, check_subjects, load_faces
from face_mllm.face_clip.labels import LabelSpace, Targets, moved_labels
from face_mllm.face_clip.locked import tune_text
from face_mllm.face_clip.losses import (
    LabelHeads,
    contrastive_loss,
    positive_weights,
    total_loss,
)
from face_mllm.face_clip.measure import measure
from face_mllm.face_clip.model import (
    MAX_LOGIT_SCALE,
    FaceClipModel,
    build_model,
    image_processor,
    save_folder,
)
from face_mllm.face_clip.state import (
    Average,
    flat_state,
    restore,
)
from face_mllm.face_clip.texts import equal_texts, training_text
from face_mllm.face_clip.tokenizer import load_tokenizer, train_tokenizer
from face_mllm.flat_state import load_state, save_state
from face_mllm.hardware import Hardware, for_precision
from face_mllm.outputs import check_out
from face_mllm.progress import Progress, terminal_progress

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
TOKENIZER_TEXTS = 30_000
# settings that may change when a run goes on
FREE_TO_CHANGE = {
    "out",
    "resume",
    "save_steps",
    "export_steps",
    "log_steps",
    "probe_train",
    "data",
    "extra_data",
    "locked",
    "note",
}

console = Console(stderr=True)


def train_face_clip(config: FaceClipConfig, progress: Progress | None = None) -> Path:
    """Train, measure on unseen identities and write the Hugging Face folder ``config.out``.

    Args:
        config: see :class:`FaceClipConfig`.
        progress: called with (done, total, text); a bar on stderr if not given.

    Raises:
        UserError: bad data or settings, before training starts where possible.
    """
    check_out(config.out)
    if progress is None:
        with terminal_progress("face-clip") as told:
            return train_face_clip(config, told)
    hardware = for_precision(config.precision)
    console.print(f"[dim]{hardware.describe()}")
    roots = (*config.data, *config.extra_data)
    train = load_faces(roots, "train", config.image.resize, config.max_train, progress)
    val = load_faces(config.data, "val", config.image.resize, told=progress)
    check_subjects(train, val)
    run = Run(config, hardware, train, val)
    run.resume()
    while run.step < config.max_steps:
        text = run.advance()
        progress(run.step, config.max_steps, text)
    model = run.averaged_model()
    if config.locked.steps:
        tune_text(model, run.tokenizer, train, config, hardware, progress)
    progress(config.max_steps, config.max_steps, "measuring")
    run.write(config.out, model, measured=True)
    shutil.rmtree(run.folder)
    return config.out


class Run:
    """One training run: model, optimiser, averaged weights, and how a step is made.

    Args:
        config: the settings.
        hardware: device and number format.
        train: training faces.
        val: faces of other identities, for the measurement at the end.
    """

    def __init__(
        self, config: FaceClipConfig, hardware: Hardware, train: Faces, val: Faces
    ) -> None:
        if len(train) < config.batch_size:
            raise UserError(f"{len(train)} training faces", "lower batch_size or add faces")
        self.config, self.hardware, self.train, self.val = config, hardware, train, val
        self.folder = config.out.with_name(f"{config.out.name}.run")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.space = LabelSpace.of(train.labels, config.holdout_attributes)
        self.tokenizer = self._tokenizer()
        torch.manual_seed(config.seed)
        self.device = torch.device(hardware.device)
        model = build_model(config, self.tokenizer)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore
        weights = positive_weights(self.space.encode(train.labels))
        self.heads = LabelHeads(config.image.hidden_sizes[-1], self.space, weights).to(self.device)
        self.average = Average(self.model, config.ema)
        self.optimizer = _optimizer(config, self.model, self.heads)
        self.step, self.seconds = 0, 0.0
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        """The run's tokenizer: trained once, then read back, so going on cannot change it."""
        place = self.folder / "tokenizer"
        if not place.is_dir():
            rng = random.Random(self.config.seed)
            held_out = self.config.holdout_attributes
            texts = (
                training_text(rng.choice(self.train.labels), rng, held_out)
                for _ in range(TOKENIZER_TEXTS)
            )
            text = self.config.text
            made = train_tokenizer(texts, text.vocabulary, text.max_tokens)
            with whole_folder(place) as partial:
                made.save_pretrained(partial)
        return load_tokenizer(place)

    def advance(self) -> str:
        """Make one optimiser step; returns a line about it."""
        started = time.perf_counter()
        rate = self._set_rate()
        losses = self._losses(*self._batch())
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        self.step += 1
        self.average.update(self.model, self.step)
        self.seconds += time.perf_counter() - started
        self._keep_books(losses, rate)
        return f"training, loss {losses['total'].item():.3f}"

    def _set_rate(self) -> float:
        """Linear warm-up, then cosine to zero."""
        done = self.step / self.config.max_steps
        warmup = self.config.warmup
        share = (
            (self.step + 1) / max(1.0, warmup * self.config.max_steps)
            if done < warmup
            else 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, share)
        return self.optimizer.param_groups[0]["lr"]

    def _rows(self) -> torch.Tensor:
        """Rows of this step: a fresh order each epoch, the odd end of an epoch left out."""
        per_epoch = len(self.train) // self.config.batch_size
        epoch, place = divmod(self.step, per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 7919 + epoch)
            self._order = (epoch, torch.randperm(len(self.train), generator=generator))
        start = place * self.config.batch_size
        return self._order[1][start : start + self.config.batch_size]

    def _batch(self) -> tuple[torch.Tensor, list[str], Targets]:
        """Moved and spoilt pictures, texts about the first of them, targets that followed."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        rng = random.Random(f"{config.seed}/{self.step}")
        rows = self._rows()
        moves = draw_moves(len(rows), config.augment, generator)
        pixels = move(self.train.images[rows], moves, config.image.size)
        pixels = spoil(pixels, moves, config.augment, generator)
        drawn = zip(moves.flip, moves.degrees, moves.gray, moves.blurred, strict=True)
        labels = [
            moved_labels(self.train.labels[row], *(value.item() for value in how))
            for row, how in zip(rows.tolist(), drawn, strict=True)
        ]
        captioned = max(2, round(config.loss.captioned * len(labels)))  # the text tower is costly
        texts = [
            training_text(known, rng, config.holdout_attributes) for known in labels[:captioned]
        ]
        return normalise(pixels), texts, self.space.encode(labels)

    def _losses(
        self, pixels: torch.Tensor, texts: list[str], targets: Targets
    ) -> dict[str, torch.Tensor]:
        device = self.device
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(device)
        self.model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.hardware.autocast):
            pooled = self.model.vision_model(pixels.to(device)).pooler_output
            image = self.model.visual_projection(pooled[: len(texts)])
            text = self.model.get_text_features(**tokens).pooler_output
        same = equal_texts(texts).to(device)
        contrastive = contrastive_loss(image, text, self.model.logit_scale, same)
        tasks = self.heads.losses(pooled, targets.to(device))
        total = total_loss(contrastive, tasks, self.config.loss)
        if not torch.isfinite(total):
            raise UserError(
                f"loss became {total.item()} at step {self.step}",
                "lower learning_rate or set precision: fp32; the last checkpoint is kept",
            )
        return {"total": total, "contrastive": contrastive, **tasks}

    def _keep_books(self, losses: dict[str, torch.Tensor], rate: float) -> None:
        config = self.config
        if self.step % config.log_steps == 0 or self.step == config.max_steps:
            line = {name: round(value.item(), 5) for name, value in losses.items()}
            about = {"step": self.step, "seconds": round(self.seconds, 1), "rate": rate}
            scale = self.model.logit_scale.exp().item()
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps({**about, **line, "logit_scale": scale}) + "\n")
        last = self.step == config.max_steps
        if config.save_steps and (last or self.step % config.save_steps == 0):
            self.save()
        if config.export_steps and self.step % config.export_steps == 0 and not last:
            folder = config.out.with_name(f"{config.out.name}-step{self.step}")
            self.write(folder, self.averaged_model(), measured=False)

    def save(self) -> None:
        """Write the resumable checkpoint in place of the last one."""
        flat = flat_state(self.model, self.heads, self.average, self.optimizer)
        about = {"step": self.step, "seconds": self.seconds, "settings": self._settings()}
        save_state(self.folder / CHECKPOINT, flat, about)

    def _settings(self) -> dict:
        settings = json.loads(self.config.model_dump_json(exclude=FREE_TO_CHANGE))
        return {**settings, "faces": len(self.train)}

    def resume(self) -> None:
        """Go on at the last checkpoint, if there is one and the settings are the same."""
        wanted = self.config.resume
        path = self.folder / CHECKPOINT if wanted == "auto" else Path(wanted)
        if wanted == "never" or (wanted == "auto" and not path.exists()):
            (self.folder / METRICS).unlink(missing_ok=True)
            return
        flat, about = load_state(path, "face-clip")
        changed = [
            key for key, value in self._settings().items() if about["settings"].get(key) != value
        ]
        if changed:
            raise UserError(
                f"{path}: made with another {', '.join(changed)}",
                "set resume: never, or restore the settings",
            )
        restore(flat, self.model, self.heads, self.average, self.optimizer)
        self.step, self.seconds = about["step"], about["seconds"]
        _cut_metrics(self.folder / METRICS, self.step)
        console.print(f"[dim]going on at step {self.step}")

    def averaged_model(self) -> FaceClipModel:
        """Return the averaged weights as a model on the CPU, in eval mode."""
        model = build_model(self.config, self.tokenizer)
        model.load_state_dict(self.average.state)
        return model.eval()

    def write(self, folder: Path, model: FaceClipModel, measured: bool) -> None:
        """Write a model with its card as a whole folder, measured on val or not."""
        config = self.config
        stored = getattr(torch, config.stored_dtype)
        model.load_state_dict({k: v.to(stored).to(v.dtype) for k, v in model.state_dict().items()})
        figures = self._measure(model) if measured else None
        with whole_folder(folder) as partial:
            save_folder(model, self.tokenizer, image_processor(config.image), partial, stored)
            if figures is not None:
                (partial / "measured.json").write_text(json.dumps(figures, indent=1))
            settings = json.loads(config.model_dump_json())
            (partial / "training.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
            shutil.copy(self.folder / METRICS, partial / METRICS)
            (partial / "README.md").write_text(self._card(model, figures))

    def _measure(self, model: FaceClipModel) -> dict[str, Any]:
        config = self.config
        return measure(
            model,
            self.tokenizer,
            self.train,
            self.val,
            config.image.size,
            config.holdout_attributes,
            config.probe_train,
            config.seed,
        )

    def _card(self, model: FaceClipModel, figures: dict[str, Any] | None) -> str:
        machine = self.hardware.describe()
        return model_card(
            self.config, model, self.train, self.val, self.step, self.seconds, machine, figures
        )


def _optimizer(config: FaceClipConfig, *modules: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW; no decay on biases, norms and the temperature."""
    parameters = [p for module in modules for p in module.parameters()]
    matrices = [p for p in parameters if p.dim() >= 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


def _cut_metrics(path: Path, step: int) -> None:
    """Drop lines after the checkpoint, which the run is about to write again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in lines))
