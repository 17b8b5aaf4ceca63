"""Attention of tree rows on a CPU: each block of queries meets only the keys it can see.

Most pairs of a tree row are masked: a question sees its face and itself, not the other questions.
Dense attention computes them all. Here a block of queries gathers the keys that any of it sees and
keeps no probabilities for the backward pass, which makes them again (as FlashAttention does, Dao et
al. 2022). What remains is the same sum in the same precision as the dense one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKS = "tree_blocks"  # name of the implementation in transformers
QUERIES = (64, 128)  # tokens of a block
OVERHEAD = 4096  # pairs of query and key whose computation takes as long as starting a block
# numbers of keys are rounded up to it, large ones by up to an eighth of themselves:
# the CPU library compiles and keeps kernels for every new shape
KEYS = 32
NEEDS_DENSE = ("softcap", "s_aux", "position_bias")  # what some LLMs add to their scores


class Block(NamedTuple):
    """Some queries of a row and the keys they see.

    Attributes:
        row: number of the row.
        start, end: the queries.
        keys: where the keys stand.
        bias: fp32 [queries, keys], 0 where a query looks and -inf elsewhere.
    """

    row: int
    start: int
    end: int
    keys: torch.Tensor
    bias: torch.Tensor


def tree_blocks(visible: torch.Tensor) -> list[Block]:
    """Cut a dense mask into blocks, small or large: small ones compute less, large ones are fewer.

    Args:
        visible: bool [R, 1, W, W]; every query sees some key.
    """
    return min((_cut(visible, size) for size in QUERIES), key=_cost)


def _cost(blocks: list[Block]) -> int:
    return sum(block.bias.numel() + OVERHEAD for block in blocks)


def _cut(visible: torch.Tensor, size: int) -> list[Block]:
    width = visible.shape[-1]
    found = []
    for row, mask in enumerate(visible[:, 0]):
        for start in range(0, width, size):
            end = min(start + size, width)
            keys = mask[start:end].any(0).nonzero()[:, 0]
            bias = torch.zeros(end - start, len(keys), device=mask.device)
            bias.masked_fill_(~mask[start:end, keys], -torch.inf)
            spare = -len(keys) % max(KEYS, 2 ** (len(keys).bit_length() - 4))
            keys = pad(keys, (0, spare), value=int(keys[0]))  # any key does: nobody looks at it
            found.append(Block(row, start, end, keys, pad(bias, (0, spare), value=-torch.inf)))
    return found


def with_blocks(visible: torch.Tensor) -> torch.Tensor:
    """Let a dense mask carry its blocks; where they get lost on the way, the mask still holds."""
    visible.tree_blocks = tree_blocks(visible)  # type: ignore[attr-defined]
    return visible


def runs_blocks(language_model: Any) -> bool:
    """Whether an LLM takes attention from outside and adds nothing of its own to the scores."""
    outside = language_model._supports_attention_backend and language_model._supports_sdpa
    return outside and getattr(language_model.config, "attn_logit_softcapping", None) is None


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for ``transformers``: by blocks where the mask has them, else SDPA.

    Args:
        module: the attention layer.
        query: [R, heads, W, width].
        key: [R, key heads, W, width].
        value: as ``key``.
        attention_mask: of :func:`with_blocks`, or any that SDPA takes.
        scaling: factor on the scores.
        dropout: of the probabilities; not done by blocks.

    Returns:
        [R, W, heads, width], and no probabilities.
    """
    blocks = getattr(attention_mask, "tree_blocks", None)
    if blocks is None or dropout or any(kwargs.get(name) is not None for name in NEEDS_DENSE):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _BlockAttention.apply(query, key, value, blocks, factor), None


class _BlockAttention(torch.autograd.Function):
    """Heads that share keys lie side by side, so a block of queries is one slice of them."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: list[Block],
        scaling: float,
    ) -> torch.Tensor:
        group = query.shape[1] // key.shape[1]
        asked = _fold(query * scaling, group)
        seen = asked.new_empty(*asked.shape[:-1], value.shape[-1])
        for block in blocks:
            keys = key[block.row].index_select(1, block.keys)
            values = value[block.row].index_select(1, block.keys)
            part = _part(block, group)
            chances = _chances(asked[block.row, :, part], keys, block)
            seen[block.row, :, part] = torch.bmm(chances.to(values.dtype), values)
        ctx.save_for_backward(query, key, value)
        ctx.blocks, ctx.scaling = blocks, scaling
        return _unfold(seen, group).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        group = query.shape[1] // key.shape[1]
        asked, wanted = _fold(query * ctx.scaling, group), _fold(gradient.transpose(1, 2), group)
        wide = torch.promote_types(query.dtype, torch.float32)
        to_asked = torch.empty_like(asked)
        to_key, to_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        for block in ctx.blocks:
            keys = key[block.row].index_select(1, block.keys)
            values = value[block.row].index_select(1, block.keys)
            part = _part(block, group)
            asking, wanting = asked[block.row, :, part], wanted[block.row, :, part]
            chances = _chances(asking, keys, block)
            share = torch.bmm(chances.to(wanting.dtype).transpose(1, 2), wanting)
            to_value[block.row].index_add_(1, block.keys, share.to(wide))
            slopes = torch.bmm(wanting, values.transpose(1, 2)).to(wide).mul_(chances)
            slopes.addcmul_(chances, slopes.sum(-1, keepdim=True), value=-1)
            scores = slopes.to(asking.dtype)
            to_asked[block.row, :, part] = torch.bmm(scores, keys)
            share = torch.bmm(scores.transpose(1, 2), asking)
            to_key[block.row].index_add_(1, block.keys, share.to(wide))
        to_query = _unfold(to_asked.mul_(ctx.scaling), group)
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None


def _fold(states: torch.Tensor, group: int) -> torch.Tensor:
    """[R, heads, W, width] to [R, key heads, W * group, width]."""
    rows, _, length, width = states.shape
    heads = states.view(rows, -1, group, length, width).transpose(2, 3)
    return heads.reshape(rows, -1, length * group, width)


def _unfold(states: torch.Tensor, group: int) -> torch.Tensor:
    """[R, key heads, W * group, width] to [R, heads, W, width]."""
    rows, _, length, width = states.shape
    heads = states.view(rows, -1, length // group, group, width).transpose(2, 3)
    return heads.reshape(rows, -1, length // group, width)


def _part(block: Block, group: int) -> slice:
    return slice(block.start * group, block.end * group)


def _chances(asked: torch.Tensor, keys: torch.Tensor, block: Block) -> torch.Tensor:
    """Probabilities [key heads, queries * group, keys] in fp32 (fp64 stays)."""
    scores = torch.bmm(asked, keys.transpose(1, 2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    queries, count = block.bias.shape
    scores.view(len(keys), queries, -1, count).add_(block.bias[:, None])
    return scores.softmax(-1)


AttentionInterface.register(BLOCKS, block_attention)
AttentionMaskInterface.register(BLOCKS, sdpa_mask)
