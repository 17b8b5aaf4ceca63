"""face-clip's pieces against references: losses, label algebra, augmentation, texts."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from face_clip_drawings import draw, some_labels, write_faces
from PIL import Image, ImageOps
from pydantic import ValidationError
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from data_pipeline.labels import find_leaks
from data_pipeline.labels.attributes import attributes
from face_mllm.errors import UserError
from face_mllm.face_clip.augment import Moves, draw_moves, move, spoil, still
from face_mllm.face_clip.config import AugmentConfig, FaceClipConfig
from face_mllm.face_clip.faces import check_subjects, load_faces, square
from face_mllm.face_clip.labels import LabelSpace, Targets, moved_labels, turned_pose
from face_mllm.face_clip.locked import draw_prompts, prompt_loss
from face_mllm.face_clip.losses import LabelHeads, contrastive_loss, positive_weights
from face_mllm.face_clip.texts import equal_texts, training_text
from face_mllm.face_clip.tokenizer import train_tokenizer

HELD_OUT = ("smiling", "mouth_open", "blond_hair", "eyes_closed")


def embeddings(batch=6, width=16):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, width, generator=generator) for _ in range(2))


def test_contrastive_loss_is_clips_own():
    image, text = embeddings()
    scale = torch.tensor(2.5)
    unit = [part / part.norm(dim=-1, keepdim=True) for part in (image, text)]
    theirs = image_text_contrastive_loss(scale.exp() * unit[1] @ unit[0].T)
    assert contrastive_loss(image, text, scale).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_equal_captions_share_the_target():
    image, text = embeddings(batch=3)
    text[1] = text[0]
    same = equal_texts(["a man", "a man", "a beard"])
    loss = contrastive_loss(image, text, torch.tensor(1.0), same)
    unit = [part / part.norm(dim=-1, keepdim=True) for part in (image, text)]
    logits = math.e * unit[0] @ unit[1].T
    spread = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
    rows = -(spread * logits.log_softmax(1)).sum(1).mean()
    columns = -(spread * logits.T.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx((rows + columns).item() / 2, rel=1e-6)


LABELS = [
    {
        "expression": "fear",
        "action_units": {"AU12": 3.0, "AU1": 0.5},
        "attributes": {"bald": True, "smiling": True},
        "age": 30.0,
        "head_pose": {"yaw": 10.0, "pitch": 5.0, "roll": -3.0},
        "gender": "male",
    },
    {"action_units": {"AU12": True}, "age_band": "70+", "attributes": {"bald": False}},
    {},
]


def test_targets_keep_unknown_apart():
    space = LabelSpace.of(LABELS, HELD_OUT)
    assert space == LabelSpace(("AU1", "AU12"), ("bald", "male"))
    targets = space.encode(LABELS)
    nan = math.nan
    np.testing.assert_array_equal(targets.intensity, [[0.5, 3.0], [nan, nan], [nan, nan]])
    np.testing.assert_array_equal(targets.active, [[0, 1], [nan, 1], [nan, nan]])
    np.testing.assert_array_equal(targets.attributes, [[1, 1], [0, nan], [nan, nan]])
    np.testing.assert_array_equal(targets.age, [[30, 30], [70, 90], [nan, nan]])
    np.testing.assert_array_equal(targets.pose, [[10, 5, -3], [nan] * 3, [nan] * 3])
    assert targets.expression.tolist() == [4, -1, -1]


def test_unknown_labels_weigh_nothing():
    space = LabelSpace.of(LABELS, HELD_OUT)
    heads = LabelHeads(8, space, positive_weights(space.encode(LABELS)))
    pooled = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    sum(heads.losses(pooled, space.encode(LABELS)).values()).backward()
    assert pooled.grad[0].abs().sum() > 0
    assert pooled.grad[2].abs().sum() == 0
    nothing = heads.losses(pooled, space.encode([{}, {}, {}]))
    assert all(value.item() == 0 for value in nothing.values())


def test_an_age_band_asks_for_no_more_than_itself():
    space = LabelSpace.of(LABELS, HELD_OUT)
    heads = LabelHeads(1, space)
    torch.nn.init.zeros_(heads.linear.weight)
    column = sum(heads.sizes[:4])
    for years, wrong in ((75.0, False), (89.0, False), (60.0, True), (99.0, True)):
        with torch.no_grad():
            heads.linear.bias[column] = (years - 40) / 20
        loss = heads.losses(torch.ones(1, 1), space.encode([{"age_band": "70+"}]))["age"]
        assert (loss.item() > 0) == wrong


def test_mirroring_and_turning_labels():
    labels = {
        "head_pose": {"yaw": 20.0, "pitch": 5.0, "roll": 7.0},
        "attributes": {"light_from_left": True, "light_from_right": False, "blue_eyes": True},
        "action_units": {"AU12": 3.0},
    }
    moved = moved_labels(labels, flip=True, degrees=0.0)
    assert moved["head_pose"] == {"yaw": -20.0, "pitch": 5.0, "roll": -7.0}
    assert moved["attributes"]["light_from_right"] is True
    assert moved["attributes"]["light_from_left"] is False
    assert moved["action_units"] == labels["action_units"]
    assert moved_labels(moved_labels(labels, True, 0.0), True, 0.0) == labels
    assert moved_labels(labels, False, 0.0) == labels
    assert (
        "blurry"
        not in moved_labels({"attributes": {"blurry": False}}, False, 0.0, blurred=True)[
            "attributes"
        ]
    )
    assert "blue_eyes" not in moved_labels(labels, False, 0.0, gray=True)["attributes"]


def test_an_unpaired_side_becomes_the_other_side():
    moved = moved_labels({"attributes": {"light_from_left": True}}, True, 0.0)
    assert moved["attributes"] == {"light_from_right": True}


def rotation(yaw, pitch, roll):
    """300W-LP: R = X(pitch) Y(yaw) Z(roll), image axes x right, y down, z into the picture."""
    a, b, c = np.radians([pitch, yaw, roll])
    about_x = [[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]]
    about_y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    about_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(about_x), np.array(about_y), np.array(about_z)


@pytest.mark.parametrize("pose", [(25.0, -14.0, 9.0), (-40.0, 20.0, -15.0), (0.0, 0.0, 5.0)])
@pytest.mark.parametrize("degrees", [12.0, -30.0])
def test_turning_the_picture_turns_the_pose_matrix(pose, degrees):
    """Against rotation matrices written out; they move the nose as the labels' signs say."""
    nose = np.array([0, 0, -1.0])  # towards the camera
    assert (rotation(20, 0, 0)[1] @ nose)[0] < 0  # yaw > 0: the image's left
    assert (rotation(0, 20, 0)[0] @ nose)[1] < 0  # pitch > 0: up
    assert (rotation(0, 0, 20)[2] @ [0, -1, 0])[0] > 0  # roll > 0: the crown goes right
    turned = turned_pose(dict(zip(("yaw", "pitch", "roll"), pose, strict=True)), degrees)
    parts = rotation(*pose)
    after = rotation(turned["yaw"], turned["pitch"], turned["roll"])
    turn = rotation(0, 0, degrees)[2]
    np.testing.assert_allclose(
        after[0] @ after[1] @ after[2], turn @ parts[0] @ parts[1] @ parts[2], atol=1e-9
    )


def test_a_pose_without_all_axes_cannot_be_turned():
    assert moved_labels({"head_pose": {"yaw": 5.0}}, False, 3.0)["head_pose"] == {}
    assert moved_labels({"head_pose": {"yaw": 5.0}}, True, 0.0)["head_pose"] == {"yaw": -5.0}


def moves(**changes):
    return Moves(**{**still(1).__dict__, **{k: torch.tensor(v) for k, v in changes.items()}})


def tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]


@pytest.fixture
def picture():
    return draw(some_labels(random.Random(5)))


def test_no_move_is_the_central_crop(picture):
    images = tensor(picture)
    out = move(images, still(1), 80)
    assert torch.allclose(out, images[:, :, 8:-8, 8:-8] / 255, atol=1e-5)


def test_flip_is_pillows_mirror(picture):
    out = move(tensor(picture), moves(flip=[True]), 96)
    assert torch.allclose(out, tensor(ImageOps.mirror(picture)) / 255, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_turning_is_clockwise_after_the_mirror(picture, flip):
    out = move(tensor(picture), moves(flip=[flip], degrees=[10.0]), 64)
    first = ImageOps.mirror(picture) if flip else picture
    turned = tensor(first.rotate(-10, Image.Resampling.BILINEAR)) / 255
    assert (out - turned[:, :, 16:-16, 16:-16]).abs().mean() < 0.004


def test_shift_moves_right_and_down(picture):
    images = tensor(picture)
    out = move(images, moves(shift=[[0.125, 0.0625]]), 64)  # 8 and 4 pixels of the output
    assert torch.allclose(out, images[:, :, 12:-20, 8:-24] / 255, atol=1e-5)


def test_zoom_magnifies(picture):
    out = move(tensor(picture), moves(zoom=[2.0]), 64)
    part = picture.crop((32, 32, 64, 64)).resize((64, 64), Image.Resampling.BILINEAR)
    assert (out - tensor(part) / 255)[:, :, 4:-4, 4:-4].abs().mean() < 0.01


def test_pose_labels_follow_a_drawn_head(picture):
    """A drawing turned by its labels equals the upright drawing turned by the augmentation."""
    labels = some_labels(random.Random(5))
    labels["head_pose"] |= {"yaw": 0.0, "roll": 0.0}
    upright = tensor(draw(labels))
    drawn = draw(moved_labels(labels, flip=False, degrees=15.0))
    turned = move(upright, moves(degrees=[15.0]), 64)
    assert (turned - (tensor(drawn) / 255)[:, :, 16:-16, 16:-16]).abs().mean() < 0.004
    labels["head_pose"]["yaw"] = 25.0
    flipped = move(tensor(draw(labels)), moves(flip=[True]), 96)
    mirrored = tensor(draw(moved_labels(labels, flip=True, degrees=0.0))) / 255
    assert (flipped - mirrored).abs().mean() < 0.03


def test_spoiling_keeps_range_and_grays_only_the_chosen():
    config = AugmentConfig(blur=0.5, noise=0.0, jpeg=0.0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(16, 3, 32, 32, generator=generator)
    chosen = dataclasses.replace(still(16), gray=torch.arange(16) < 4)
    out = spoil(pixels, chosen, config, generator)
    spread = (out.amax(1) - out.amin(1)).flatten(1).amax(1)
    assert (spread[:4] < 1e-5).all()
    assert (spread[4:] > 0.05).all()
    noisy = spoil(out, chosen, AugmentConfig(noise=1.0, jpeg=1.0), generator)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_drawn_moves_stay_in_bounds_and_repeat():
    config = AugmentConfig(rotate=9.0, shift=0.1, zoom=(0.8, 1.25), flip=0.5)
    drawn = [draw_moves(500, config, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(vars(m).values() for m in drawn), strict=True))
    assert drawn[0].degrees.abs().max() <= 9
    assert drawn[0].shift.abs().max() <= 0.1
    assert 0.8 <= drawn[0].zoom.min() <= drawn[0].zoom.max() <= 1.25
    assert 0.4 < drawn[0].flip.float().mean() < 0.6


def test_held_out_attributes_reach_neither_texts_nor_heads():
    rng = random.Random(0)
    labels = {
        "attributes": dict.fromkeys(attributes(), True),
        "action_units": {"AU12": 4.0, "AU25": 4.0, "AU43": 4.0, "AU45": 3.0},
        "expression": "happiness",
    }
    texts = [training_text(labels, rng, HELD_OUT) for _ in range(1500)]
    assert find_leaks(texts, HELD_OUT) == []
    assert not set(LabelSpace.of([labels], HELD_OUT).attributes) & set(HELD_OUT)
    assert set(HELD_OUT) < set(LabelSpace.of([labels], ()).attributes)


def test_prompts_claim_and_deny_each_label_and_leak_nothing():
    space = LabelSpace(("AU12", "AU43"), ("beard", "male"))
    prompts = draw_prompts(space, random.Random(0), HELD_OUT)
    assert prompts.flags == 4
    assert len(prompts.texts) == 2 * 4 + 8
    assert prompts.texts[0].startswith("no AU12")
    assert prompts.texts[1].startswith("AU12")
    assert "beard" in prompts.texts[5]
    assert prompts.texts[6] in ("a woman", "a female face")
    drawn = [draw_prompts(space, random.Random(n), HELD_OUT).texts for n in range(50)]
    assert find_leaks([text for texts in drawn for text in texts], HELD_OUT) == []


def test_prompt_loss_is_masked_choices():
    space = LabelSpace(("AU12",), ("beard",))
    prompts = draw_prompts(space, random.Random(0), ())
    labels = [
        {"action_units": {"AU12": 4.0}, "expression": "fear"},
        {"attributes": {"beard": False}},
    ]
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([3.0, 5.0])
    loss = prompt_loss(logits, prompts, space.encode(labels), weight)
    active = -3.0 * logits[0, :2].log_softmax(0)[1]
    denied = -logits[1, 2:4].log_softmax(0)[0]
    fear = -logits[0, 4:].log_softmax(0)[4]
    assert loss.item() == pytest.approx(((active + denied) / 2 + fear).item(), rel=1e-5)


def test_tokenizer_gives_caption_words_whole_and_reads_anything():
    rng = random.Random(0)
    texts = [training_text(some_labels(rng), rng, ()) for _ in range(800)]
    tokenizer = train_tokenizer(texts, 1024, 24)
    assert len(tokenizer) <= 1024
    ids = tokenizer("AU12 lip corner puller")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id != 2
    words = tokenizer.convert_ids_to_tokens(ids[1:-1])
    assert words[0] == "Ġau12"
    inside = tokenizer("a man,   AU12 lip corner puller")["input_ids"]
    assert inside[-len(ids) + 1 :] == ids[1:]  # the same tokens first and last
    strange = tokenizer("größer ☃ 漢字")["input_ids"]
    assert tokenizer.unk_token_id not in strange
    assert tokenizer.decode(strange, skip_special_tokens=True).strip() == "größer ☃ 漢字"
    assert len(tokenizer("a " * 99, truncation=True)["input_ids"]) == 24


def test_square_is_the_processors_resize_and_crop():
    from face_mllm.face_clip.config import ImageTowerConfig
    from face_mllm.face_clip.model import image_processor

    noise = np.random.default_rng(0).integers(0, 255, (150, 120, 3), np.uint8)
    image = Image.fromarray(noise)
    processor = image_processor(ImageTowerConfig(size=64, resize=64))
    theirs = processor([image], return_tensors="pt")["pixel_values"][0] * 0.25 + 0.5
    ours = torch.from_numpy(square(image, 64).copy()).permute(2, 0, 1) / 255
    assert (theirs - ours).abs().max() < 1e-4


def test_splits_that_share_a_person_are_refused(tmp_path):
    write_faces(tmp_path / "faces", train=4, val=2)
    train = load_faces([tmp_path / "faces"], "train", 32)
    assert train.images.shape == (4, 3, 32, 32)
    with pytest.raises(UserError, match="share 4 subjects"):
        check_subjects(train, train)
    check_subjects(train, load_faces([tmp_path / "faces"], "val", 32))
    assert len(load_faces([tmp_path / "faces"], "train", 32, limit=3)) == 3
    with pytest.raises(UserError, match="test-"):
        load_faces([tmp_path / "faces"], "test", 32)


def test_targets_index_like_tensors():
    targets = LabelSpace.of(LABELS, ()).encode(LABELS)
    part = targets[torch.tensor([0, 2])]
    assert isinstance(part, Targets)
    assert part.age.shape == (2, 2)


def test_a_misspelt_held_out_attribute_is_refused():
    with pytest.raises(ValidationError, match="did you mean 'smiling'"):
        FaceClipConfig(data=("faces",), out="clip", holdout_attributes=("smilng",))
