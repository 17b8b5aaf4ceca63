"""Attention by blocks and fused LoRA: the same numbers as the library's own ways."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from face_mllm.config import LoraSettings
from face_mllm.model import blocks
from face_mllm.model.attention import dense_mask, tree_mask_mod
from face_mllm.model.blocks import BLOCKS, runs_blocks, tree_blocks, with_blocks
from face_mllm.model.lora import FusedLoraLinear, fuse_lora
from face_mllm.rows import model_inputs
from face_mllm.stages import add_lora
from face_mllm.tree import TokenTree, TreeRow, collate_trees
from face_mllm.verify import difference, gradients


def packed_mask(window=None, seed=0):
    """Visibility of two rows: three trees in one, a padded tree in the other."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(4):
        tree = TokenTree()
        root = tree.insert([9] * (5 + 20 * number), share=False)[-1]
        row = TreeRow(tree)
        for _ in range(9):
            row.add_branch(root, torch.randint(0, 3, (8,), generator=draw).tolist(), 3)
        rows.append(row)
    batch = collate_trees(rows, 0, [[0, 1, 2], [3]], 32)
    ends = batch["subtree_ends"]
    return dense_mask(tree_mask_mod(ends, batch["position_ids"], window), *ends.shape, ends.device)


@pytest.mark.parametrize("window", [None, 6])
def test_blocks_hold_every_visible_pair_once_and_no_other(window):
    visible = packed_mask(window)
    found = torch.zeros(visible.shape, dtype=torch.int64)
    cut = tree_blocks(visible)
    for block in cut:
        places = torch.zeros(block.bias.shape[0], visible.shape[-1], dtype=torch.int64)
        places.index_add_(1, block.keys, (block.bias == 0).long())
        found[block.row, 0, block.start : block.end] += places
    assert torch.equal(found, visible.long())
    pairs = sum(block.bias.numel() for block in cut)
    assert pairs < visible.numel() / 2, "blocks are there to leave pairs out"
    assert all(len(block.keys) % blocks.KEYS == 0 for block in cut)


@pytest.mark.parametrize("sizes", [(16,), (64,), (128,)])
@pytest.mark.parametrize("key_heads", [1, 3, 6])
def test_block_attention_is_dense_attention(sizes, key_heads, monkeypatch):
    monkeypatch.setattr(blocks, "QUERIES", sizes)
    visible = packed_mask()
    rows, _, width, _ = visible.shape
    draw = torch.Generator().manual_seed(1)
    shapes = [(rows, width, heads, 16) for heads in (6, key_heads, key_heads)]
    states = [torch.randn(s, generator=draw, dtype=torch.float64).transpose(1, 2) for s in shapes]
    query, key, value = (state.requires_grad_() for state in states)
    module = torch.nn.Module()
    ours, _ = blocks.block_attention(module, query, key, value, with_blocks(visible), scaling=0.3)
    wide = [state.repeat_interleave(6 // key_heads, 1) for state in (key, value)]
    dense = scaled_dot_product_attention(query, *wide, visible, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(ours, dense, atol=1e-12, rtol=1e-12)
    gradient = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (query, key, value), gradient),
        torch.autograd.grad(dense, (query, key, value), gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_a_mask_without_blocks_and_scores_with_additions_go_to_sdpa():
    visible = packed_mask()
    query = torch.randn(2, 2, visible.shape[-1], 8)
    plain, _ = blocks.block_attention(torch.nn.Module(), query, query, query, visible)
    cut, _ = blocks.block_attention(torch.nn.Module(), query, query, query, with_blocks(visible))
    torch.testing.assert_close(plain, cut, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="softcap"):
        blocks.block_attention(
            torch.nn.Module(), query, query, query, with_blocks(visible), softcap=30.0
        )


def test_llms_that_cap_their_scores_keep_their_own_attention():
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    ordinary = AutoModelForCausalLM.from_config(LlamaConfig(**small, **heads))
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**small, **heads))
    assert runs_blocks(ordinary)
    assert not runs_blocks(capped)


@pytest.mark.parametrize("llm", ["llama", "qwen-sliding"])
def test_a_step_by_blocks_is_the_step_with_eager_attention(llm, make_model, monkeypatch):
    made = []
    for way in ("forward", "backward"):
        real = getattr(blocks._BlockAttention, way)

        def noted(*args, way=way, real=real):
            made.append(way)
            return real(*args)

        monkeypatch.setattr(blocks._BlockAttention, way, staticmethod(noted))
    model, processor = make_model(llm=llm)
    model = model.float()
    row = processor.tree_row([(f"Number {n}?", "yes" if n % 2 else "no", 1.0) for n in range(9)])
    batch = collate_trees([row, row], processor.pad_id, [[0, 1]], 32)
    batch["pixel_values"] = torch.randn(2, 3, *processor.image_size)
    losses, found = [], []
    model.train()
    for name in ("eager", BLOCKS, "checkpointed"):
        if name == "checkpointed":
            model.activation_checkpointing_enable()
        else:
            model.language_model.set_attn_implementation(name)
        losses.append(model(**batch).loss)
        found.append(gradients(model, losses[-1]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert difference(*found[:2]) < 1e-4
    assert losses[1] == losses[2]
    assert difference(*found[1:]) < 1e-6
    assert made.count("forward") == 3 * 2 > made.count("backward") == 2 * 2  # two layers, two steps


def lora_layer(bias=True, **settings):
    torch.manual_seed(0)
    holder = torch.nn.Sequential(torch.nn.Linear(12, 20, bias=bias))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], **settings)
    holder = inject_adapter_in_model(config, holder)
    for name, parameter in holder.named_parameters():
        parameter.requires_grad_("lora_" in name)
        torch.nn.init.normal_(parameter)
    return holder.double()


@pytest.mark.parametrize("bias", [True, False])
def test_fused_lora_is_pefts_lora(bias):
    plain = lora_layer(bias)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 1
    assert fused.state_dict().keys() == plain.state_dict().keys()
    results = []
    for model in (plain, fused):
        x = torch.linspace(-1, 1, 2 * 3 * 12, dtype=torch.float64).view(2, 3, 12).requires_grad_()
        y = model(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_fused_lora_under_autocast_rounds_no_worse(monkeypatch):
    plain = lora_layer().float()
    exact = copy.deepcopy(plain)
    x = torch.randn(64, 12)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = plain(x)
        fuse_lora(plain)
        monkeypatch.setattr(LoraLinear, "forward", None)  # it must not be called any more
        ours = plain(x)
    monkeypatch.undo()
    assert ours.dtype == theirs.dtype == torch.bfloat16
    reference = exact(x)
    assert (ours - reference).abs().mean() <= 1.05 * (theirs - reference).abs().mean()


@pytest.mark.parametrize("case", ["dora", "dropout", "disabled", "trained base"])
def test_other_lora_layers_stay_pefts(case):
    settings = {"dora": {"use_dora": True}, "dropout": {"lora_dropout": 0.5}}.get(case, {})
    plain = lora_layer(**settings).train()
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    for model in (plain, fused):
        if case == "disabled":
            model[0].enable_adapters(False)
        if case == "trained base":
            model[0].base_layer.weight.requires_grad_(True)
    x = torch.randn(5, 12, dtype=torch.float64)
    outcomes = []
    for model in (plain, fused):
        torch.manual_seed(3)
        y = model(x)
        if y.requires_grad:
            y.sum().backward()
        outcomes.append((y, model[0].base_layer.weight.grad))
    assert isinstance(fused[0], FusedLoraLinear)
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    if case == "trained base":
        assert torch.equal(outcomes[0][1], outcomes[1][1])


@pytest.mark.parametrize("tower_too", [False, True])
def test_a_fused_llm_has_pefts_gradients(tower_too, make_model, monkeypatch):
    model, processor = make_model("clip")
    model = model.float()
    add_lora(model, LoraSettings(r=2, alpha=4))
    if tower_too:  # the adapter of one part is no reason to slow down the other's
        add_lora(model, LoraSettings(r=2, targets=("q_proj",)), "vision")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = collate_trees([processor.tree_row([("Beard?", "no", 1.0)])], processor.pad_id)
    batch["pixel_values"] = torch.randn(1, 3, *processor.image_size)
    found = []
    for fuse in (False, True):
        assert not fuse or fuse_lora(model) == 14 + 2 * tower_too
        if fuse:
            monkeypatch.setattr(LoraLinear, "forward", None)  # every layer runs fused
        model.zero_grad()
        model(**model_inputs(batch)).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
