"""Pre-flight: every shipped stage on paper, in seconds; a real batch where the models lie here."""

from __future__ import annotations

import json
import re
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from face_mllm import options
from face_mllm.cli import main
from face_mllm.cluster import check_accelerate, check_deepspeed, check_launch
from face_mllm.config import LoraSettings, StageConfig
from face_mllm.configio import find_config, load_yaml_model, shipped_configs
from face_mllm.errors import UserError
from face_mllm.model.blocks import BLOCKS
from face_mllm.model.lora import fuse_lora
from face_mllm.plan import device_bytes, estimate_rows, plan
from face_mllm.stages import add_lora
from face_mllm.train import config_kind
from face_mllm.tree import collate_trees
from face_mllm.validate import validate
from face_mllm.verify import difference, gradients

STAGES = [
    name for name in shipped_configs() if "stage" in Path(name).name and config_kind(name) == "mllm"
]
KNOWN = {"vision": 303_507_456, "projector": 20_979_712, "llm": 6_738_415_616}


@pytest.mark.parametrize("name", STAGES)
def test_every_shipped_stage_passes_on_paper(name, capsys, offline):
    validate(name, meta=True)
    said = capsys.readouterr().err
    assert "image tokens, a row about" in said
    assert "not checked" in said
    trains_lora = load_yaml_model(name, StageConfig).llm.train == "lora"
    assert ("q_proj" in said or "not run yet" in said) == trains_lora


@cache
def sheet_of(name, *overrides):
    stage = load_yaml_model(name, StageConfig, overrides)
    return plan(stage, find_config(name).parent, "bfloat16", "sdpa")[0]


def test_full_size_counts_are_the_published_ones():
    """Vicuna-7B, CLIP ViT-L/14-336's image half, LLaVA-1.5's projector and its LoRA of rank 128."""
    sheet = sheet_of("stage2_vqa")
    counts = {row.part: row.total for row in sheet.table}
    lora = sheet.table[2].trainable
    assert {**counts, "llm": counts["llm"] - lora} == KNOWN
    assert lora == 319_815_680
    assert sheet.model.config.image_tokens == 576
    assert all(parameter.is_meta for parameter in sheet.model.parameters())


def test_sharding_divides_what_it_says():
    sheet = sheet_of("stage2_vqa", "llm.train=full")
    one, eight = (device_bytes(sheet, "zero2", count) for count in (1, 8))
    states = sheet.weights.gradients + sheet.weights.optimiser
    assert one - eight == states - states // 8
    assert device_bytes(sheet, "ddp", 8) == device_bytes(sheet, "ddp", 1) == one
    held = sheet.weights.trained + sheet.weights.frozen
    gathered = 2 * held // 32
    assert eight - device_bytes(sheet, "zero3", 8) == held - held // 8 - gathered
    rows = estimate_rows(sheet, (1, 8))
    assert float(rows[0][-1]) == pytest.approx(8 * float(rows[1][-1]), rel=0.01)


def test_nf4_is_what_fits_a_small_gpu():
    """7 B weights in half a byte: QLoRA's stage takes less than half of the plain one's memory."""
    packed, plain = (sheet_of(f"stage2_vqa{form}") for form in ("_qlora", ""))
    assert device_bytes(packed, "ddp", 1) < 0.5 * device_bytes(plain, "ddp", 1)
    assert estimate_rows(packed, (8,))[0][3] == "-"
    assert packed.table[0].total == KNOWN["vision"]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["llm.model=nobody/nothing-7b", "init_from="], "sizes are not known"),
        (["llm.lora.targets=[nope]"], "match no layer"),
        (["max_tokens=600"], "no room behind 576 image tokens"),
        (["init_from=runs/elsewhere"], "no config beside this one writes it"),
        (["report_to=[tensorbord]"], "did you mean tensorboard"),
        (["llm.rank=3"], "unknown key 'llm.rank'"),
    ],
)
def test_what_would_fail_later_fails_now(overrides, words, offline, capsys):
    if "init_from=" in overrides:
        overrides = [*overrides, "vision.model=openai/clip-vit-large-patch14-336"]
    assert main(["validate", "stage2_vqa", "--meta", *overrides]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("reference", ["embedded:smollm3", "runs/absent/llm", "/absent/llm"])
def test_references_to_nothing_are_named_without_meta(reference, tiny_parts, tiny_data):
    words = [f"vision.model={tiny_parts / 'vision'}", f"llm.model={reference}", f"data={tiny_data}"]
    with pytest.raises(UserError, match=f"{reference}: no such .*model"):
        validate("embedded/stage1_align", words, gpus=[1])


def test_without_meta_the_data_must_be_here(capsys):
    assert main(["validate", "stage2_vqa"]) == 2
    assert "data/faces" in capsys.readouterr().err


def test_local_models_run_a_batch(tiny_parts, tiny_data, tmp_path, capsys):
    settings = {
        "stage": "s",
        "data": str(tiny_data),
        "out": str(tmp_path / "out"),
        "precision": "fp32",
        "vision": {"model": str(tiny_parts / "vision")},
        "llm": {"model": str(tiny_parts / "llm"), "train": "lora"},
    }
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(settings))
    validate(path, gpus=(1,))
    said = capsys.readouterr().err
    assert "one batch forward and backward" in said
    assert re.search(r"here: [\d.]+ GiB", said)
    assert not (tmp_path / "out").exists()


STAGE = {"stage": "s", "data": "d", "out": "o", "vision": {"model": "v"}, "llm": {"model": "l"}}
GOOD = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "train_batch_size": 64,
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
}


def stage(**changes):
    return StageConfig.model_validate(
        {**STAGE, "faces_per_device": 4, "accumulation": 2, **changes}
    )


def test_deepspeed_in_agreement_passes(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(GOOD))
    assert check_launch(stage(deepspeed=path), None, "nf4") == ["ds.json agrees with the stage"]


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"train_micro_batch_size_per_gpu": 8}, "faces_per_device is 4"),
        ({"gradient_accumulation_steps": 1}, "accumulation is 2"),
        ({"train_batch_size": 60}, "no multiple"),
        ({"gradient_clipping": 0.3}, "max_grad_norm is 1.0"),
        ({"gradient_clipping": None}, "is ignored"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"bf16": {"enabled": False}}, "precision is bf16"),
        ({"optimizer": {"type": "Adam"}}, "per-part learning rates"),
        ({"zero_optimization": {"stage": 3}}, "NF4"),
    ],
)
def test_deepspeed_in_disagreement_is_named(changes, words):
    settings = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=re.escape(words)):
        check_deepspeed(settings, stage(precision="bf16"), "ds.json", "nf4")


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"mixed_precision": "fp16"}, "mixed_precision fp16"),
        ({"deepspeed_config": {"gradient_accumulation_steps": 4}}, "accumulation is 2"),
        ({"deepspeed_config": {"zero_stage": 3}}, "NF4"),
        ({"distributed_type": "FSDP", "fsdp_config": {}}, "FSDP1"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, "FSDP would shard"),
    ],
)
def test_accelerate_in_disagreement_is_named(settings, words):
    with pytest.raises(UserError, match=words):
        check_accelerate(settings, stage(), "launch.yaml", "nf4")


def test_a_first_batch_check_that_zero3_would_refuse_is_named():
    asked = stage(verify_packing=True)
    check_accelerate({"deepspeed_config": {"zero_stage": 2}}, asked, "launch.yaml")
    with pytest.raises(UserError, match="verify_packing needs whole weights"):
        check_accelerate({"deepspeed_config": {"zero_stage": 3}}, asked, "launch.yaml")
    settings = {**GOOD, "zero_optimization": {"stage": 3}}
    with pytest.raises(UserError, match="verify_packing needs whole weights"):
        check_deepspeed(settings, asked, "ds.json")


def test_checkpointing_twice_is_named():
    fsdp = {"fsdp_version": 2, "fsdp_activation_checkpointing": True}
    settings = {"distributed_type": "FSDP", "mixed_precision": "no", "fsdp_config": fsdp}
    check_accelerate(settings, stage(), "launch.yaml")
    with pytest.raises(UserError, match="checkpoint twice"):
        check_accelerate(settings, stage(gradient_checkpointing=True), "launch.yaml")


@pytest.mark.parametrize(
    "changes,device,words",
    [
        ({"liger": True}, "cpu", "needs an NVIDIA or AMD GPU"),
        ({"liger": True}, "cuda", r"pip install 'face-mllm\[liger\]'"),
        ({"compile": True}, "cpu", "C.. compiler"),
        ({"report_to": ["wandb"]}, "cpu", "pip install wandb"),
        ({"report_to": ["trackio"]}, "cpu", "pip install trackio"),
    ],
)
def test_options_this_machine_lacks_are_refused(changes, device, words, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=words):
        options.check_options(stage(**changes), device)


def test_liger_without_kernels_for_the_llm_is_refused(make_model, monkeypatch):
    """The library itself only logs that it does nothing."""
    done = []
    liger = SimpleNamespace(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None},
        _apply_liger_kernel_to_instance=lambda **given: done.append(given),
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    package = SimpleNamespace(monkey_patch=liger)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    known, other = (make_model(llm=llm)[0].language_model for llm in ("llama", "gemma"))
    assert options.switch_on(stage(liger=True), known) == ["Liger kernels in the LLM's layers"]
    assert done == [{"model": known, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    with pytest.raises(UserError, match="no kernels for gemma3_text"):
        options.switch_on(stage(liger=True), other)


def test_a_compiled_decoder_gives_the_same_step_and_renames_no_weight(make_model, monkeypatch):
    """Blocks and fused LoRA, traced and run without a C++ compiler."""
    model, processor = make_model()
    model.language_model.set_attn_implementation(BLOCKS)
    add_lora(model, LoraSettings(r=2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    fuse_lora(model)
    names = list(model.state_dict())
    row = processor.tree_row([(f"Number {n}?", "yes", 1.0) for n in range(4)])
    batch = collate_trees([row], processor.pad_id, [[0]], 32)
    batch["pixel_values"] = torch.randn(1, 3, *processor.image_size)
    plain = gradients(model, model(**batch).loss)
    traced = partial(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **given: traced(*args, **given))
    assert options.switch_on(stage(compile=True), model.language_model) != []
    assert list(model.state_dict()) == names
    assert difference(gradients(model, model(**batch).loss), plain) < 1e-5
