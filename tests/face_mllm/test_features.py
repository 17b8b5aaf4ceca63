"""Frozen features: what they are, when they are computed again, and what a crash leaves."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import face_jpeg
from PIL import Image

from data_pipeline.records import FaceRecord
from face_mllm.errors import UserError
from face_mllm.face_clip.zero_shot import ZeroShot
from face_mllm.features import IMAGENET_MEAN, IMAGENET_STD, FrozenClip, PixelRule
from face_mllm.references import FACE_CLIP


@pytest.fixture(scope="module")
def clip():
    return FrozenClip("embedded:face-clip")


@pytest.fixture
def faces():
    rng = np.random.default_rng(3)
    return [
        FaceRecord(f"f{n}", "toy", "train", f"s{n}", face_jpeg(bool(n % 2), rng), {})
        for n in range(5)
    ]


@pytest.fixture
def counted(clip, monkeypatch):
    """Number of pictures the tower has seen."""
    seen = []
    forward = clip.forward

    def counting(pixels, tokens=False):
        seen.append(len(pixels))
        return forward(pixels, tokens)

    monkeypatch.setattr(clip, "forward", counting)
    return seen


def gathered(found):
    cache, keys = found
    return cache.gather(keys)


def test_embeddings_are_those_of_the_joint_space_and_not_normalised(clip, faces, tmp_path):
    found = clip.features(faces, root=tmp_path)
    assert found.shape == (5, clip.width)
    unit = ZeroShot(FACE_CLIP).image_embeddings([face.open_image() for face in faces])
    lengths = found.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found / lengths, unit, atol=1e-5, rtol=1e-4)
    assert (lengths - 1).abs().min() > 0.05


def test_known_pictures_are_not_computed_again(clip, faces, counted, tmp_path):
    first = clip.features(faces[:3], root=tmp_path)
    renamed = [dataclasses.replace(face, id="other") for face in faces]
    again = clip.features([*renamed, faces[0]], root=tmp_path)
    assert counted == [3, 2]
    assert torch.equal(again[:3], first)
    assert torch.equal(again[0], again[5])


def test_a_file_and_its_bytes_are_one_picture(clip, faces, counted, tmp_path):
    (tmp_path / "a.jpg").write_bytes(faces[0].image)
    by_path = dataclasses.replace(faces[0], image=str(tmp_path / "a.jpg"))
    clip.features([faces[0], by_path], root=tmp_path)
    assert counted == [1]
    gone = dataclasses.replace(by_path, image=str(tmp_path / "gone.jpg"))
    with pytest.raises(UserError, match=r"f0: .*gone.jpg"):
        clip.features([gone], root=tmp_path)


def test_what_decides_a_feature_is_in_the_key(clip, faces, tmp_path):
    def folders():
        return {path.name for path in tmp_path.iterdir()}

    clip.features(faces, root=tmp_path)
    clip.cached(faces, mirror=True, root=tmp_path)
    clip.cached(faces, tokens=True, root=tmp_path)
    assert len(folders()) == 3
    for other in (
        FrozenClip("embedded:face-clip", dtype=torch.bfloat16),
        FrozenClip("embedded:face-clip", PixelRule(squash=True)),
    ):
        before = folders()
        other.features(faces, root=tmp_path)
        assert len(folders() - before) == 1


def test_a_damaged_part_is_computed_again(clip, faces, counted, tmp_path):
    first = clip.features(faces, root=tmp_path)
    (part,) = tmp_path.rglob("part-*.safetensors")
    part.write_bytes(part.read_bytes()[:-40])
    assert torch.equal(clip.features(faces, root=tmp_path), first)
    assert counted == [5, 5]
    assert [path.name[0] for path in part.parent.iterdir() if path.name[0] == "."] == []


def test_mirror_is_the_feature_of_the_mirrored_picture(clip, faces, tmp_path):
    mirrored = gathered(clip.cached(faces, mirror=True, root=tmp_path))["embedding"]
    flipped = [f.open_image().transpose(Image.Transpose.FLIP_LEFT_RIGHT) for f in faces]
    direct = clip.forward(clip.pixels(clip.squares(flipped)))["embedding"]
    torch.testing.assert_close(mirrored, direct, atol=2e-3, rtol=2e-3)


def test_own_pixels_equal_the_processor_and_the_rule_replaces_them(clip, faces):
    images = [face.open_image() for face in faces]
    own = clip.processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip.pixels(clip.squares(images)), own, atol=1e-4, rtol=1e-4)
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 0, 100, 100))
    paper = FrozenClip("embedded:face-clip", PixelRule(True, IMAGENET_MEAN, IMAGENET_STD))
    (square,) = paper.squares([wide])
    assert square.shape == (3, paper.size, paper.size)
    blue = (square[2] > 128).float().mean()
    assert blue == pytest.approx(1 / 3, abs=0.02)  # squashed, nothing cut off
    red = paper.pixels(square[None])[0, :, 0, -1]
    assert red[0] == pytest.approx((1 - IMAGENET_MEAN[0]) / IMAGENET_STD[0], abs=1e-4)


def test_a_clip_vit_gives_embedding_and_patch_tokens(tmp_path, image_processor, faces):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small["num_attention_heads"] = 2
    vision = {**small, "image_size": 32, "patch_size": 8}
    text = {**small, "vocab_size": 50, "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    image_processor.save_pretrained(tmp_path / "clip")
    clip = FrozenClip(str(tmp_path / "clip"))
    made = gathered(clip.cached(faces, tokens=True, root=tmp_path))
    assert made["embedding"].shape == (5, 24)
    assert made["tokens"].shape == (5, 16, 32)
    assert (clip.width, clip.token_width, clip.size) == (24, 32, 32)
    with pytest.raises(UserError, match="not the CLIP this expert was trained on"):
        FrozenClip(str(tmp_path / "clip"), fingerprint="0" * 64)


def test_a_model_without_a_joint_space_is_refused(tiny_parts):
    with pytest.raises(UserError, match="no image embedding"):
        FrozenClip(str(tiny_parts / "vision"))
