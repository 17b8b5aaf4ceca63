"""The tree mask in each of its forms, the LLM's head, and the check of the first batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig

from face_mllm import verify
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.hardware import for_precision
from face_mllm.model import heads
from face_mllm.model.attention import (
    additive,
    dense_mask,
    layer_windows,
    pair_cost,
    tree_attention,
    tree_mask_mod,
    use_attention,
)
from face_mllm.rows import FaceRows, RowCollator
from face_mllm.tree import TokenTree, TreeRow, collate_trees
from face_mllm.verify import verify_packing


def random_trees(count, seed):
    """Trees that share beginnings, with a prefix, of uneven size."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        tree = TokenTree()
        root = tree.insert([9] * (3 + number), share=False)[-1]
        row = TreeRow(tree)
        for _ in range(2 + 3 * number):
            row.add_branch(root, torch.randint(0, 3, (6,), generator=draw).tolist(), 3)
        rows.append(row)
    return rows


def expected_mask(rows, plan, width, window):
    """Reference: walk each token's parents, row by row of the plan."""
    mask = torch.zeros(len(plan), 1, width, width, dtype=torch.bool)
    mask[:, :, range(width), range(width)] = True
    for number, trees in enumerate(plan):
        start = 0
        for tree in (rows[each].tree for each in trees):
            places, _ = tree.layout()
            for node in range(len(tree)):
                above, steps = node, 0
                while above >= 0 and (window is None or steps < window):
                    mask[number, 0, start + places[node], start + places[above]] = True
                    above, steps = tree.parents[above], steps + 1
            start += len(tree)
    return mask


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("plan", [[[0], [1], [2], [3]], [[3], [0, 2, 1]]])
def test_mask_mod_dense_mask_and_block_mask_say_the_same(window, plan):
    rows = random_trees(4, 0)
    batch = collate_trees(rows, 0, plan, multiple=128)
    ends, positions = batch["subtree_ends"], batch["position_ids"]
    mask_mod = tree_mask_mod(ends, positions, window)
    count, width = ends.shape
    dense = dense_mask(mask_mod, count, width, ends.device)
    assert (dense == expected_mask(rows, plan, width, window)).all()
    blocks = create_block_mask(mask_mod, count, None, width, width, "cpu", BLOCK_SIZE=16)
    tiles = dense.view(count, 1, width // 16, 16, width // 16, 16).any(5).any(3)
    assert (blocks.to_dense().bool() == tiles).all()
    draw = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, count, 2, width, 16, generator=draw)
    flexible = flex_attention(query, key, value, block_mask=blocks)
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, dense)
    torch.testing.assert_close(flexible, plain, atol=1e-5, rtol=1e-5)


def test_each_implementation_gets_its_form(make_model):
    model, processor = make_model(llm="qwen-sliding")
    config = copy.deepcopy(model.language_model.config)
    batch = collate_trees([processor.tree_row([("How old?", "35 years", 1.0)])], 0)
    ends, positions = batch["subtree_ends"], batch["position_ids"]
    assert layer_windows(config) == {"full_attention": None, "sliding_attention": 20}
    config._attn_implementation = "sdpa"
    boolean = tree_attention(config, ends, positions, torch.float32)
    config._attn_implementation = "eager"
    floats = tree_attention(config, ends, positions, torch.float32)
    config._attn_implementation = "flex_attention"
    blocks = tree_attention(config, ends, positions, torch.float32)
    for kind in ("full_attention", "sliding_attention"):
        assert boolean[kind].dtype == torch.bool
        assert torch.equal(additive(boolean[kind], torch.float32), floats[kind])
        assert blocks[kind].shape[-2:] == boolean[kind].shape[-2:]
    assert (boolean["full_attention"].sum() > boolean["sliding_attention"].sum()).all()
    assert pair_cost(config) == 0


def test_flex_off_cuda_and_llms_without_a_tree_form_are_refused(make_model):
    model, _ = make_model()
    with pytest.raises(UserError, match="flex needs CUDA"):
        use_attention(model.language_model, "flex", "cpu")
    assert use_attention(model.language_model, "eager", "cpu") == "eager"
    config = LlamaConfig()
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match="linear_attention cannot isolate"):
        layer_windows(config)


SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [GraniteConfig(**SMALL, logits_scaling=7.0), CohereConfig(**SMALL, logit_scale=0.3)],
    ids=lambda config: config.model_type,
)
def test_heads_with_a_scaling_of_their_own_are_followed(config):
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config).eval()
    heads.check_head(llm)
    embeds = torch.randn(1, 5, 16)
    hidden = llm.get_decoder()(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(heads.head_logits(llm, hidden), llm(inputs_embeds=embeds).logits)


def test_unknown_scaling_of_the_logits_is_an_error(make_model, monkeypatch):
    model, _ = make_model(llm="gemma")
    heads.check_head(model.language_model)
    monkeypatch.setattr(heads, "logit_scaling", lambda config: None)
    with pytest.raises(UserError, match="gemma3_text: its logits"):
        heads.check_head(model.language_model)


@pytest.fixture
def first_batch(make_model, tiny_data):
    """Everything :func:`verify_packing` needs, for one LLM."""

    def build(llm):
        model, processor = make_model(llm=llm)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("vision_tower"))
        stage = StageConfig(
            stage="s", data=tiny_data, out="o", init_from="x", faces_per_device=3, max_steps=1
        )
        rows = FaceRows.from_stage(stage, processor)
        collator = RowCollator.from_stage(stage, model, processor)
        return model, processor, collator, rows, stage, for_precision("fp32")

    return build


@pytest.mark.parametrize("llm", ["llama", "mistral-sliding", "qwen-sliding", "gemma"])
def test_verify_packing_passes_and_leaves_no_trace(first_batch, llm):
    arguments = first_batch(llm)
    model = arguments[0].train()
    before = torch.get_rng_state()
    verify_packing(*arguments)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mistake", ["positions", "mask", "window"])
def test_verify_packing_stops_a_run_whose_rows_are_wrong(first_batch, mistake, monkeypatch):
    model, processor, collator, *rest = first_batch("mistral-sliding")

    def wrong(items):
        batch = collator(items)
        width = batch["input_ids"].shape[1]
        if mistake == "positions":
            batch["position_ids"] = torch.arange(width).expand_as(batch["input_ids"])
        if mistake == "mask":
            batch["subtree_ends"] = torch.full_like(batch["subtree_ends"], width)
        return batch

    if mistake == "window":
        monkeypatch.setattr(
            "face_mllm.model.attention.layer_windows", lambda config: {"full_attention": None}
        )
    with pytest.raises(UserError, match="packed rows are not the separate passes"):
        verify_packing(model, processor, wrong, *rest)


def test_verify_packing_refuses_split_weights(first_batch, monkeypatch):
    monkeypatch.setattr(verify, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserError, match="ZeRO-3"):
        verify_packing(*first_batch("llama"))
