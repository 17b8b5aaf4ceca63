"""The formulas of the estimate against what torch keeps, allocates and counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig

from face_mllm.config import StageConfig
from face_mllm.estimate import (
    Load,
    activation_bytes,
    decoder_of,
    layer_bytes,
    saved_bytes,
    weights_of,
)
from face_mllm.flops import StepFormula
from face_mllm.model import FaceMLLMConfig, FaceMLLMForConditionalGeneration, heads
from face_mllm.model.blocks import BLOCKS
from face_mllm.model.lora import fuse_lora
from face_mllm.optim import build_optimizer
from face_mllm.quant import nf4_loading
from face_mllm.stages import add_lora, apply_freeze

SIZES = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
)
STAGES = {
    "projector": {},
    "lora": {"llm": {"train": "lora", "lora": {"r": 8}}},
    "dropout": {"llm": {"train": "lora", "lora": {"r": 8, "dropout": 0.1}}},
    "dora": {"llm": {"train": "lora", "lora": {"r": 8, "dora": True}}},
    "full": {"llm": {"train": "full"}},
    "vision": {"vision": {"train": "lora"}},
}


def build(form, attention="eager", dtype=torch.float32):
    config = StageConfig.model_validate(
        {
            "stage": "s",
            "data": "d",
            "out": "o",
            **{part: {"model": "m", **STAGES[form].get(part, {})} for part in ("vision", "llm")},
        }
    )
    text = LlamaConfig(**SIZES)
    llm = AutoModelForCausalLM.from_config(text, attn_implementation=attention, dtype=dtype)
    vision = AutoModel.from_config(TOWER)
    composed = FaceMLLMConfig(
        vision.config, llm.config, image_tokens=17, image_token_id=500, vision_select="full"
    )
    model = FaceMLLMForConditionalGeneration(composed, vision, llm)
    for part, settings in (("llm", config.llm), ("vision", config.vision)):
        if settings.train == "lora":
            add_lora(model, settings.lora, part)
    table = apply_freeze(model, config)
    return model.train(), config, table


def batch(rows=2, tokens=150, labels=40):
    ids = torch.randint(0, 500, (rows, tokens))
    ids[:, 2:19] = 500
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None].repeat(rows, 1, 1, 1)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(rows, 3, 32, 32),
        "attention_mask": mask,
        "position_ids": torch.arange(tokens).repeat(rows, 1),
        "label_rows": torch.randint(0, rows * tokens, (labels,)),
        "label_targets": torch.randint(0, 500, (labels,)),
        "label_weights": torch.ones(labels),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", STAGES)
def test_activations_are_what_torch_keeps_within_7_percent(form, precision):
    low = precision == "bf16"
    model, config, _ = build(form, dtype=torch.bfloat16 if low else torch.float32)
    inputs = batch()

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return model(**inputs).loss

    kept = saved_bytes(run, model)
    stream = next(model.language_model.parameters()).element_size()
    load = Load(2, 150, 40, 2 if low else 4, stream)
    trainings = config.part_trainings()
    decoder = decoder_of(model, trainings["llm"])
    said = activation_bytes(model, decoder, load, trainings["vision"])
    assert said == pytest.approx(kept, rel=0.07)


def test_a_fused_attention_keeps_no_chances():
    model, _, _ = build("lora", "sdpa")
    inputs = batch(tokens=300)
    kept = saved_bytes(lambda: model(**inputs).loss, model)
    decoder = decoder_of(model, "lora")
    said = activation_bytes(model, decoder, Load(2, 300, 40), "frozen")
    assert said == pytest.approx(kept, rel=0.07)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", STAGES)
def test_the_fast_ways_of_a_cpu_keep_what_is_said_within_7_percent(form, precision):
    """Tree rows by blocks, LoRA fused: what a stage on a CPU runs."""
    low = precision == "bf16"
    model, config, _ = build(form, BLOCKS, torch.bfloat16 if low else torch.float32)
    fuse_lora(model)
    inputs = {**batch(tokens=300), "subtree_ends": torch.full((2, 300), 300)}
    del inputs["attention_mask"]

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return model(**inputs).loss

    kept = saved_bytes(run, model)
    decoder = decoder_of(model, config.llm.train)
    load = Load(2, 300, 40, 2 if low else 4, 2 if low and config.llm.train != "full" else 4)
    said = activation_bytes(model, decoder, load, config.part_trainings()["vision"])
    said += weights_of(model).trained // 2 * low  # autocast's narrow copies, kept until backward
    assert said == pytest.approx(kept, rel=0.07)


def test_captions_keep_no_logits_beyond_a_chunk(monkeypatch):
    """So many label rows that their logits would be most of what is kept."""
    model, _, _ = build("projector")
    inputs, load = batch(tokens=100, labels=4000), Load(2, 100, 4000)
    decoder = decoder_of(model, "frozen")
    found = {}
    for logits in (heads.LOGITS, 64 * SIZES["vocab_size"]):
        monkeypatch.setattr(heads, "LOGITS", logits)
        kept = saved_bytes(lambda: model(**inputs).loss, model)
        said = activation_bytes(model, decoder, load, "frozen")
        assert said == pytest.approx(kept, rel=0.07)
        found[logits] = kept
    whole, chunked = found.values()
    assert whole - chunked > 0.8 * 4000 * SIZES["vocab_size"] * 4


def test_checkpointed_layers_keep_their_input_only():
    """What is kept through the whole forward pass; one layer comes on top when it is redone."""
    model, _, _ = build("lora")
    model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = batch()
    kept = saved_bytes(lambda: model(**inputs).loss, model)
    decoder = decoder_of(model, "lora")
    said = activation_bytes(model, decoder, Load(2, 150, 40, checkpointing=True), "frozen")
    assert said - layer_bytes(decoder, Load(2, 150, 40)) == pytest.approx(kept, rel=0.07)


@pytest.mark.parametrize("form", [form for form in STAGES if form != "dora"])
def test_operations_are_what_torch_counts(form):
    model, config, _ = build(form)
    inputs = batch()
    with FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    decoder = decoder_of(model, config.llm.train)
    said = StepFormula(model, decoder, config.part_trainings())(Load(2, 150, 40))
    assert said.useful == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("form", STAGES)
def test_weights_gradients_and_optimiser_are_counted_to_the_byte(form):
    model, config, table = build(form)
    model(**batch()).loss.backward()
    optimizer, _ = build_optimizer(model, config.part_rates(), 0.0, (0.9, 0.99), "auto")
    optimizer.step()
    said = weights_of(model)
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    assert said.trained == size(p for p in model.parameters() if p.requires_grad)
    assert said.frozen == size(p for p in model.parameters() if not p.requires_grad)
    assert said.trained == 4 * sum(row.trainable for row in table)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert said.gradients == 4 * sum(p.numel() for p in trained)
    states = [t for state in optimizer.state.values() for t in state.values()]
    assert said.optimiser == size(states)


def test_nf4_weights_are_counted_to_the_byte(tmp_path):
    """Against what bitsandbytes stores, two levels of scales and their tables included."""
    text = LlamaConfig(**SIZES)
    AutoModelForCausalLM.from_config(text).save_pretrained(tmp_path)
    llm = AutoModelForCausalLM.from_pretrained(tmp_path, **nf4_loading(torch.float32))
    held = 0
    for parameter in llm.parameters():
        held += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tables = [state.absmax, state.code, state.state2.absmax, state.state2.code]
            held += sum(t.numel() * t.element_size() for t in tables) + 4
    plain, _, _ = build("projector")
    projector = sum(p.numel() for p in plain.projector.parameters()) * 4
    tower = sum(p.numel() for p in plain.vision_tower.parameters()) * 4
    said = weights_of(plain, "nf4")
    assert said.frozen + said.trained == held + projector + tower
