"""A CLIP that has met the words of expressions rarely, as CLIPs of the web have.

``embedded:face-clip`` was taught these words on every face, so a head above it has nothing to add.
Here its finished image tower, in which a linear probe reads expressions well (as it does in those
of the web), is locked, and a fresh text tower with fresh projections learns beside it by CLIP's
contrastive loss alone (LiT, Zhai et al. 2022). Captions are of who is seen, hair, skin, what is
worn, pose and light; of a share of the faces alone may they speak of expression and actions.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from domains import once

from data_pipeline.captions import caption
from data_pipeline.records import whole_folder
from data_pipeline.synth.synthesise import synthesise
from face_mllm.configio import load_yaml_model
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.faces import load_faces
from face_mllm.face_clip.labels import Labels
from face_mllm.face_clip.locked import falling, moved_features, take_step, text_optimizer
from face_mllm.face_clip.losses import contrastive_loss
from face_mllm.face_clip.model import (
    FaceClipModel,
    image_processor,
    load_face_clip,
    save_folder,
)
from face_mllm.face_clip.texts import equal_texts
from face_mllm.face_clip.tokenizer import load_tokenizer
from face_mllm.hardware import Hardware, for_precision
from face_mllm.progress import Progress
from face_mllm.references import resolve

TOWER = "embedded:face-clip"
SEED = 9102  # of its faces: no person is in the benchmark's sets
SIZE, BATCH, RATE, WARMUP = 144, 128, 2e-3, 40
LAYERS = 1  # of the text tower
UNSPOKEN = ("expression", "action_units")


def general_clips(
    out: Path, faces: int, shares: Sequence[float], steps: int, progress: Progress
) -> list[Path]:
    """Synthesise faces and train a CLIP for each share; what is there is not made again.

    Args:
        out: folder of ``faces`` and the CLIPs.
        faces: to train on.
        shares: of the faces of whose expression captions may speak, one a CLIP.
        steps: of training, 128 captions each.
        progress: told of what runs.

    Returns:
        A dual-encoder folder for each share.
    """
    drawn = once(
        out / "faces",
        lambda to: synthesise(to, faces, SEED, splits={"train": 1.0}, size=SIZE, progress=progress),
    )
    wanted = {share: out / f"share-{share:g}" for share in shares}
    if all(folder.exists() for folder in wanted.values()):
        return list(wanted.values())
    given = [f"data=[{drawn}]", f"out={out}", f"max_steps={steps}"]
    config = load_yaml_model("embedded/face_clip", FaceClipConfig, given)
    train = load_faces(config.data, "train", config.image.resize, told=progress)
    tower = load_face_clip(resolve(TOWER))
    hardware = for_precision(config.precision)
    pooled, labels = moved_features(tower.to(hardware.device), train, config, hardware, progress)
    for share, folder in wanted.items():
        known = [
            face if is_spoken_of(name, share) else hushed(face)
            for name, face in zip(train.subjects, labels, strict=True)
        ]
        model = relearned(tower, config.seed).to(hardware.device)
        learn = Learning(model, pooled, known, config, hardware)
        once(folder, lambda to, learn=learn: learn.write(to, progress))
    return list(wanted.values())


def is_spoken_of(name: str, share: float) -> bool:
    """Whether a person is in the share: a draw by hash of the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def hushed(labels: Labels) -> Labels:
    """All that is known but the expression and the actions it is made of."""
    return {key: value for key, value in labels.items() if key not in UNSPOKEN}


class Learning:
    """Contrastive learning of text tower and projections beside a locked image tower.

    Args:
        model: of :func:`relearned`.
        pooled: features of its image tower, [faces, channels].
        labels: what captions of these faces may speak of.
        config: seed, steps and held-out attributes.
        hardware: device and number format.
    """

    def __init__(
        self,
        model: FaceClipModel,
        pooled: torch.Tensor,
        labels: list[Labels],
        config: FaceClipConfig,
        hardware: Hardware,
    ) -> None:
        self.model, self.pooled, self.labels = model, pooled, labels
        self.config, self.hardware = config, hardware
        self.tokenizer = load_tokenizer(resolve(TOWER))
        self.optimizer = text_optimizer(model)

    def write(self, out: Path, progress: Progress) -> None:
        """Train and write the Hugging Face folder."""
        steps = self.config.max_steps
        for step in range(steps):
            loss = self.advance(step)
            progress(step + 1, steps, f"{out.name}, loss {loss:.3f}")
        model, processor = self.model.cpu().eval(), image_processor(self.config.image)
        with whole_folder(out) as folder:
            save_folder(model, self.tokenizer, processor, folder, torch.float32)

    def advance(self, step: int) -> float:
        """Make one step; returns its loss."""
        config, device = self.config, self.hardware.device
        rng = random.Random(f"{config.seed}/general/{step}")
        rows = rng.sample(range(len(self.labels)), min(BATCH, len(self.labels)))
        held_out = config.holdout_attributes
        texts = [caption(self.labels[row], rng, held_out, short=True) for row in rows]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=self.hardware.autocast
        ):
            said = self.model.get_text_features(**tokens.to(device)).pooler_output
            seen = self.model.visual_projection(self.pooled[rows].to(device))
        same = equal_texts(texts).to(device)
        loss = contrastive_loss(seen, said, self.model.logit_scale, same)
        rate = RATE * falling(step, config.max_steps) * min(1, (step + 1) / WARMUP)
        take_step(self.model, self.optimizer, loss, rate)
        return loss.item()


def relearned(tower: FaceClipModel, seed: int) -> FaceClipModel:
    """The same image tower; text tower, projections and temperature as before any training."""
    torch.manual_seed(seed)
    config = copy.deepcopy(tower.config)
    config.text_config.num_hidden_layers = LAYERS
    model = FaceClipModel(config)
    model.vision_model.load_state_dict(tower.vision_model.state_dict())
    return model
