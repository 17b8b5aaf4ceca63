"""What stands in the table: each system is fitted on the source's train split, its settings
chosen on the source's val split, and answers every test set with class log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from actions import rows_of_ids
from domains import classes_of, test_sets
from exp_clip_heads import (
    PROMPTS,
    chosen_head,
    converged_head,
    exp_clip_head,
    mean_recall,
    untrained,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from face_mllm.configio import load_yaml_model
from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.zero_shot import prompt_features, zero_shot
from face_mllm.experts.mask_fer.backbone import PatchHeadMask
from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.expert import MaskFerExpert
from face_mllm.experts.mask_fer.faces import ExpressionFaces, load_expressions
from face_mllm.experts.mask_fer.inputs import Inputs
from face_mllm.experts.mask_fer.train import train_mask_fer
from face_mllm.features import FrozenClip
from face_mllm.hardware import best_device
from face_mllm.references import resolve

Answers = dict[str, torch.Tensor]  # test set -> log-probabilities [N, classes]
PROBE_C = (0.001, 0.01, 0.1, 1.0, 10.0)
INSIDE_C = 0.01


@dataclass
class Bench:
    """The faces and the frozen CLIP that all systems share.

    Args:
        root: folder of the domains.
        clip_name: reference of the frozen CLIP.
        cache: of features.
        settings: what single systems need (``teacher``, ``epochs``, ...).
        dtype: of the frozen CLIP's weights and features, by name.
        given: a .npz of ``ids`` and ``features`` in place of the CLIP's; then only heads that read
            nothing but F can be fitted.
    """

    root: Path
    clip_name: str
    cache: Path
    settings: dict[str, Any]
    dtype: str = "float32"
    given: Path | None = None

    @cached_property
    def clip(self) -> FrozenClip:
        dtype = getattr(torch, self.dtype)
        return FrozenClip(self.clip_name, dtype=dtype, device=best_device())

    @cached_property
    def reads_text(self) -> bool:
        """Whether the frozen tower has a language to be asked in."""
        folder = resolve(self.clip_name)
        return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json"))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return classes_of(self.root)

    @cached_property
    def sets(self) -> dict[str, ExpressionFaces]:
        """Train and val of the source, then every test set by its folder's name."""
        found = {
            split: load_expressions(self.root / "source", split, self.classes, {})
            for split in ("train", "val")
        }
        return found | {
            name: load_expressions(self.root / name, "test", self.classes, {})
            for name in test_sets(self.root)
        }

    @cached_property
    def tests(self) -> list[str]:
        return [name for name in self.sets if name not in ("train", "val")]

    def features(self, name: str) -> torch.Tensor:
        """F of a set, [N, D] in fp32, not normalised."""
        if self.given:
            return torch.from_numpy(rows_of_ids(self.given, self.sets[name].column("id"))).float()
        return self.clip.features(self.sets[name], root=self.cache).float()

    def tokens(self, name: str) -> torch.Tensor:
        """Patch states of a set, [N, T, C] in fp32."""
        cache, keys = self.clip.cached(self.sets[name], tokens=True, root=self.cache)
        return cache.gather(keys)["tokens"].float()


def systems(bench: Bench) -> dict[str, tuple[Callable[..., Answers], bool]]:
    """Name -> (answers of a seed, whether the seed changes anything)."""
    found: dict[str, tuple[Callable[..., Answers], bool]] = {
        "majority": (majority, False),
        "linear_probe": (linear_probe, False),
        "mlp_head": (mlp_head, True),
        "probe_inside": (probe_inside, False),
    }
    if bench.given:
        return found
    found["token_head"] = (token_head, True)
    for kind in PROMPTS if bench.reads_text else ():
        found[f"clip/prompt{kind}"] = (_zero_shot(kind, None), False)
        found[f"clip_upsampled/prompt{kind}"] = (_zero_shot(kind, untrained), True)
        if bench.settings.get("teacher"):
            found[f"exp_clip/prompt{kind}"] = (_zero_shot(kind, exp_clip_head), True)
            found[f"exp_clip-fast/prompt{kind}"] = (_zero_shot(kind, converged_head), True)
            found[f"exp_clip-val/prompt{kind}"] = (_zero_shot(kind, chosen_head), True)
    for name, changes in MASK_FER.items():
        found[f"mask_fer/{name}"] = (_mask_fer(changes), True)
    return found


def majority(bench: Bench, seed: int) -> Answers:
    counts = bench.sets["train"].targets.bincount(minlength=len(bench.classes)).double()
    logs = (counts + 1).log().log_softmax(0)
    return {name: logs.expand(len(bench.sets[name]), -1) for name in ["val", *bench.tests]}


def linear_probe(bench: Bench, seed: int) -> Answers:
    """Logistic regression on F, standardised; its strength by UAR on val."""
    given, truth = bench.features("train").numpy(), bench.sets["train"].targets.numpy()
    val, answers = bench.features("val").numpy(), bench.sets["val"].targets.numpy()
    fitted = []
    for strength in PROBE_C:
        regression = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
        probe = make_pipeline(StandardScaler(), regression).fit(given, truth)
        fitted.append((mean_recall(probe.predict(val), answers), probe))
    best = max(fitted, key=lambda pair: pair[0])[1]
    found = {}
    for name in ["val", *bench.tests]:
        logs = np.full((len(bench.sets[name]), len(bench.classes)), -50.0)
        logs[:, best.classes_] = best.predict_log_proba(bench.features(name).numpy())
        found[name] = torch.from_numpy(logs)
    return found


def probe_inside(bench: Bench, seed: int) -> Answers:
    """No rival: how far F tells a test set's labels when fitted on that very set.

    Logistic regression on nine tenths of its people, asked about the others, ten times.
    """
    found = {}
    for name in bench.tests:
        given, truth = bench.features(name).numpy(), bench.sets[name].targets.numpy()
        faces = bench.sets[name]
        who = [s or n for s, n in zip(faces.column("subject"), faces.column("id"), strict=True)]
        regression = LogisticRegression(C=INSIDE_C, max_iter=2000, class_weight="balanced")
        probe = make_pipeline(StandardScaler(), regression)
        folds = GroupKFold(min(10, len(set(who))))
        known = np.unique(truth)
        logs = np.full((len(truth), len(bench.classes)), -50.0)
        logs[:, known] = cross_val_predict(
            probe, given, truth, groups=who, cv=folds, method="predict_log_proba"
        ).clip(-50)
        found[name] = torch.from_numpy(logs)
    return found


def mlp_head(bench: Bench, seed: int) -> Answers:
    """A fine-tuned head of one hidden layer on F."""
    width = bench.features("train").shape[1]
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1),
        nn.Linear(width, len(bench.classes)),
    )  # fmt: skip
    return _fine_tuned(bench, head, bench.features, seed)


def token_head(bench: Bench, seed: int) -> Answers:
    """The patch head's network without the mask: it answers itself instead of gating F.

    What mask-FER's variant gains over this is the mask's; what this gains over ``mlp_head`` is the
    patch tokens'.
    """
    torch.manual_seed(seed)
    tokens = PatchHeadMask(bench.clip.token_width, 256, bench.clip.width)
    head = nn.Sequential(tokens, nn.Linear(bench.clip.width, len(bench.classes)))
    return _fine_tuned(bench, head, bench.tokens, seed)


def _fine_tuned(
    bench: Bench, head: nn.Module, given: Callable[[str], torch.Tensor], seed: int
) -> Answers:
    """Adam, batches of 32, 60 epochs; the epoch by UAR on val."""
    train, truth = given("train"), bench.sets["train"].targets
    val, answers = given("val"), bench.sets["val"].targets.numpy()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=1e-4)
    best = (-1.0, head.state_dict())
    for _ in range(60):
        head.train()
        for rows in torch.randperm(len(train), generator=generator).split(32):
            loss = functional.cross_entropy(head(train[rows]), truth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            score = mean_recall(head(val).argmax(-1).numpy(), answers)
        if score > best[0]:
            best = (score, {k: v.clone() for k, v in head.state_dict().items()})
    head.load_state_dict(best[1])
    with torch.no_grad():
        return {n: head(given(n)).log_softmax(-1) for n in ["val", *bench.tests]}


def _zero_shot(kind: int, make: Callable[[Bench, int], ExpClipHead] | None) -> Any:
    def answers(bench: Bench, seed: int) -> Answers:
        head = make(bench, seed) if make else nn.Identity()
        texts = prompt_features(bench.clip, bench.classes, kind)
        scale = bench.clip.logit_scale
        return {
            name: zero_shot(head, bench.features(name), texts, scale).log_softmax(-1)
            for name in ["val", *bench.tests]
        }

    return answers


# mask-FER and what it is made of; the paper's ablation takes the extra losses away
MASK_FER: dict[str, list[str]] = {
    "none": ["mask.kind=none", "mask.weights=null", "loss.separation=0", "loss.diversity=0"],
    "patch_head": ["mask.kind=patch_head", "mask.weights=null"],
    "resnet": [],
}
for _kind in ("patch_head", "resnet"):
    MASK_FER[f"{_kind}-mask-only"] = [*MASK_FER[_kind], "loss.separation=0", "loss.diversity=0"]
    MASK_FER[f"{_kind}-no-diversity"] = [*MASK_FER[_kind], "loss.diversity=0"]
# the recipe's 12 falling epochs are few steps on few faces: trained as the other heads are
for _kind in ("none", "patch_head", "patch_head-mask-only"):
    MASK_FER[f"{_kind}-long"] = [*MASK_FER[_kind], "epochs=60", "learning_rate=1e-3", "gamma=1"]


def _mask_fer(changes: list[str]) -> Any:
    def answers(bench: Bench, seed: int) -> Answers:
        with TemporaryDirectory() as folder:
            config = mask_fer_config(bench, seed, Path(folder) / "expert", changes)
            expert = MaskFerExpert.from_pretrained(train_mask_fer(config, _quiet, bench.cache))
            found = {}
            for name in ["val", *bench.tests]:
                faces = bench.sets[name]
                inputs = Inputs(faces, expert.clip, expert.eye, cache=bench.cache)
                inputs.compute(False)
                found[name] = expert.answer_all(inputs, len(faces))
            return found

    return answers


def mask_fer_config(bench: Bench, seed: int, out: Path, changes: list[str]) -> MaskFerConfig:
    """The embedded recipe on this CLIP: frozen features cached, the mask from its own tower."""
    settings = [
        f"data={bench.root / 'source'}", f"out={out}", f"seed={seed}", "save_steps=0",
        f"classes=[{', '.join(bench.classes)}]", f"clip.model={bench.clip_name}",
        f"clip.dtype={bench.dtype}",
    ]  # fmt: skip
    if "mask_weights" in bench.settings:
        settings.append(f"mask.weights={bench.settings['mask_weights']}")
    if "epochs" in bench.settings:
        settings.append(f"epochs={bench.settings['epochs']}")
    return load_yaml_model("embedded/mask_fer", MaskFerConfig, [*settings, *changes])


def _quiet(_done: int, _total: int, _text: str) -> None:
    """No bar: the command prints a line a system."""
