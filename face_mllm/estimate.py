"""What a stage takes: bytes and floating-point operations by formula, for any number of GPUs.

Parameters, gradients and optimiser states are counted exactly, from a model that may lie on the
meta device. Activations of the LLM follow the tensors a Llama-like decoder layer keeps for its
backward pass, operations follow its matrix products; ``tests/face_mllm/test_estimate.py`` holds
both against what torch keeps and counts. What no formula here knows: the allocator's
fragmentation, the communication of a cluster, the kernels' efficiency.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.blocks import BLOCKS
from face_mllm.model.heads import chunk_rows
from face_mllm.model.vision import image_tokens
from face_mllm.stages import part_of

GRADIENT, MOMENTS = 4, 8  # bytes a trained weight: fp32, and AdamW's two in fp32
STEP = 4  # bytes of AdamW's step counter of one tensor
NF4_BLOCK, NF4_NEST = 64, 256  # weights per scale, scales per scale of scales


@dataclass(frozen=True)
class Decoder:
    """Sizes of the LLM, weights of its decoder layers' products, and how it trains."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    product_weights: int
    training: str = "frozen"
    lora_weights: int = 0
    lora_ranks: int = 0  # of all adapted layers together
    lora_inputs: int = 0  # their input widths together
    lora_outputs: int = 0
    dropout: bool = False
    dora: bool = False
    attention: str = "sdpa"  # its implementation's name in transformers


@dataclass(frozen=True)
class Load:
    """One micro-batch of tree rows.

    Attributes:
        rows: faces, one row each.
        tokens: tokens of a row, padding included.
        labels: label rows of the whole micro-batch.
        compute_bytes: 2 in bf16 autocast, 4 in fp32.
        stream_bytes: of the residual stream: the LLM's weights' dtype.
        checkpointing: layers keep their input only and run forward twice.
        pairs: of tokens that attention has to meet, in all rows; None for every pair of a row.
    """

    rows: int
    tokens: int
    labels: int
    compute_bytes: int = 4
    stream_bytes: int = 4
    checkpointing: bool = False
    pairs: int | None = None


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights and of what training adds to them.

    Attributes:
        trained, frozen: bytes of the weights.
        gradients, optimiser: bytes of the gradients and of AdamW's states.
    """

    trained: int
    frozen: int
    gradients: int
    optimiser: int


def decoder_of(model: FaceMLLMForConditionalGeneration, training: str) -> Decoder:
    """Read the sizes off a model, adapters included.

    Args:
        model: composed model, on any device.
        training: of the LLM: frozen, full or lora.
    """
    config = model.config.text_config
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    layers = model.language_model.get_decoder().layers
    products = [
        parameter
        for name, parameter in layers.named_parameters()
        if name.endswith("weight") and "norm" not in name and "lora_" not in name
    ]
    decoder = Decoder(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        vocabulary=config.vocab_size,
        product_weights=sum(_numel(parameter) for parameter in products),
        training=training,
        attention=config._attn_implementation,
    )
    adapters = [module for module in layers.modules() if hasattr(module, "lora_A")]
    adapters = [module for module in adapters if "default" in module.lora_A]
    if not adapters:
        return decoder
    pairs = [(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in adapters]
    settings = model.peft_config["default"]
    return replace(
        decoder,
        lora_weights=sum(a.numel() + b.numel() for a, b in pairs),
        lora_ranks=sum(a.shape[0] for a, _ in pairs),
        lora_inputs=sum(a.shape[1] for a, _ in pairs),
        lora_outputs=sum(b.shape[0] for _, b in pairs),
        dropout=settings.lora_dropout > 0,
        dora=settings.use_dora,
    )


def weights_of(model: FaceMLLMForConditionalGeneration, quant: str = "none") -> Weights:
    """Bytes of weights, gradients and optimiser states of a model after ``apply_freeze``.

    Args:
        model: composed model, on any device.
        quant: ``nf4`` counts the LLM's linear weights as NF4 though they are not yet.
    """
    packed = nf4_names(model) if quant == "nf4" else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    number = sum(p.numel() for p in trained)
    frozen = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        state = getattr(parameter, "quant_state", None)
        if state is not None or name in packed:
            frozen += nf4_bytes(_numel(parameter))
        else:
            frozen += parameter.numel() * parameter.element_size()
    return Weights(
        trained=sum(p.numel() * p.element_size() for p in trained),
        frozen=frozen,
        gradients=GRADIENT * number,
        optimiser=MOMENTS * number + STEP * len(trained),
    )


def nf4_names(model: FaceMLLMForConditionalGeneration) -> set[str]:
    """Weights that an NF4 base packs: the LLM's linear layers but the head and the adapters."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and part_of(f"{name}.") == "llm"
        and "lora_" not in name
    }


def nf4_bytes(weights: int) -> int:
    """Bytes of one NF4 tensor: halves, 8-bit scales a block, fp32 scales of scales, two tables."""
    blocks = -(-weights // NF4_BLOCK)
    nests = -(-blocks // NF4_NEST)
    return -(-weights // 2) + blocks + 4 * nests + 4 * 16 + 4 * 256 + 4


def _numel(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def layer_bytes(decoder: Decoder, load: Load) -> int:
    """What one decoder layer keeps for its backward pass."""
    n, s = load.rows * load.tokens, load.compute_bytes
    d, f = decoder.hidden, decoder.inner
    q = decoder.heads * decoder.head_dim
    trained = decoder.training == "full"
    reads = trained or decoder.training == "lora"  # linear layers keep their input
    # two norms: the fp32 stream and its inverse deviation
    kept = 2 * n * (4 * d + 4)
    kept += 2 * n * d * load.stream_bytes * trained  # normalised values, for the norm's weight
    # autocast narrows an fp32 stream anew for each of q, k, v and gate, up
    copies = 5 if trained and load.stream_bytes != s else 2
    kept += copies * n * d * s * reads
    kept += attention_bytes(decoder, load) + n * q * s * reads
    kept += 3 * n * f * s + n * f * s * reads  # silu's input and output, up; down's input
    if decoder.training == "lora":
        kept += n * s * (decoder.lora_ranks // decoder.layers)
        if decoder.dropout:  # a mask (one byte on GPUs) and a thinned copy of each adapted input
            inputs = decoder.lora_inputs // decoder.layers
            kept += n * inputs * 2 * s - n * s * (2 * d + q + f)
        if decoder.dora:
            kept += 2 * n * s * (decoder.lora_outputs // decoder.layers)
    return kept


def attention_bytes(decoder: Decoder, load: Load) -> int:
    """What the attention of one layer keeps: eager all its chances, a fused kernel none."""
    n, s = load.rows * load.tokens, load.compute_bytes
    q = decoder.heads * decoder.head_dim
    if decoder.attention == BLOCKS:  # queries, keys and values as they come
        return n * s * (q + 2 * decoder.kv_heads * decoder.head_dim)
    if decoder.attention != "eager":  # queries, keys, values, output, the sums of the softmax
        return 4 * n * q * s + 4 * n * decoder.heads
    chances = load.rows * decoder.heads * load.tokens**2
    return 3 * n * q * s + chances * (4 if s == 4 else 4 + s)


def activation_bytes(
    model: FaceMLLMForConditionalGeneration, decoder: Decoder, load: Load, tower_training: str
) -> int:
    """Bytes kept between the forward and the backward pass of one micro-batch.

    Args:
        model: composed model, for the projector's and the tower's sizes.
        decoder: its LLM.
        load: the micro-batch.
        tower_training: frozen, full or lora.
    """
    n, s = load.rows * load.tokens, load.compute_bytes
    layer = layer_bytes(decoder, load)
    if load.checkpointing:  # one layer at a time is whole, the others are their input
        layers = decoder.layers * n * decoder.hidden * load.stream_bytes + layer
    else:
        layers = decoder.layers * layer
    inner, narrow = projector_shape(model)
    pictures = load.rows * model.config.image_tokens
    projector = pictures * s * (narrow + 2 * inner)
    head = n * (4 * decoder.hidden + 4)
    if load.labels <= chunk_rows(decoder.vocabulary):
        head += load.labels * decoder.vocabulary * 4
    else:  # nothing but the chunks' hidden states
        head += load.labels * decoder.hidden * load.stream_bytes
    head += n * decoder.hidden * load.stream_bytes * (decoder.training == "full")  # its norm's
    tower = load.rows * tower_saved_bytes(model, tower_training) * s // 4
    return layers + projector + head + tower


def projector_shape(model: FaceMLLMForConditionalGeneration) -> tuple[int, int]:
    """(inner width, width of the tower's states)."""
    first = model.get_submodule("projector.0")
    assert isinstance(first, nn.Linear)
    return first.out_features, first.in_features


def tower_saved_bytes(model: FaceMLLMForConditionalGeneration, training: str) -> int:
    """Bytes in fp32 that the tower keeps for one picture, counted on the meta device."""
    if training == "frozen":
        return 0
    tower = meta_tower(model)
    return saved_bytes(lambda: look(model, tower), tower)


def meta_tower(model: FaceMLLMForConditionalGeneration) -> nn.Module:
    """The tower without its weights, to count on."""
    tower = model.vision_tower
    memo: dict[int, Any] = {  # deepcopy takes these as already copied, so no weight is
        id(tensor): torch.empty_like(tensor, device="meta", dtype=_wide(tensor))
        for tensor in tower.buffers()
    }
    for parameter in tower.parameters():
        empty = torch.empty_like(parameter, device="meta", dtype=_wide(parameter))
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    return copy.deepcopy(tower, memo).train()


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def look(model: FaceMLLMForConditionalGeneration, tower: nn.Module) -> torch.Tensor:
    """Run a tower on the meta device on one blank picture."""
    config = model.config
    blank = torch.zeros(1, 3, *image_size(tower.config), device="meta")
    return image_tokens(tower, blank, config.vision_layer, config.vision_select)


def image_size(config: Any, default: int = 224) -> tuple[int, int]:
    """(height, width) a tower's configuration names; CNNs name none and take any."""
    size = getattr(config, "image_size", None) or default
    return (size, size) if isinstance(size, int) else tuple(size)


def saved_bytes(run: Callable[[], object], *holders: nn.Module) -> int:
    """Bytes of the distinct tensors that ``run()`` keeps for a backward pass.

    Args:
        run: a forward pass.
        holders: modules whose parameters and buffers do not count.
    """
    known = {
        tensor.untyped_storage()._cdata
        for holder in holders
        for tensor in (*holder.parameters(), *holder.buffers())
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for key, storage in kept.items() if key not in known)
