"""A tree row is exactly the separate passes; each silent failure of the recipe is caught."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from face_mllm.config import LoraSettings
from face_mllm.stages import add_lora
from face_mllm.tree import TokenTree, TreeRow, collate_trees

QAS = [
    ("Is AU12 active?", "yes", 1.0),
    ("Is AU12 active? no", "no", 0.5),
    ("How old?", "35 years", 2.0),
    ("face", "happiness", 1.0),
]


def separate_loss(model, processor, qas, pixels):
    """Reference: one ordinary causal pass per question, Hugging Face positions and mask."""
    total = torch.zeros((), dtype=pixels.dtype)
    for question, answer, weight in qas:
        branch, start = processor.branch_ids(question, answer)
        ids = torch.tensor([[*processor.prefix_ids(), *branch]])
        first = len(processor.prefix_ids()) + start
        logits = model(input_ids=ids, pixel_values=pixels).logits[0, first - 1 : -1]
        total = total + weight * torch.nn.functional.cross_entropy(
            logits, ids[0, first:], reduction="sum"
        )
    return total


def with_fp64_norms(model):
    """Swap Hugging Face's RMSNorm, which always rounds to fp32, for torch's own."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent = model.get_submodule(name.rpartition(".")[0])
            norm = torch.nn.RMSNorm(module.weight.shape, module.variance_epsilon)
            norm.weight = module.weight
            setattr(parent, name.rpartition(".")[2], norm)
    return model.double()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "tower,llm", [("resnet", "llama"), ("clip", "qwen"), ("siglip", "mistral")]
)
@pytest.mark.parametrize("multiple", [1, 32])
def test_tree_equals_separate_passes_in_loss_and_gradients(make_model, tower, llm, multiple):
    model, processor = make_model(tower, llm, torch.float64)
    add_lora(model, LoraSettings(r=4, alpha=8))
    with_fp64_norms(model)
    for parameter in model.parameters():  # LoRA starts at zero; move it so its gradients matter
        parameter.requires_grad_(True)
        parameter.data += 0.01 * torch.randn_like(parameter)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    faces = [QAS, QAS[:2]]  # unequal lengths: the shorter row is padded
    batch = collate_trees([processor.tree_row(qas) for qas in faces], processor.pad_id, multiple)
    batch["label_weights"] = batch["label_weights"].double()
    tree = model(**batch, pixel_values=pixels).loss
    separate = sum(
        separate_loss(model, processor, qas, pixels[i : i + 1]) for i, qas in enumerate(faces)
    )
    assert abs(tree.item() - separate.item()) < 1e-8
    ours, theirs = gradients(model, tree), gradients(model, separate)
    assert ours.keys() == theirs.keys()
    assert max((ours[n] - theirs[n]).abs().max().item() for n in ours) < 1e-8


@pytest.mark.parametrize("failure", ["default positions", "no mask", "2-D mask"])
def test_silent_failures_change_the_loss(make_model, failure):
    model, processor = make_model(dtype=torch.float64)
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    batch = collate_trees([processor.tree_row(QAS)], processor.pad_id)
    with torch.no_grad():
        right = model(**batch, pixel_values=pixels).loss
        if failure == "default positions":
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        elif failure == "no mask":
            batch["attention_mask"] = None
        else:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        wrong = model(**batch, pixel_values=pixels).loss
    assert abs(wrong.item() - right.item()) > 1e-5


def test_tree_mask_without_positions_is_refused(make_model):
    model, processor = make_model()
    batch = collate_trees([processor.tree_row(QAS)], processor.pad_id)
    batch["position_ids"] = None
    with pytest.raises(ValueError, match="position_ids"):
        model(**batch, pixel_values=torch.randn(1, 3, 32, 32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_trie_keeps_every_path_and_shares_every_beginning(paths):
    tree = TokenTree()
    for path in paths:
        nodes = tree.insert(path)
        assert [tree.ids[n] for n in nodes] == path
    prefixes = {tuple(path[: i + 1]) for path in paths for i in range(len(path))}
    assert len(tree) == len(prefixes)
    positions, visible = tree.positions(), tree.visible()
    np.testing.assert_array_equal(visible.sum(1) - 1, positions)
    assert all(visible[q, tree.parents[q]] for q in range(len(tree)) if tree.parents[q] >= 0)


def test_branches_never_see_each_other():
    tree = TokenTree()
    root = tree.insert([9, 9, 9], share=False)[-1]
    row = TreeRow(tree)
    row.add_branch(root, [1, 2, 3], 2)
    row.add_branch(root, [1, 4, 5], 2)
    visible = tree.visible()
    assert tree.ids == [9, 9, 9, 1, 2, 4]
    assert not visible[5, 4]
    assert visible[5, 3]
    assert row.rows == [4, 5]
    assert row.targets == [3, 5]
