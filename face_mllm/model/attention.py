"""The tree mask for any Hugging Face decoder: dense for SDPA and eager, else block-sparse.

Tokens stand depth first, so token q descends from token k, or is it, exactly if
``k <= q < subtree_ends[k]``. Sliding-window layers see in addition only ancestors fewer than
``window`` positions up, which is what a separate pass over the path would show them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PretrainedConfig

from face_mllm.errors import UserError
from face_mllm.model.blocks import BLOCKS, with_blocks

MaskMod = Callable[..., torch.Tensor]
FULL, SLIDING = "full_attention", "sliding_attention"
FLEX = "flex_attention"
FLEX_BLOCK = 128  # tokens of a Flex block; rows are padded to it


def tree_mask_mod(
    subtree_ends: torch.Tensor, positions: torch.Tensor, window: int | None = None
) -> MaskMod:
    """Visibility as a FlexAttention ``mask_mod(batch, head, query, key)``.

    Args:
        subtree_ends: [R, W] of :func:`face_mllm.tree.collate_trees`.
        positions: [R, W] depths.
        window: of a sliding-window layer; None for full attention.
    """

    def descends(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return (key <= query) & (query < subtree_ends[batch, key])

    if window is None:
        return descends
    reach = window

    def descends_nearby(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        near = positions[batch, query] - positions[batch, key] < reach
        return descends(batch, head, query, key) & near

    return descends_nearby


def dense_mask(mask_mod: MaskMod, rows: int, width: int, device: torch.device) -> torch.Tensor:
    """The same visibility as a boolean [rows, 1, width, width]."""
    batch = torch.arange(rows, device=device)[:, None, None, None]
    index = torch.arange(width, device=device)
    return mask_mod(batch, None, index[None, None, :, None], index[None, None, None, :])


def layer_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Attention kinds of an LLM's layers and their windows, None for full attention.

    Raises:
        UserError: some layers are of a kind that has no tree form (linear, chunked, state-space).
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return {FULL: None} if window is None else {SLIDING: window}
    unknown = sorted(kinds - {FULL, SLIDING})
    if unknown:
        raise UserError(
            f"{config.model_type}: layers of kind {', '.join(unknown)} cannot isolate questions",
            "use an LLM with full or sliding-window attention only",
        )
    return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}


def tree_attention(
    config: PretrainedConfig,
    subtree_ends: torch.Tensor,
    positions: torch.Tensor,
    dtype: torch.dtype,
) -> Any:
    """What the decoder takes as ``attention_mask`` for tree rows.

    Args:
        config: of the LLM; its attention implementation chooses the form.
        subtree_ends: [R, W].
        positions: [R, W].
        dtype: of the hidden states.

    Returns:
        A mask [R, 1, W, W] (boolean for SDPA and blocks, additive for eager) or a ``BlockMask``; a
        dictionary by layer kind where the LLM mixes kinds.
    """
    masks = {
        kind: _mask(config._attn_implementation, subtree_ends, positions, window, dtype)
        for kind, window in layer_windows(config).items()
    }
    mixed = bool(getattr(config, "layer_types", None)) and set(masks) != {FULL}
    return masks if mixed else next(iter(masks.values()))


def _mask(
    implementation: str,
    subtree_ends: torch.Tensor,
    positions: torch.Tensor,
    window: int | None,
    dtype: torch.dtype,
) -> Any:
    mask_mod = tree_mask_mod(subtree_ends, positions, window)
    rows, width = subtree_ends.shape
    if implementation == FLEX:
        from torch.nn.attention.flex_attention import create_block_mask

        device = str(subtree_ends.device)
        return create_block_mask(mask_mod, rows, None, width, width, device, FLEX_BLOCK)
    visible = dense_mask(mask_mod, rows, width, subtree_ends.device)
    if implementation == BLOCKS:
        return with_blocks(visible)
    return visible if implementation == "sdpa" else additive(visible, dtype)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Boolean visibility as the additive mask of eager attention; other masks stay."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(dtype).min
    )


def use_attention(language_model: Any, wanted: str, device: str) -> str:
    """Choose how the LLM attends in training and return the implementation in use.

    Args:
        language_model: the LLM.
        wanted: ``auto`` keeps how it was loaded; else ``eager``, ``sdpa`` or ``flex``.
        device: ``cpu``, ``cuda`` ...

    Raises:
        UserError: Flex off CUDA, or an LLM without that implementation.
    """
    if wanted == "flex" and not device.startswith("cuda"):
        raise UserError(
            f"attention: flex needs CUDA and this run is on {device}", "set attention: auto"
        )
    if wanted != "auto":
        name = FLEX if wanted == "flex" else wanted
        try:
            language_model.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            raise UserError(f"attention: {wanted}: {error}", "set attention: auto") from error
    return language_model.config._attn_implementation


def pair_cost(config: PretrainedConfig) -> float:
    """Cost of one dense attention pair relative to one token's matrix products.

    Counted in operations it is ``1 / (6 * hidden)``; but softmax and mask are bound by memory, and
    measured (SmolLM2 in bf16 on a CPU, rows of 75 to 1200 tokens, eager and SDPA) it is six times
    that. Flex and blocks skip what is masked.
    """
    return 0.0 if config._attn_implementation in (FLEX, BLOCKS) else 1 / config.hidden_size
