"""Parts of mask-FER: mask networks, first weights, augmentation, inputs, settings."""

import re

import pytest
import torch
from mask_fer_faces import write_clip, write_expressions
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import ResNetModel

from data_pipeline.labels.codes import codes
from data_pipeline.labels.expressions import BASIC7
from face_mllm.errors import UserError
from face_mllm.experts.mask_fer.augment import draw_spoils, erase, spoil
from face_mllm.experts.mask_fer.backbone import (
    Match,
    PatchHeadMask,
    ResNetMask,
    load_start,
    resnet_config,
    torchvision_state,
)
from face_mllm.experts.mask_fer.config import (
    CAFE7,
    AugmentSettings,
    LossSettings,
    MaskFerConfig,
    MaskSettings,
)
from face_mllm.experts.mask_fer.expert import MaskFerExpert
from face_mllm.experts.mask_fer.faces import load_expressions
from face_mllm.experts.mask_fer.inputs import Inputs, MaskEye
from face_mllm.experts.mask_fer.model import MaskFer, losses
from face_mllm.features import IMAGENET_MEAN, IMAGENET_STD, FrozenClip
from face_mllm.model.processing import load_image_processor

SMALL = {"embedding_size": 8, "hidden_sizes": (8, 16), "depths": (1, 2)}


def resnet(layer_type="basic", seed=0):
    torch.manual_seed(seed)
    return ResNetMask(resnet_config(MaskSettings(**SMALL, layer_type=layer_type)))


def torchvision_name(name):
    name = re.sub(r"^embedder\.embedder\.convolution", "conv1", name)
    name = re.sub(r"^embedder\.embedder\.normalization", "bn1", name)
    found = re.match(r"encoder\.stages\.(\d)\.layers\.(\d)\.(.*)", name)
    if not found:
        return name
    rest = found[3].replace("shortcut.convolution", "downsample.0")
    rest = rest.replace("shortcut.normalization", "downsample.1")
    inner = re.match(r"layer\.(\d)\.(convolution|normalization)\.(.*)", rest)
    if inner:
        kind = "conv" if inner[2] == "convolution" else "bn"
        rest = f"{kind}{int(inner[1]) + 1}.{inner[3]}"
    return f"layer{int(found[1]) + 1}.{found[2]}.{rest}"


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_load_by_reference(tmp_path, layer_type, suffix):
    given, mask = resnet(layer_type, seed=1), resnet(layer_type, seed=2)
    state = {f"module.{torchvision_name(k)}": v for k, v in given.resnet.state_dict().items()}
    assert {"module.conv1.weight", "module.layer2.0.downsample.1.running_mean"} <= set(state)
    assert "module.layer2.1.bn2.weight" in state
    state["module.fc.weight"] = torch.zeros(3, 16)
    path = tmp_path / f"faces{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    load_start(mask, str(path))
    for name, value in given.resnet.state_dict().items():
        assert torch.equal(mask.resnet.state_dict()[name], value), name


def test_weights_that_do_not_fit_say_so(tmp_path):
    mask = resnet()
    state = torchvision_state({torchvision_name(k): v for k, v in mask.resnet.state_dict().items()})
    assert set(state) == set(mask.resnet.state_dict())
    state.pop("encoder.stages.0.layers.0.layer.0.convolution.weight")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"less.safetensors: does not fit .*1 weights missing"):
        load_start(mask, str(tmp_path / "less.safetensors"))
    (tmp_path / "no.pth").write_text("nothing")
    with pytest.raises(UserError, match=r"no.pth: cannot be read as weights"):
        load_start(mask, str(tmp_path / "no.pth"))


def test_a_hugging_face_resnet_gives_shape_and_weights(tmp_path, tiny_parts):
    settings = MaskSettings(weights=str(tiny_parts / "vision"))
    mask = ResNetMask(resnet_config(settings))
    assert mask.width == 32
    load_start(mask, settings.weights)
    given = ResNetModel.from_pretrained(tiny_parts / "vision")
    name = "encoder.stages.3.layers.0.layer.0.convolution.weight"
    assert torch.equal(mask.resnet.state_dict()[name], given.state_dict()[name])
    with pytest.raises(UserError, match="llama"):
        resnet_config(MaskSettings(weights=str(tiny_parts / "llm")))


def test_match_is_nothing_a_mean_or_a_linear_layer():
    mask = torch.arange(12.0).view(1, 12)
    assert torch.equal(Match(12, 12, "linear")(mask), mask)
    assert Match(12, 4, "mean")(mask).tolist() == [[1, 4, 7, 10]]
    assert not list(Match(12, 4, "mean").parameters())
    assert Match(12, 4, "linear")(mask).shape == (1, 4)


def test_features_times_the_sigmoid_of_the_averaged_map():
    mask, pixels = resnet().eval(), torch.randn(2, 3, 32, 32)
    model = MaskFer(mask, 16, 3, "linear").eval()
    features = torch.randn(2, 16)
    logits = mask.resnet(pixels).last_hidden_state.flatten(2).mean(2)
    expected = features * torch.sigmoid(logits)
    torch.testing.assert_close(model.masked(features, pixels), expected)
    torch.testing.assert_close(model.logits(expected), model.fc(expected))
    assert torch.equal(MaskFer(None, 16, 3, "linear").masked(features, None), features)
    head = PatchHeadMask(10, 8, 16)
    tokens = torch.randn(2, 5, 10)
    each = torch.stack([head.layers(tokens[:, k]) for k in range(5)]).mean(0)
    torch.testing.assert_close(head(tokens), each)


def test_more_classes_than_channels_are_refused():
    with pytest.raises(UserError, match="17 classes need at least as many channels"):
        MaskFer(None, 16, 17, "linear")


@pytest.mark.parametrize("kind", ["resnet", "patch_head"])
def test_gradients_of_the_whole_model_by_differences(kind):
    """Along a random direction of all weights, in fp64, batch norm as in training."""
    torch.manual_seed(0)
    mask = resnet() if kind == "resnet" else PatchHeadMask(10, 8, 12)
    model = MaskFer(mask, 12, 3, "linear").double().train()
    seen = torch.randn(4, 3, 24, 24) if kind == "resnet" else torch.randn(4, 5, 10)
    features, targets = torch.randn(4, 12).double(), torch.tensor([0, 1, 2, 0])
    weights = dict(model.named_parameters())
    direction = {name: torch.randn_like(value) for name, value in weights.items()}

    def total(step):
        moved = {name: value + step * direction[name] for name, value in weights.items()}

        class Whole(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self):
                x = self.inner.masked(features, seen.double())
                return losses(self.inner, x, targets, None, LossSettings()).total

        return torch.func.functional_call(
            Whole(), {f"inner.{name}": value for name, value in moved.items()}, ()
        )

    gradients = torch.autograd.grad(total(0.0), list(weights.values()))
    along = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True))
    with torch.no_grad():
        measured = (total(1e-6) - total(-1e-6)) / 2e-6
    assert measured.item() == pytest.approx(along.item(), rel=1e-5)


def test_noise_has_the_variance_asked_for_and_mirrors_are_exact():
    squares = torch.full((400, 3, 16, 16), 120, dtype=torch.uint8)
    squares[:, :, :, 0] = 30
    generator = torch.Generator().manual_seed(0)
    spoils = draw_spoils(400, AugmentSettings(), generator)
    made = spoil(squares, spoils, 30.0, generator) * 255
    assert 0.4 < spoils.noise.float().mean() < 0.6
    assert 0.4 < spoils.flip.float().mean() < 0.6
    assert made[spoils.noise][:, :, :, 1:-1].var().item() == pytest.approx(30, rel=0.05)
    assert made[~spoils.noise & spoils.flip][:, :, :, -1].unique().tolist() == [30]
    still = ~spoils.noise & ~spoils.flip
    torch.testing.assert_close(made[still], squares[still].float())


def test_erasing_takes_the_area_asked_for_and_leaves_the_mean_colour():
    generator = torch.Generator().manual_seed(0)
    spoils = draw_spoils(500, AugmentSettings(erase=0.5), generator)
    erased = erase(torch.ones(500, 3, 64, 64), spoils.boxes)
    share = (erased[:, 0] == 0).float().mean((1, 2))
    some = share > 0
    assert 0.4 < some.float().mean() < 0.6
    assert share[some].min() > 0.01
    assert share[some].max() < 0.27
    assert share[some].mean().item() == pytest.approx(0.135, abs=0.02)
    small = erase(torch.ones(500, 3, 32, 32), spoils.boxes)
    difference = (small[:, 0] == 0).float().mean((1, 2)) - share
    assert difference.abs().max() < 0.06  # the same rectangle at another size


@pytest.fixture(scope="module")
def parts(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("mask_fer_parts")
    data = write_expressions(root / "data")
    return data, FrozenClip(str(write_clip(root / "clip", image_processor)))


def loaded(data, split="train", remap=None):
    return load_expressions(data, split, ("neutral", "happiness", "anger"), remap or {})


def test_faces_of_other_classes_are_left_out_and_counted(parts):
    faces = loaded(parts[0])
    assert len(faces) == 36
    assert faces.left_out == {"contempt": 1, "unlabelled": 1}
    assert faces.targets.bincount().tolist() == [12, 12, 12]
    assert [faces[4].labels["expression"], faces.targets[4].item()] == ["happiness", 1]
    assert [face.id for face in faces[0:2]] == ["toy_train_0", "toy_train_1"]
    remapped = loaded(parts[0], remap={"contempt": "anger"})
    assert len(remapped) == 37
    assert remapped.targets[-1] == 2
    with pytest.raises(UserError, match=r"no face of split test shows one of fear .*anger"):
        load_expressions(parts[0], "test", ("fear",), {})


EYES = {
    "pixels": MaskEye("pixels", 24, IMAGENET_MEAN, IMAGENET_STD),
    "tokens": MaskEye("tokens", 0, IMAGENET_MEAN, IMAGENET_STD),
}


def test_the_paper_s_pixels_are_one_tensor_for_both_towers(parts, tmp_path, tiny_parts):
    """Squashed, with ImageNet's mean and std, whatever the mask's own processor says."""
    clip = {"model": parts[1].reference}
    mask = {"kind": "resnet", "weights": str(tiny_parts / "vision")}
    wide = Image.new("RGB", (40, 20), (255, 51, 0))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    wanted = ((torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1) - mean) / std).expand(3, 32, 32)
    given = {"data": parts[0], "clip": clip, "mask": mask}
    paper = MaskFerExpert.fresh(settings(**given, paper_preprocess=True))
    paper.save(tmp_path)
    for expert in (paper, MaskFerExpert.from_pretrained(tmp_path)):  # in training, and in use
        squares = expert.clip.squares([wide])
        torch.testing.assert_close(expert.clip.pixels(squares)[0], wanted)
        torch.testing.assert_close(expert.eye.pixels(squares.float() / 255)[0], wanted)
        torch.testing.assert_close(expert.read([wide])[1][0], wanted)
    plain = MaskFerExpert.fresh(settings(**given))
    own = load_image_processor(tiny_parts / "vision")
    assert (plain.eye.mean, plain.eye.std) == (tuple(own.image_mean), tuple(own.image_std))
    assert plain.eye.mean != IMAGENET_MEAN


@pytest.mark.parametrize("reads", ["pixels", "tokens"])
def test_cached_features_are_those_of_the_very_picture(parts, tmp_path, reads):
    """Without noise and erasing the two ways differ by rounding alone."""
    faces, rows = loaded(parts[0]), [3, 1, 20, 7]
    plain = AugmentSettings(noise=0, erase=0)
    cached = Inputs(faces, parts[1], EYES[reads], 1e9, tmp_path)
    cached.compute(False)
    cached.compute(True)
    online = Inputs(faces, parts[1], EYES[reads], 0.0, tmp_path)
    both = [each.spoilt(rows, plain, torch.Generator().manual_seed(5)) for each in (cached, online)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert both[0][1].shape == ((4, 3, 24, 24) if reads == "pixels" else (4, 16, 32))


def test_pictures_are_kept_within_their_room(parts):
    clip, faces = parts[1], loaded(parts[0])
    inputs = Inputs(faces, clip, EYES["pixels"], most_bytes=2.5 * 3 * clip.size**2)
    first = inputs.pictures[[0, 1, 0]]
    assert first.dtype == torch.uint8
    assert torch.equal(first[0], first[2])
    assert sorted(inputs.pictures.kept) == [0, 1]
    again = inputs.pictures[[5, 1, 0]]
    assert sorted(inputs.pictures.kept) == [0, 1]
    assert torch.equal(again[2], first[0])


def settings(**changes):
    return MaskFerConfig.model_validate({"data": "d", "out": "o", **changes})


def test_classes_are_canonical_names_in_order():
    assert settings().classes == BASIC7
    assert settings(classes="cafe7").classes == CAFE7
    assert settings(classes=["sad", "Happy"]).classes == ("sadness", "happiness")
    assert settings(classes=["happily surprised", "anger"]).classes[0] == "happily surprised"
    for wrong in (["happy", "happiness"], ["anger"], "basic9"):
        with pytest.raises(ValidationError):
            settings(classes=wrong)
    assert settings(remap={"angry": "disgusted"}).remap == {"anger": "disgust"}


# native order -> CAFE index, the numbers of the paper's code
CAFE_REMAPS = {
    "rafdb": (0, 1, 2, 3, 4, 5, 6),
    "affectnet2021": (6, 3, 4, 0, 1, 2, 5),
    "sfew": (5, 2, 1, 3, 6, 4, 0),
    "mmafedb": (5, 2, 1, 3, 6, 4, 0),
}


@pytest.mark.parametrize("source", CAFE_REMAPS)
def test_names_give_the_paper_s_remaps(source):
    """What the code does with numbers, canonical names do by themselves."""
    native = codes(source, "expression")
    names = [native[code] for code in sorted(native)][:7]
    assert tuple(CAFE7.index(name) for name in names) == CAFE_REMAPS[source]
