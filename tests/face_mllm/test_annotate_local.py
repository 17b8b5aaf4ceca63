"""Annotators on this machine: a tiny configured Hugging Face model, and a model of this package."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import LLMS, TOWERS
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaConfig,
    LlavaProcessor,
)

from data_pipeline.annotate import Questions, annotate, parse_annotators
from data_pipeline.annotate.local import LocalModel, OwnModel
from data_pipeline.annotate.questions import Answer
from data_pipeline.annotate.spec import parse_annotator
from data_pipeline.records import FaceRecord, iter_records, write_dataset
from face_mllm.chat import FaceMLLM, normalise
from face_mllm.cli import main
from face_mllm.errors import UserError
from face_mllm.scoring import LikelihoodScorer

QUESTIONS = Questions(("smiling", "eyeglasses"))
ANSWER: Answer = {"caption": "A face.", "smiling": "yes", "eyeglasses": "unknown"}
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} Answer:"
)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory, tokenizer, image_processor):
    """A random vision-language model whose settings leave it one thing to say: ANSWER."""
    folder = tmp_path_factory.mktemp("parts") / "tiny-llava"
    words = copy.deepcopy(tokenizer)
    words.add_tokens([AddedToken("<image>", special=True), AddedToken(json.dumps(ANSWER))])
    image_id, answer_id = words.convert_tokens_to_ids(["<image>", json.dumps(ANSWER)])
    processor = LlavaProcessor(image_processor, words, 8, "default", TEMPLATE, "<image>", 1)
    torch.manual_seed(0)
    vision, text = copy.deepcopy((TOWERS["clip"], LLMS["llama"]))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    model = AutoModelForImageTextToText.from_config(config)
    others = [token for token in range(400) if token != answer_id]
    model.generation_config = GenerationConfig(
        suppress_tokens=others, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def faces(tmp_path):
    rng = np.random.default_rng(0)
    with write_dataset(tmp_path / "faces") as writer:
        for number in range(5):
            path = tmp_path / f"{number}.png"
            pixels = rng.integers(0, 255, (40, 30 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            writer.add(FaceRecord(f"f{number}", "web", "train", f"f{number}", str(path), {}))
    return tmp_path / "faces"


def pictures(faces):
    return [record.open_image() for record in iter_records(faces)]


def test_a_local_model_annotates(vlm, faces, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["data", "annotate", str(faces), "--out", str(out), "--attributes"]
    who = f"hf:{vlm},batch=2,max_tokens=16,precision=fp32"
    assert main([*command, "smiling,eyeglasses", "--annotator", who]) == 0
    assert "5 faces on this machine" in capsys.readouterr().out
    records = list(iter_records(out))
    assert [record.labels for record in records] == [{"attributes": {"smiling": True}}] * 5
    assert {record.caption for record in records} == {"A face."}
    assert {record.source for record in records} == {"web+hf:tiny-llava"}
    about = json.loads((out / "manifest.json").read_text())["annotation"]["annotators"][0]
    assert about["model"] == "tiny-llava"  # no path of this machine
    assert about["fingerprint"]
    assert str(vlm) not in (out / "manifest.json").read_text()


def test_a_model_without_an_answer_leaves_no_dataset(vlm, faces, tmp_path):
    spec = parse_annotator(f"hf:{vlm},max_tokens=16,precision=fp32")
    out = tmp_path / "out"
    other = Questions(("bald",))  # it does not speak of that
    with pytest.raises(UserError, match="no face was annotated: 5 x hf:tiny-llava: malformed"):
        annotate(faces, out, [spec], other, lambda *_: True)
    assert not out.exists()


def test_company_in_a_batch_changes_nothing(vlm, faces):
    """Free words this time: greedy, the same alone and padded beside others."""
    said = []
    for batch in (1, 3):
        spec = parse_annotator(f"hf:{vlm},batch={batch},max_tokens=16,precision=fp32")
        model = LocalModel(spec, QUESTIONS)
        model.model.generation_config.suppress_tokens = None
        shown = pictures(faces)
        rows = [model.ask(shown[at : at + batch]) for at in range(0, len(shown), batch)]
        said.append([reply.text for row in rows for reply in row])
        assert all(reply.cut for row in rows for reply in row)
    assert said[0] == said[1]
    assert len(set(said[0])) > 1  # the picture reaches the words


@pytest.fixture
def own(make_model, tmp_path, monkeypatch):
    """A random model of this package that was taught one attribute in words of its own."""
    model, processor = make_model()
    taught = {
        "task": "attribute",
        "name": "smiling",
        "question": "Smile?",
        "choices": ["yes", "no"],
    }
    (tmp_path / "questions.json").write_text(json.dumps([taught | {"values": []}]))
    loaded = FaceMLLM(LikelihoodScorer(model, processor), tmp_path)
    monkeypatch.setattr(FaceMLLM, "from_pretrained", lambda *_: loaded)
    return loaded


def test_our_own_model_annotates(own, faces):
    spec = parse_annotator("artifact:runs/stage3,sure=0.5")
    bare = Questions(("smiling", "eyeglasses"), caption=False)
    model = OwnModel(spec, bare)
    assert model.asked[0] == "Smile?"  # as it was taught
    for picture, reply in zip(pictures(faces), model.ask(pictures(faces)), strict=True):
        rows = own.scorer.score(picture, [(question, ("yes", "no")) for question in model.asked])
        states = ["yes" if normalise(row)[0] > 0.5 else "no" for row in rows]
        assert bare.read(reply.text) == dict(zip(bare.attributes, states, strict=True))


def test_what_our_own_model_is_not_sure_of_is_unknown(own, faces):
    model = OwnModel(parse_annotator("artifact:runs/stage3,sure=1"), QUESTIONS)
    said = json.loads(model.ask(pictures(faces)[:1])[0].text)
    assert said["smiling"] == said["eyeglasses"] == "unknown"
    assert isinstance(said["caption"], str)


def test_two_local_annotators_make_a_consensus(own, vlm, faces, tmp_path):
    words = [f"hf:{vlm},max_tokens=16,precision=fp32", "artifact:runs/stage3,sure=1"]
    own.ask = lambda *_: "Words."
    specs = parse_annotators(words)
    manifest = annotate(faces, tmp_path / "out", specs, QUESTIONS, lambda *_: True)
    assert manifest is not None
    record = next(iter_records(tmp_path / "out"))
    assert record.labels == {}  # one is sure of nothing
    assert record.source == "web+hf:tiny-llava&artifact:stage3"
    assert manifest["annotation"]["disagreements"] == {"smiling": 5}
