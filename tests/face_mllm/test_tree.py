"""Packed tree rows are exactly the separate passes; each silent failure is caught."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from face_mllm.config import LoraSettings
from face_mllm.model import heads
from face_mllm.stages import add_lora
from face_mllm.tree import TokenTree, TreeRow, collate_trees, plan_rows

QAS = [
    ("Is AU12 active?", "yes", 1.0),
    ("Is AU12 active? no", "no", 0.5),
    ("How old?", "35 years", 2.0),
    ("face", "happiness", 1.0),
]


def separate_loss(model, processor, qas, pixels):
    """Reference: one ordinary pass per question through Hugging Face's own causal LM."""
    total = torch.zeros((), dtype=pixels.dtype)
    for question, answer, weight in qas:
        branch, start = processor.branch_ids(question, answer)
        ids = torch.tensor([[*processor.prefix_ids(), *branch]])
        first = len(processor.prefix_ids()) + start
        embeds = model.embed(ids, pixels)
        logits = model.language_model(inputs_embeds=embeds).logits[0, first - 1 : -1]
        total = total + weight * torch.nn.functional.cross_entropy(
            logits, ids[0, first:], reduction="sum"
        )
    return total


class GemmaNorm(torch.nn.RMSNorm):
    def forward(self, x):
        return torch.nn.functional.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)


def with_fp64_norms(model):
    """Swap Hugging Face's RMSNorm, which always rounds to fp32, for torch's own."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent = model.get_submodule(name.rpartition(".")[0])
            gemma = type(module).__name__.startswith("Gemma")
            eps = module.eps if gemma else module.variance_epsilon
            norm = (GemmaNorm if gemma else torch.nn.RMSNorm)(module.weight.shape, eps)
            norm.weight = module.weight
            setattr(parent, name.rpartition(".")[2], norm)
    return model.double()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainable_fp64(make_model, tower, llm):
    """A model in fp64 all of whose parameters train, LoRA included."""
    model, processor = make_model(tower, llm, torch.float64)
    add_lora(model, LoraSettings(r=4, alpha=8))
    with_fp64_norms(model)
    for parameter in model.parameters():  # LoRA starts at zero; move it so its gradients matter
        parameter.requires_grad_(True)
        parameter.data += 0.01 * torch.randn_like(parameter)
    return model, processor


def fp64(batch):
    return {**batch, "label_weights": batch["label_weights"].double()}


FACES = [QAS, QAS[:2], QAS[1:], QAS[:1]]
PLANS = {
    "one row a face": None,
    "two rows": [[0], [3, 2, 1]],
    "one row": [[2, 0, 1, 3]],
}


@pytest.mark.parametrize(
    "tower,llm,plan",
    [
        ("resnet", "llama", "one row a face"),
        ("clip", "qwen", "two rows"),
        ("siglip", "mistral", "one row"),
        ("resnet", "mistral-sliding", "two rows"),
        ("resnet", "qwen-sliding", "one row"),
        ("resnet", "gemma", "two rows"),
    ],
)
def test_packed_rows_equal_separate_passes_in_loss_and_gradients(make_model, tower, llm, plan):
    model, processor = trainable_fp64(make_model, tower, llm)
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    rows = [processor.tree_row(qas) for qas in FACES]
    batch = fp64(collate_trees(rows, processor.pad_id, PLANS[plan], multiple=16))
    order = [n for row in PLANS[plan] or [[0], [1], [2], [3]] for n in row]
    tree = model(**batch, pixel_values=pixels[order]).loss
    separate = sum(
        separate_loss(model, processor, qas, pixels[i : i + 1]) for i, qas in enumerate(FACES)
    )
    assert abs(tree.item() - separate.item()) < 1e-8
    ours, theirs = gradients(model, tree), gradients(model, separate)
    assert ours.keys() == theirs.keys()
    assert max((ours[n] - theirs[n]).abs().max().item() for n in ours) < 1e-8


def test_gradient_checkpointing_changes_nothing(make_model):
    model, processor = trainable_fp64(make_model, "resnet", "qwen-sliding")
    model.train()
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    rows = [processor.tree_row(qas) for qas in FACES[:2]]
    batch = fp64(collate_trees(rows, processor.pad_id, [[0, 1]]))
    plain = gradients(model, model(**batch, pixel_values=pixels).loss)
    model.activation_checkpointing_enable()
    again = gradients(model, model(**batch, pixel_values=pixels).loss)
    assert plain.keys() == again.keys()
    assert max((plain[n] - again[n]).abs().max().item() for n in plain) < 1e-12


def test_chunked_loss_equals_whole_loss(make_model, monkeypatch):
    model, processor = trainable_fp64(make_model, "resnet", "gemma")
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    batch = fp64(collate_trees([processor.tree_row(QAS)], processor.pad_id))
    whole = model(**batch, pixel_values=pixels, with_entropy=True)
    plain = gradients(model, whole.loss)
    monkeypatch.setattr(heads, "LOGITS", 3 * 400)
    chunked = model(**batch, pixel_values=pixels, with_entropy=True)
    again = gradients(model, chunked.loss)
    assert chunked.logits is None
    torch.testing.assert_close(chunked.label_losses, whole.label_losses, atol=1e-12, rtol=0)
    distribution = torch.distributions.Categorical(logits=whole.logits)
    torch.testing.assert_close(whole.label_entropies, distribution.entropy(), atol=1e-10, rtol=0)
    assert max((plain[n] - again[n]).abs().max().item() for n in plain) < 1e-12


@pytest.mark.parametrize("trees", [0, 1])
def test_batch_without_labels_has_zero_loss_and_zero_gradients(make_model, trees):
    model, processor = make_model()
    rows = [processor.open_row()[0]][:trees]
    batch = collate_trees(rows, processor.pad_id)
    loss = model(**batch, pixel_values=torch.randn(trees, 3, 32, 32)).loss
    assert loss.item() == 0
    found = gradients(model, loss)
    assert all((value == 0).all() for value in found.values())
    assert any(name.startswith("projector") for name in found)


@pytest.mark.parametrize("failure", ["default positions", "no mask", "2-D mask"])
def test_silent_failures_change_the_loss(make_model, failure):
    model, processor = make_model(dtype=torch.float64)
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    batch = collate_trees([processor.tree_row(QAS)], processor.pad_id)
    with torch.no_grad():
        right = model(**batch, pixel_values=pixels).loss
        if failure == "default positions":
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        else:
            del batch["subtree_ends"]
        if failure == "2-D mask":
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        wrong = model(**batch, pixel_values=pixels).loss
    assert abs(wrong.item() - right.item()) > 1e-5


def test_tree_rows_without_positions_are_refused(make_model):
    model, processor = make_model()
    batch = collate_trees([processor.tree_row(QAS)], processor.pad_id)
    batch["position_ids"] = None
    with pytest.raises(ValueError, match="position_ids"):
        model(**batch, pixel_values=torch.randn(1, 3, 32, 32))


def ancestors(tree, node):
    """Reference: the path from the root to a token, walked parent by parent."""
    found = []
    while node >= 0:
        found.append(node)
        node = tree.parents[node]
    return found


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_trie_keeps_every_path_and_shares_every_beginning(paths):
    tree = TokenTree()
    for path in paths:
        nodes = tree.insert(path)
        assert [tree.ids[n] for n in nodes] == path
    prefixes = {tuple(path[: i + 1]) for path in paths for i in range(len(path))}
    assert len(tree) == len(prefixes)
    places, ends = tree.layout()
    assert sorted(places) == list(range(len(tree)))
    for node in range(len(tree)):
        above = {places[k] for k in ancestors(tree, node)}
        seen = {k for k in range(len(tree)) if k <= places[node] < ends[k]}
        assert seen == above
        assert tree.positions()[node] == len(above) - 1


def test_branches_share_beginnings_and_label_what_follows():
    tree = TokenTree()
    root = tree.insert([9, 9, 9], share=False)[-1]
    row = TreeRow(tree)
    row.add_branch(root, [1, 2, 3], 2)
    row.add_branch(root, [7, 8], 1)
    row.add_branch(root, [1, 4, 5], 2)
    assert tree.ids == [9, 9, 9, 1, 2, 7, 4]
    assert row.separate == (3 + 2) + (3 + 1) + (3 + 2)
    batch = collate_trees([row], 0)
    assert batch["input_ids"].tolist() == [[9, 9, 9, 1, 2, 4, 7]]  # depth first
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4, 3]]
    assert batch["label_rows"].tolist() == [4, 6, 5]
    assert batch["label_targets"].tolist() == [3, 8, 5]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.integers(1, 120),
    st.sampled_from([0.0, 1e-3, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_plan_holds_every_tree_once_within_the_budget(lengths, budget, square):
    plan = plan_rows(lengths, budget, square)
    assert sorted(n for row in plan for n in row) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in row) <= max(budget, *lengths) for row in plan)

    def cost(rows):
        width = max(sum(lengths[n] for n in row) for row in rows)
        return len(rows) * width * (1 + square * width)

    assert cost(plan) <= cost([[n] for n in range(len(lengths))])


def test_plan_fills_rows_where_pairs_are_free_and_keeps_them_short_where_dear():
    assert plan_rows([300, 120, 90, 90], 1000) == [[0, 1, 2, 3]]
    assert plan_rows([300, 120, 90, 90], 300, 0.01) == [[0], [1, 2, 3]]
    assert plan_rows([100, 100], 1000, 1.0) == [[0], [1]]
    assert plan_rows([700, 5], 300) == [[0], [1]]
