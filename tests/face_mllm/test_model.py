"""The composed model with every kind of tower and LLM; saving, Auto classes, freezing, ids."""

from __future__ import annotations

import json

import pytest
import sentencepiece
import torch
from conftest import LLMS, TOWERS
from transformers import AutoConfig, AutoModel, LlamaTokenizer

from data_pipeline.records import QA, FaceRecord
from face_mllm.config import LoraSettings, StageConfig
from face_mllm.errors import UserError
from face_mllm.lexical import deciding_tokens, warm_start
from face_mllm.model import FaceMLLMConfig, FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.model.vision import load_vision_tower
from face_mllm.stages import add_lora, apply_freeze, check_table


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("llm", LLMS)
def test_saved_model_loads_through_auto_classes_with_equal_logits(make_model, tmp_path, tower, llm):
    model, processor = make_model(tower, llm)
    ids = torch.tensor([processor.prompt_ids([("How old?", None)])])
    pixels = torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    processor.save(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again, FaceMLLMForConditionalGeneration)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), FaceMLLMConfig)
    with torch.no_grad():
        one, two = (m(input_ids=ids, pixel_values=pixels).logits for m in (model, again))
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)  # convolutions vary with alignment
    loaded = FaceProcessor.load(tmp_path)
    assert loaded.branch_ids("How old?", "35 years") == processor.branch_ids("How old?", "35 years")


@pytest.mark.parametrize(
    "tower,full,patch", [("clip", 17, 16), ("siglip", 16, 16), ("resnet", 2, 1)]
)
def test_image_token_counts(make_model, tower, full, patch):
    assert make_model(tower)[1].image_tokens == full
    assert make_model(tower, select="patch")[1].image_tokens == patch


def test_wrong_number_of_placeholders_is_refused(make_model):
    model, processor = make_model()
    ids = torch.tensor([[5, processor.image_token_id, 6]])
    with pytest.raises(ValueError, match="placeholders"):
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))


def stage(**changes):
    base = {"stage": "s", "data": "d", "out": "o", "vision": {"model": "v"}, "llm": {"model": "l"}}
    return StageConfig.model_validate({**base, **changes})


def test_lora_stage_trains_no_vision_parameter_though_clip_has_the_same_names(make_model):
    model, _ = make_model("clip", "llama")
    names = [name for name, _ in model.vision_tower.named_modules()]
    assert any(name.endswith("q_proj") for name in names)  # the trap is there
    add_lora(model, LoraSettings(r=2, alpha=4))
    rows = apply_freeze(model, stage(llm={"model": "l", "train": "lora"}))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert not [n for n in trained if n.startswith("vision_tower")]
    assert all(n.startswith("projector.") or "lora_" in n for n in trained)
    table = {row.part: row for row in rows}
    assert table["vision"].trainable == 0
    assert table["projector"].trainable == table["projector"].total
    assert table["llm"].trainable == sum(
        p.numel() for n, p in model.named_parameters() if "lora_" in n
    )


def test_a_trainable_set_that_differs_from_the_table_stops_the_run(make_model):
    model, _ = make_model()
    with pytest.raises(UserError, match="part llm is lora"):
        apply_freeze(model, stage(llm={"model": "l", "train": "lora"}))  # no LoRA layer there
    rows = apply_freeze(model, stage())
    with pytest.raises(UserError, match="part vision is frozen"):
        check_table([type(rows[0])("vision", "frozen", 3, 10), *rows[1:]])


def test_frozen_tower_keeps_its_batch_statistics(make_model):
    model, _ = make_model("resnet")
    apply_freeze(model, stage())
    before = {n: b.clone() for n, b in model.vision_tower.named_buffers()}
    model.train()
    model.image_features(torch.randn(4, 3, 32, 32) * 5)
    after = dict(model.vision_tower.named_buffers())
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_branch_is_prompt_then_answer_then_end_of_turn(make_model):
    _, processor = make_model()
    tokens, start = processor.branch_ids("How old?", "35 years")
    decode = processor.tokenizer.decode
    assert decode(tokens[start:]) == "35 years<|im_end|>"
    assert decode(tokens[:start]) == "\nHow old?<|im_end|>\n<|im_start|>assistant\n"
    whole = processor.prompt_ids([("How old?", None)])
    assert whole == [*processor.prefix_ids(), *tokens[:start]]


def test_template_without_system_role_says_what_to_do(make_model, tokenizer, image_processor):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match="system: ''"):
        FaceProcessor(image_processor, strict, 1, system="Look.").prefix_ids()


def test_sentencepiece_tokenizer_round_trip(tmp_path, image_processor):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Is the mouth open? yes no How old is the person? 35 years happy sad\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spm"), vocab_size=60,
        model_type="bpe", character_coverage=1.0, byte_fallback=False, minloglevel=2,
        user_defined_symbols=["[INST]", "[/INST]"], hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path, vocab_file=str(tmp_path / "spm.model"))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )  # Mistral's
    processor = FaceProcessor(image_processor, tokenizer, 3)
    tokens, start = processor.branch_ids("How old is the person?", "35 years")
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[start:], skip_special_tokens=True).strip() == "35 years"
    prompt = processor.prompt_ids([("How old is the person?", None)])
    assert prompt == [*processor.prefix_ids(), *tokens[:start]]


def test_dual_encoder_folder_gives_its_image_tower(tmp_path, image_processor):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    text = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, projection_dim=16,
    )  # fmt: skip
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=TOWERS["clip"].to_dict(), projection_dim=16
    )
    CLIPModel(config).save_pretrained(tmp_path)
    tower = load_vision_tower(tmp_path)
    assert tower.config.hidden_size == 32
    states = tower(torch.randn(1, 3, 32, 32), output_hidden_states=True).hidden_states
    assert states[-1].shape == (1, 17, 32)


def test_missing_vision_folder_is_a_user_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(UserError, match="not a vision model"):
        load_vision_tower(tmp_path)


def test_lexical_warm_start_finds_the_words_of_a_face(make_model, word_faces):
    model, processor = make_model("resnet")
    loss = warm_start(model, processor, word_faces, 150, seed=0)
    assert loss < 0.35  # 0.69 would be chance on words half of the faces have


def test_the_first_tokens_of_closed_answers_decide(make_model):
    _, processor = make_model("resnet")

    def tokens(*qas):
        record = FaceRecord("a", "toy", "train", "a", b"", {}, qa=qas)
        return deciding_tokens(record, processor.tokenizer)

    def first(word):
        return processor.tokenizer(word, add_special_tokens=False)["input_ids"][0]

    free = QA("caption", "all", "?", "a happy face")
    closed = [QA("t", a, "?", a, (a, "no")) for a in ("left 30", "35", "no", "yes")]
    assert tokens(free, *closed) == {first("left 30"), first("35")}
    free_ids = processor.tokenizer(free.answer, add_special_tokens=False)["input_ids"]
    assert tokens(free, *closed[2:]) == set(free_ids)
    assert tokens() == set()
