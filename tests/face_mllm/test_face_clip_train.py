"""face-clip end to end on drawn faces: learning, resuming, saving, zero-shot."""

import json

import numpy as np
import pytest
import torch
import yaml
from face_clip_drawings import draw, write_faces
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from data_pipeline.labels import find_leaks
from face_mllm.configio import load_yaml_model
from face_mllm.errors import UserError
from face_mllm.face_clip import ZeroShot, load_face_clip
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.faces import load_faces
from face_mllm.face_clip.locked import tune_text
from face_mllm.face_clip.measure import pooled
from face_mllm.face_clip.train import CHECKPOINT, Run, train_face_clip
from face_mllm.hardware import for_precision
from face_mllm.model.vision import image_tokens, load_vision_tower, pooled_features

SMALL = {
    "image": {"hidden_sizes": [16, 32], "depths": [1, 1], "stem": 16, "size": 48, "resize": 56},
    "text": {"width": 32, "layers": 1, "heads": 2, "vocabulary": 400, "max_tokens": 64},
    "projection": 32,
    "batch_size": 32,
    "precision": "fp32",
    "probe_train": 160,
    "holdout_attributes": ["smiling", "blond_hair"],
    "log_steps": 1,
    "locked": {"steps": 12, "batch_size": 48},
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("drawn") / "faces")


def settings(faces, out, **changes):
    return FaceClipConfig.model_validate({**SMALL, "data": [faces], "out": out, **changes})


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    config = {**SMALL, "kind": "face_clip", "data": [str(faces)], "out": str(place / "clip")}
    (place / "clip.yaml").write_text(
        yaml.safe_dump({**config, "max_steps": 60, "export_steps": 40})
    )
    read = load_yaml_model(place / "clip.yaml", FaceClipConfig, ["learning_rate=3.0e-3"])
    told = []
    folder = train_face_clip(read, lambda done, total, text: told.append((done, total)))
    assert told[-1] == (60, 60)
    assert (12, 12) in told
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_loss_falls(trained):
    lines = metrics(trained)
    assert [line["step"] for line in lines] == list(range(1, 61))
    for name in ("total", "contrastive", "action_unit", "expression", "head_pose"):
        first, last = (np.mean([line[name] for line in part]) for part in (lines[:5], lines[-10:]))
        assert last < 0.95 * first, name


def test_the_card_and_figures_come_from_the_run(trained):
    card = (trained / "README.md").read_text()
    figures = json.loads((trained / "measured.json").read_text())
    assert f"{figures['probe']['action_unit_f1']['mean']:.3f}" in card
    assert "60 steps of 32 faces (1,920 pictures seen)" in card
    assert "| drawn | 192 | 48 | CC0 |" in card
    assert set(figures["probe"]["held_out_balanced_accuracy"]) == {"mean", "smiling", "blond_hair"}
    assert figures["probe"]["action_unit_f1"]["AU12"] > 0.7
    assert not list(trained.parent.glob("*.run"))


def test_the_folder_reloads_the_same_and_stock_classes_read_it(trained, faces):
    val = load_faces([faces], "val", 56)
    ours = load_face_clip(trained)
    features = pooled(ours, val.images, 48)
    tower = load_vision_tower(trained).eval()
    stock = AutoModel.from_pretrained(trained).vision_model.eval()
    pixels = AutoImageProcessor.from_pretrained(trained, backend="pil")
    image = draw(val.labels[0])
    batch = pixels([image], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        tokens = image_tokens(tower, batch, -1, "full")
        assert tokens.shape == (1, 1 + 6 * 6, 32)
        assert torch.allclose(pooled_features(tower, batch, -1), tokens[:, 0], atol=1e-6)
        assert torch.equal(stock(batch).last_hidden_state, ours.vision_model(batch)[0])
    assert np.abs(features[0] - tokens[0, 0].numpy()).max() < 0.05  # uint8 against float resizing
    again = load_face_clip(trained)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert AutoTokenizer.from_pretrained(trained)("a beard")["input_ids"][0] == 1
    assert not list(trained.glob("*.bin")) + list(trained.glob("*.pt"))


def test_the_locked_phase_moves_only_the_text_side(faces, tmp_path):
    config = settings(faces, tmp_path / "a")
    train = load_faces(config.data, "train", config.image.resize)
    run = Run(config, for_precision("fp32"), train, train)
    model = run.averaged_model()
    losses = []

    def told(done, total, text):
        losses.extend([float(text.split()[-1])] if "loss" in text else [])

    tune_text(model, run.tokenizer, train, config, for_precision("fp32"), told)
    assert losses[-1] < losses[0]
    moved = [n for n, v in model.state_dict().items() if not torch.equal(v, run.average.state[n])]
    assert "text_projection.weight" in moved
    assert not [name for name in moved if name.startswith("vision_model.")]


def test_an_intermediate_export_is_a_whole_folder(trained):
    early = trained.with_name("clip-step40")
    assert "nothing was measured" in (early / "README.md").read_text()
    assert len(metrics(early)) == 40
    first, last = (load_face_clip(folder).visual_projection.weight for folder in (early, trained))
    assert not torch.equal(first, last)


def test_weights_are_stored_in_half_precision(trained):
    count = sum(value.numel() for value in load_face_clip(trained).state_dict().values())
    assert (trained / "model.safetensors").stat().st_size < 2 * count + 40_000


def test_forward_gives_clips_loss(trained):
    shot = ZeroShot(trained)
    inputs = shot.tokenizer(["a beard", "AU12", "a man"], padding=True, return_tensors="pt")
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = shot.model(pixel_values=pixels, return_loss=True, **inputs)
    assert out.loss.item() == pytest.approx(
        image_text_contrastive_loss(out.logits_per_text).item(), rel=1e-6
    )


def test_zero_shot_is_a_softmax_over_mean_logits_of_groups(trained, faces):
    shot = ZeroShot(trained)
    images = [draw(labels) for labels in load_faces([faces], "val", 56).labels[:5]]
    prompts = [["happiness", "a happy expression"], ["a neutral face"]]
    ours = shot.zero_shot(images, prompts)
    assert ours.shape == (5, 2)
    logits = (
        shot.image_embeddings(images)
        @ shot.text_embeddings([*prompts[0], *prompts[1]]).T
        * shot.model.logit_scale.exp()
    ).detach()
    grouped = torch.stack([logits[:, :2].mean(1), logits[:, 2]], 1)
    np.testing.assert_allclose(ours, grouped.softmax(1), atol=1e-6)
    assert shot.image_embeddings(images).norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


def test_going_on_equals_never_stopping(faces, tmp_path):
    def started(name):
        config = settings(faces, tmp_path / name, max_steps=6, save_steps=3)
        train = load_faces(config.data, "train", config.image.resize)
        return Run(config, for_precision("fp32"), train, train)

    whole = started("whole")
    whole.resume()
    for _ in range(6):
        whole.advance()
    stopped = started("stopped")
    stopped.resume()
    for _ in range(4):  # one step past the checkpoint: it must be made again
        stopped.advance()
    again = started("stopped")
    again.resume()
    assert again.step == 3
    while again.step < 6:
        again.advance()
    for name, value in whole.average.state.items():
        assert torch.equal(value, again.average.state[name]), name
    lines = [(line["step"], line["total"]) for line in metrics(whole.folder)]
    assert lines == [(line["step"], line["total"]) for line in metrics(again.folder)]


def test_another_setting_does_not_go_on_with_an_old_checkpoint(faces, tmp_path):
    config = settings(faces, tmp_path / "a", max_steps=4, save_steps=2)
    train = load_faces(config.data, "train", config.image.resize)
    run = Run(config, for_precision("fp32"), train, train)
    for _ in range(2):
        run.advance()
    other = Run(
        config.model_copy(update={"learning_rate": 1e-4}), for_precision("fp32"), train, train
    )
    with pytest.raises(UserError, match="learning_rate"):
        other.resume()
    (run.folder / CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(UserError, match="not a face-clip checkpoint"):
        Run(config, for_precision("fp32"), train, train).resume()


def test_bad_input_is_a_user_error(faces, tmp_path, trained):
    with pytest.raises(UserError, match="already holds files"):
        train_face_clip(settings(faces, trained))
    with pytest.raises(UserError, match="no train-"):
        train_face_clip(settings(tmp_path / "nothing", tmp_path / "out"))
    with pytest.raises(UserError, match="192 training faces"):
        train_face_clip(settings(faces, tmp_path / "out", batch_size=256))
    with pytest.raises(UserError, match="not a face-clip folder"):
        load_face_clip(tmp_path)


def test_the_shipped_config_is_valid_and_names_its_hold_outs():
    config = load_yaml_model("embedded/face_clip", FaceClipConfig)
    assert set(config.holdout_attributes) == {"smiling", "mouth_open", "blond_hair", "eyes_closed"}
    with pytest.raises(UserError, match="learning_rate"):
        load_yaml_model("embedded/face_clip", FaceClipConfig, ["learning_rat=1"])


def test_no_held_out_word_is_in_the_trained_vocabulary(trained):
    words = [token.strip("Ġ") for token in AutoTokenizer.from_pretrained(trained).get_vocab()]
    assert find_leaks(words, SMALL["holdout_attributes"]) == []
