"""The CLIP of ``benchmarks/experts`` that rarely met expression words, and the heads above it."""

import io
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "experts"))

import exp_clip_heads
import general

from data_pipeline.captions import caption
from data_pipeline.labels.expressions import ADJECTIVES, BASIC7
from data_pipeline.records import FaceRecord, write_dataset
from face_mllm.configio import load_yaml_model
from face_mllm.experts.exp_clip.fit import Fit
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.model import load_face_clip
from face_mllm.references import resolve


def labels_of(n):
    return {
        "expression": BASIC7[n % 7], "action_units": {"AU4": 3.0}, "gender": "female",
        "age": 30.0 + n, "attributes": {"eyeglasses": n % 2 == 0, "smiling": True},
    }  # fmt: skip


@pytest.fixture(scope="module")
def tower():
    return load_face_clip(resolve(general.TOWER))


def test_the_share_is_drawn_by_name_and_the_rest_is_never_spoken_of():
    names = [f"synth_{n}" for n in range(2000)]
    drawn = {share: {n for n in names if general.is_spoken_of(n, share)} for share in (0.05, 0.2)}
    for share, some in drawn.items():
        assert len(some) == pytest.approx(2000 * share, abs=60)  # three standard deviations
    assert drawn[0.05] < drawn[0.2]  # a larger share only adds people
    rng, words = random.Random(0), {*ADJECTIVES, *ADJECTIVES.values(), "AU4", "brow", "smil"}
    config = load_yaml_model("embedded/face_clip", FaceClipConfig, ["out=x", "data=[y]"])

    def spoken(labels):
        texts = (caption(labels, rng, config.holdout_attributes, short=True) for _ in range(300))
        return sum(any(word in text for word in words) for text in texts)

    assert spoken(general.hushed(labels_of(1))) == 0
    assert spoken(labels_of(1)) > 100  # the same words are there where the labels are


def test_only_the_image_tower_is_kept(tower):
    model = general.relearned(tower, 0)
    kept, known = model.state_dict(), tower.state_dict()
    vision = [name for name in known if name.startswith("vision_model.")]
    assert all(torch.equal(kept[name], known[name]) for name in vision)
    assert len(model.text_model.encoder.layers) == general.LAYERS
    for name in ("visual_projection.weight", "text_model.embeddings.token_embedding.weight"):
        assert not torch.allclose(kept[name], known[name])
    assert model.logit_scale.item() == pytest.approx(2.6593, abs=1e-3)  # log(1 / 0.07)
    assert len(tower.text_model.encoder.layers) == 3  # its config was not touched


def test_texts_are_learned_beside_the_locked_tower(tower, tmp_path):
    torch.manual_seed(0)
    pooled, labels = torch.randn(8, 288), [labels_of(n) for n in range(8)]
    given = ["out=x", "data=[y]", "max_steps=40"]
    config = load_yaml_model("embedded/face_clip", FaceClipConfig, given)
    hardware = SimpleNamespace(device="cpu", autocast=False)
    learn = general.Learning(general.relearned(tower, 0), pooled, labels, config, hardware)
    losses = []
    learn.write(tmp_path / "clip", lambda *told: losses.append(float(told[2].split()[-1])))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    made, known = load_face_clip(tmp_path / "clip").state_dict(), tower.state_dict()
    vision = [name for name in known if name.startswith("vision_model.")]
    assert all(torch.equal(made[name], known[name]) for name in vision)


def test_a_clip_for_each_share_is_made_once(tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    with write_dataset(tmp_path / "faces") as writer:
        for n in range(6):
            who = f"f{n}"
            writer.add(FaceRecord(who, "synth", "train", who, picture.getvalue(), labels_of(n)))
    told = {}

    class Noted:
        def __init__(self, model, pooled, labels, config, hardware):
            assert pooled.shape == (6, 288)
            self.labels = labels

        def write(self, to, progress):
            told[to.name] = ["expression" in labels for labels in self.labels]
            to.mkdir()

    monkeypatch.setattr(general, "Learning", Noted)
    monkeypatch.setattr(general, "synthesise", lambda *_, **__: pytest.fail("drawn again"))
    found = general.general_clips(tmp_path, 6, [0, 0.5, 1], 2, lambda *_: None)
    assert [path.name for path in found] == ["share-0", "share-0.5", "share-1"]
    half = [general.is_spoken_of(f"f{n}", 0.5) for n in range(6)]
    assert told == {"share-0": [False] * 6, "share-0.5": half, "share-1": [True] * 6}
    monkeypatch.setattr(general, "load_faces", lambda *_, **__: pytest.fail("read again"))
    assert general.general_clips(tmp_path, 6, [0, 1], 2, lambda *_: None) == [found[0], found[2]]


def test_share_of_variance_between_classes():
    truth = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[3.0, 0], [1, 0], [-2, 0], [-1, 0]])  # unit length: all of it
    assert exp_clip_heads.expression_share(apart, truth) == pytest.approx(1)
    half = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert exp_clip_heads.expression_share(half, truth) == pytest.approx(0.5)


def test_rate_and_steps_are_chosen_on_val(monkeypatch):
    """One recipe's head is the identity, the others swap two classes; val alone tells them."""
    good = exp_clip_heads.RECIPES[2]
    swap = torch.tensor([[0.0, 1], [1, 0]])
    tried = []

    def fitted(_student, _target, _scale, config):
        tried.append((config.learning_rate, config.epochs))
        head = torch.nn.Linear(2, 2, bias=False)
        right = config.learning_rate == good[0] and config.epochs == good[1]
        head.weight.data = torch.eye(2) if right else swap
        return Fit(head, [{"step": 1, "loss": 0.0, "top1": 0.0}])

    faces = SimpleNamespace(targets=torch.tensor([0, 1, 1]))
    bench = SimpleNamespace(
        classes=("a", "b"), clip=SimpleNamespace(logit_scale=1.0), clip_name="c", root=Path(),
        settings={"teacher": "t", "instruction": "Say it."},
        sets={"val": faces, "train": range(512)},  # one batch an epoch
        features=lambda name: torch.eye(2)[faces.targets],
    )  # fmt: skip
    words = [torch.tensor([[1.0, 0.1]]), torch.tensor([[0.1, 1.0]])]
    monkeypatch.setattr(exp_clip_heads, "fit", fitted)
    monkeypatch.setattr(exp_clip_heads, "teacher_target", lambda _: None)
    monkeypatch.setattr(exp_clip_heads, "prompt_features", lambda *_: words)
    monkeypatch.setattr(exp_clip_heads, "_HEADS", {})
    # prompts go through the head as faces do, so a swap of both changes nothing: swap faces alone
    monkeypatch.setattr(
        exp_clip_heads, "zero_shot", lambda head, image, texts, _: head(image) @ torch.cat(texts).T
    )
    head = exp_clip_heads.chosen_head(bench, 0)
    assert torch.equal(head.weight, torch.eye(2))
    assert tried == list(exp_clip_heads.RECIPES)
    exp_clip_heads.exp_clip_head(bench, 0)  # the paper's is among them and not trained twice
    assert len(tried) == len(exp_clip_heads.RECIPES)
    assert exp_clip_heads.exp_clip_config(bench, 0).teacher.instruction == "Say it."
