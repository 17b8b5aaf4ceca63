"""Every teacher gives (N, D), the mean over the positions it should be."""

from __future__ import annotations

import io
import shutil

import pytest
import torch
from exp_clip_doubles import TEACHER, picture, write_bert, write_blip2
from PIL import Image
from tokenizers import processors
from transformers import AutoModel, AutoTokenizer

from face_mllm.artifact import Artifact, save_artifact
from face_mllm.compose import Bases, compose
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.config import TeacherConfig
from face_mllm.experts.exp_clip.teachers import instruction_span, load_teacher
from face_mllm.hardware import choose_hardware

INSTRUCTION = "Describe the face of happy ."


@pytest.fixture(scope="module")
def hardware():
    return choose_hardware(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def images():
    return [Image.open(io.BytesIO(picture(kind, kind))) for kind in (0, 1, 2, 0, 1)]


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    return write_blip2(tmp_path_factory.mktemp("blip2"))


def settings(kind, model, **changes) -> TeacherConfig:
    given = {"kind": kind, "model": str(model), "instruction": INSTRUCTION, "batch_size": 2}
    return TeacherConfig(**{**given, **changes})


def test_blip2_is_the_mean_of_query_and_instruction_positions(blip2, images, hardware):
    teacher = load_teacher(settings("blip2", blip2), hardware)
    found = teacher.features(images)
    assert found.shape == (5, TEACHER)
    inner, words = teacher.model, teacher.ids
    with torch.no_grad():  # step by step as the paper, one face
        pixels = teacher.processor(images[:1], return_tensors="pt")["pixel_values"]
        seen = inner.vision_model(pixels).last_hidden_state
        queries = inner.qformer(query_embeds=inner.query_tokens, encoder_hidden_states=seen)
        tokens = inner.language_projection(queries.last_hidden_state)
        read = torch.cat([tokens, inner.language_model.shared(words)], 1)
        states = inner.language_model.encoder(inputs_embeds=read).last_hidden_state
    assert words[0, -1] == 1  # end of sequence is a position too
    assert states.shape[1] == 4 + words.shape[1]
    assert torch.allclose(found[0], states[0].mean(0), atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-4)  # it saw the picture


def test_blip2_features_hear_the_instruction_and_the_preprocessing(blip2, images, hardware):
    plain = load_teacher(settings("blip2", blip2), hardware)
    other = load_teacher(settings("blip2", blip2, instruction="sad sad sad"), hardware)
    paper = load_teacher(settings("blip2", blip2), hardware, paper_preprocess=True)
    features = [each.features(images) for each in (plain, other, paper)]
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    assert not torch.allclose(features[0], features[2], atol=1e-4)
    assert len({str(each.identity) for each in (plain, other, paper)}) == 3


def test_blip2_may_pool_the_instruction_alone(blip2, images, hardware):
    whole = load_teacher(settings("blip2", blip2), hardware)
    said = load_teacher(settings("blip2", blip2, pool="instruction"), hardware)
    words = said.ids.shape[1]
    queries = said.model.config.num_query_tokens
    with torch.no_grad():
        pixels = said.processor(images[:1], return_tensors="pt")["pixel_values"]
        seen = said.model.get_image_features(pixels).pooler_output
        read = torch.cat([seen, said.model.language_model.shared(said.ids)], 1)
        states = said.model.language_model.encoder(inputs_embeds=read).last_hidden_state[0]
    assert len(states) == queries + words
    assert torch.allclose(said.features(images[:1])[0], states[queries:].mean(0), atol=1e-5)
    assert not torch.allclose(said.features(images), whole.features(images), atol=1e-3)


def test_a_model_without_t5_is_refused(tmp_path, hardware):
    with pytest.raises(UserError, match="no BLIP-2"):
        load_teacher(settings("blip2", write_bert(tmp_path / "bert")), hardware)


@pytest.fixture(scope="module")
def artifact(tiny_parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifact") / "stage"
    bases = Bases(str(tiny_parts / "vision"), str(tiny_parts / "llm"), system="Look.")
    model, processor, bases = compose(bases, torch.float32)
    save_artifact(model, processor, Artifact(bases), out)
    return out


def test_artifact_teacher_pools_the_instruction_after_the_image(artifact, images, hardware):
    teacher = load_teacher(settings("artifact", artifact, instruction="Is AU12 active?"), hardware)
    found = teacher.features(images)
    processor, span = teacher.processor, teacher.span
    ids = teacher.ids[0].tolist()
    assert processor.tokenizer.decode(ids[span]).strip() == "Is AU12 active?"
    last_image = max(at for at, token in enumerate(ids) if token == processor.image_token_id)
    assert last_image < span.start
    with torch.no_grad():  # hidden states of an ordinary pass, one face
        model = teacher.model
        embeds = model.embed(teacher.ids, processor.pixels(images[:1]))
        states = model.language_model.model(inputs_embeds=embeds).last_hidden_state
    assert found.shape == (5, 32)
    assert torch.allclose(found[0], states[0, span].mean(0), atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("instruction", ["Is AU12 active?", "?", "How old? Is", "face"])
def test_the_span_holds_exactly_the_instruction(artifact, hardware, instruction):
    processor = load_teacher(settings("artifact", artifact), hardware).processor
    ids = processor.prompt_ids([(instruction, None)])
    first, after = instruction_span(processor, instruction)
    assert processor.tokenizer.decode(ids[first:after]).strip() == instruction


def test_text_encoder_is_the_mean_of_all_positions_without_padding(tmp_path, hardware):
    folder = write_bert(tmp_path / "bert")
    teacher = load_teacher(settings("text", folder), hardware)
    captions = ["happy", "a sad face of happiness . happy", "sad", "a happy face ."]
    found = teacher.features(captions)
    model = AutoModel.from_pretrained(folder).eval()
    for caption, row in zip(captions, found, strict=True):
        ids = teacher.tokenizer(f"{caption}\n{INSTRUCTION}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted = model(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(row, wanted, atol=1e-5)


def test_causal_text_teacher_pools_what_follows_the_caption(tiny_parts, hardware):
    config = settings("text", tiny_parts / "llm", instruction="Which face?")
    teacher = load_teacher(config, hardware)
    found = teacher.features(["happiness face", "anger"])
    ids = teacher.tokenizer("anger\nWhich face?", return_tensors="pt")["input_ids"]
    start = len(teacher.tokenizer("anger\n")["input_ids"])
    with torch.no_grad():
        states = teacher.model(input_ids=ids).last_hidden_state[0]
    assert torch.allclose(found[1], states[start:].mean(0), atol=1e-5)
    assert teacher.reads == "caption"


def test_what_a_tokenizer_puts_first_does_not_move_the_instruction(tiny_parts, tmp_path, hardware):
    """Llama begins every text with a token of its own, which is none of the caption's."""
    folder = shutil.copytree(tiny_parts / "llm", tmp_path / "llm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin = tokenizer.convert_ids_to_tokens(1)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"{begin} $A", special_tokens=[(begin, 1)]
    )
    tokenizer.save_pretrained(folder)
    teacher = load_teacher(settings("text", folder, instruction="Which face?"), hardware)
    captions = ["happiness face", "anger"]
    found = teacher.features(captions)
    for caption, row in zip(captions, found, strict=True):
        text = f"{caption}\nWhich face?"
        given = teacher.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        assert given["input_ids"][0, 0] == 1
        asked = given["offset_mapping"][0, :, 0] > len(caption)  # behind the line's end
        with torch.no_grad():
            states = teacher.model(input_ids=given["input_ids"]).last_hidden_state[0]
        assert torch.allclose(row, states[asked].mean(0), atol=1e-5)


def test_a_caption_too_long_is_refused_not_cut(tiny_parts, hardware):
    teacher = load_teacher(settings("text", tiny_parts / "llm", max_tokens=40), hardware)
    with pytest.raises(UserError, match="tokens"):
        teacher.features(["happiness " * 60])
