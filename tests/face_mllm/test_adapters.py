"""LoRA, rsLoRA, DoRA and QLoRA on the LLM, LoRA on the tower: saved, loaded, continued, merged."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import face_mllm.train as training
from data_pipeline.records import FaceRecord, load_split
from face_mllm.artifact import load_artifact, read_artifact
from face_mllm.config import LoraSettings, StageConfig
from face_mllm.errors import UserError
from face_mllm.export import export_merged
from face_mllm.hardware import for_precision
from face_mllm.scoring import LikelihoodScorer
from face_mllm.stages import add_lora, freeze_table, lora_targets

LORA = {"r": 4, "alpha": 16}
FORMS = {
    "lora": {"llm": {"train": "lora", "lora": LORA}},
    "rslora": {"llm": {"train": "lora", "lora": {**LORA, "rslora": True}}},
    "dora": {"llm": {"train": "lora", "lora": {**LORA, "dora": True}}},
    "qlora": {"llm": {"train": "lora", "lora": LORA, "quant": "nf4"}},
    "qdora": {"llm": {"train": "lora", "lora": {**LORA, "dora": True}, "quant": "nf4"}},
    "vision": {"vision": {"train": "lora", "lora": LORA}},
    "both": {
        "vision": {"train": "lora", "lora": {**LORA, "r": 2, "targets": ["all-linear"]}},
        "llm": {"train": "lora", "lora": LORA},
    },
}
ASKED = [("Is AU12 active?", ("yes", "no")), ("How old?", ("35 years", "36 years"))]


def stage(parts, data, out, first=True, **changes):
    settings = {
        "stage": "stage",
        "data": data,
        "out": out,
        "precision": "fp32",
        "max_steps": 3,
        "faces_per_device": 4,
        "learning_rate": 1e-2,
        **changes,
    }
    for part in ("vision", "llm"):
        model = {"model": str(parts / part)} if first else {}
        settings[part] = {**model, **settings.get(part, {})}
    return StageConfig.model_validate(settings)


def answers(model, processor, data):
    scorer = LikelihoodScorer(model, processor)
    faces = [FaceRecord.from_row(row).open_image() for row in load_split(data, "test")][:3]
    return torch.tensor([[s for q in scorer.score(face, ASKED) for s in q] for face in faces])


@pytest.fixture
def trained(tiny_parts, tiny_data, tmp_path, monkeypatch):
    """Train one form for three steps; returns its folder and the answers of the live model."""

    def run(form):
        live = {}

        def finish(config, trainer, artifact, processor):
            folder = real(config, trainer, artifact, processor)
            live["answers"] = answers(trainer.model, processor, tiny_data)
            return folder

        real = training.finish
        monkeypatch.setattr(training, "finish", finish)
        folder = training.train(stage(tiny_parts, tiny_data, tmp_path / form, **FORMS[form]))
        return folder, live["answers"]

    return run


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_equal_saved_loaded_continued_and_merged(
    form, trained, tiny_parts, tiny_data, tmp_path
):
    folder, live = trained(form)
    model, processor, artifact = load_artifact(folder, torch.float32)
    loaded = answers(model, processor, tiny_data)
    assert torch.equal(loaded, live)
    _, plain, processor = training.assemble(
        stage(tiny_parts, tiny_data, tmp_path / "fresh"), for_precision("fp32")
    )
    assert not torch.allclose(answers(plain, processor, tiny_data), live, atol=1e-3)

    later = {part: {"train": about["train"]} for part, about in FORMS[form].items()}
    config = stage(tiny_parts, tiny_data, tmp_path / "on", False, init_from=folder, **later)
    _, model, processor = training.assemble(config, for_precision("fp32"))
    assert torch.equal(answers(model, processor, tiny_data), live)

    merged = export_merged(folder, tmp_path / "merged")
    model, processor, whole = load_artifact(merged, torch.float32)
    assert whole.adapters == []
    assert set(artifact.adapters) <= set(whole.trained)
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(answers(model, processor, tiny_data), live, atol=1e-4, rtol=0)


def test_a_later_stage_trains_the_same_adapter_further(trained, tiny_parts, tiny_data, tmp_path):
    folder, live = trained("qdora")
    config = stage(
        tiny_parts,
        tiny_data,
        tmp_path / "next",
        False,
        init_from=folder,
        llm={"train": "lora"},
        projector={"train": "frozen"},
    )
    model, processor, artifact = load_artifact(training.train(config), torch.float32)
    assert artifact.bases.llm_quant == "nf4"
    assert [entry["stage"] for entry in artifact.chain] == ["stage", "stage"]
    assert not torch.allclose(answers(model, processor, tiny_data), live)


def test_nf4_keeps_linear_weights_in_four_bits_and_counts_them_whole(tiny_parts, tiny_data):
    four = stage(tiny_parts, tiny_data, "o", llm={"quant": "nf4"})
    full = stage(tiny_parts, tiny_data, "o")
    tables = []
    for config in (four, full):
        _, model, _ = training.assemble(config, for_precision("fp32"))
        tables.append(freeze_table(model, config.part_trainings()))
        packed = {p.dtype for n, p in model.language_model.named_parameters() if "q_proj" in n}
        assert packed == {torch.uint8 if config is four else torch.float32}
    assert [row.total for row in tables[0]] == [row.total for row in tables[1]]


def test_rslora_is_alpha_over_root_r(make_model):
    """Closed form: the adapter adds (alpha / sqrt(r)) B A x."""
    model, _ = make_model()
    add_lora(model, LoraSettings(r=4, alpha=6, rslora=True))
    layer = model.language_model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
        x = torch.randn(5, 32)
        wanted = x @ (layer.base_layer.weight + 6 / 4**0.5 * b @ a).T
        torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)


def test_vision_adapters_leave_out_what_the_projector_never_reads(make_model):
    """CLIP read one layer before the end: its last layer would never get a gradient."""
    model, _ = make_model("clip")
    everything = lora_targets(model, LoraSettings(targets=("all-linear",)), "vision")
    model.config.vision_layer = -2
    add_lora(model, LoraSettings(r=2, targets=("all-linear",)), "vision")
    pixels = torch.randn(2, 3, 32, 32)
    model.image_features(pixels).sum().backward()
    adapters = {n: p for n, p in model.named_parameters() if "lora_B" in n}
    assert len(adapters) == len([n for n in everything if "layers.1." not in n]) > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())
    assert all(name.startswith("vision_tower.") for name in adapters)


def test_all_linear_takes_every_linear_layer_but_the_head(make_model):
    model, _ = make_model()
    found = lora_targets(model, LoraSettings(targets=("all-linear",)))
    assert found == lora_targets(model, LoraSettings())
    assert len(found) == 14
    assert not any("lm_head" in name for name in found)


def test_batch_norm_below_a_vision_adapter_keeps_its_statistics(trained, tiny_parts):
    folder, _ = trained("vision")
    model, _, _ = load_artifact(folder, torch.float32)
    tower = AutoModel.from_pretrained(tiny_parts / "vision")
    own = dict(model.vision_tower.named_buffers())
    for name, buffer in tower.named_buffers():
        match = [value for key, value in own.items() if key.replace("base_layer.", "") == name]
        assert torch.equal(match[0], buffer)


def test_other_settings_than_the_inherited_adapters_are_refused(
    trained, tiny_parts, tiny_data, tmp_path
):
    folder, _ = trained("lora")
    config = stage(
        tiny_parts,
        tiny_data,
        tmp_path / "next",
        False,
        init_from=folder,
        llm={"train": "lora", "lora": {"r": 8}},
    )
    with pytest.raises(UserError, match=r"llm.lora.r: 8.*has 4"):
        training.train(config)


def test_nf4_without_bitsandbytes_says_what_to_install(tiny_parts, tiny_data, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = stage(tiny_parts, tiny_data, "o", llm={"quant": "nf4", "train": "lora"})
    with pytest.raises(UserError, match=r"pip install 'face-mllm\[quant\]'"):
        training.assemble(config, for_precision("fp32"))


def test_a_full_llm_with_tied_embeddings_survives_and_takes_an_adapter_later(
    tiny_parts, tiny_data, tmp_path
):
    import shutil

    parts = tmp_path / "parts"
    shutil.copytree(tiny_parts, parts)
    tied = AutoConfig.from_pretrained(parts / "llm", tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(tied).save_pretrained(parts / "llm")
    first = training.train(stage(parts, tiny_data, tmp_path / "a", llm={"train": "full"}))
    model, _, _ = load_artifact(first, torch.float32)
    head = model.get_output_embeddings().weight
    assert head.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    on = stage(parts, tiny_data, tmp_path / "b", False, init_from=first, **FORMS["lora"])
    second = training.train(on)
    model, _, artifact = load_artifact(second, torch.float32)
    assert (artifact.trained, artifact.adapters) == (["llm", "projector"], ["llm"])
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert read_artifact(second).chain[-1]["steps"] == 3
