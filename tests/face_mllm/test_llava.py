"""Export to LLaVA's format: stock transformers loads it and says the same."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import LLMS, TOWERS
from exp_clip_doubles import write_clip
from joined_faces import write_exp_clip
from PIL import Image
from test_train import LORA, stage
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    LlavaForConditionalGeneration,
)

from face_mllm.artifact import Artifact, load_artifact
from face_mllm.cli import main
from face_mllm.compose import Bases
from face_mllm.errors import UserError
from face_mllm.experts.joined.expert import open_expert
from face_mllm.experts.joined.settings import ExpertBase
from face_mllm.llava import export_llava, left_behind
from face_mllm.scoring import LikelihoodScorer
from face_mllm.train import train


def parts(root, tower, llm, tokenizer, image_processor):
    torch.manual_seed(0)
    AutoModel.from_config(TOWERS[tower]).save_pretrained(root / "vision")
    image_processor.save_pretrained(root / "vision")
    AutoModelForCausalLM.from_config(LLMS[llm]).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    return root


@pytest.fixture
def trained(tmp_path, tiny_data, tokenizer, image_processor):
    def make(tower="clip", llm="llama", select="patch", **changes):
        root = parts(tmp_path / f"{tower}-{llm}", tower, llm, tokenizer, image_processor)
        settings = {
            "vision": {"model": str(root / "vision"), "select": select, "layer": -2},
            "llm": {"model": str(root / "llm"), **LORA},
            "max_steps": 2,
            "system": "Look.",
            **changes,
        }
        train(stage(root, tiny_data, root / "out", **settings))
        return root / "out"

    return make


@pytest.mark.parametrize(
    "tower,llm,select",
    [("clip", "llama", "patch"), ("clip", "qwen", "full"), ("siglip", "mistral", "full")],
)
def test_stock_classes_give_the_same_logits_and_the_same_ids(trained, tmp_path, tower, llm, select):
    folder = trained(tower, llm, select)
    out = tmp_path / "llava"
    export_llava(folder, out)
    model, processor, _ = load_artifact(folder, torch.float32)
    stock = LlavaForConditionalGeneration.from_pretrained(out).eval()
    theirs = AutoProcessor.from_pretrained(out)
    face = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    ids = torch.tensor([processor.prompt_ids([("How old?", None)])])
    turns = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": "<image>\nHow old?"},
    ]
    prompt = theirs.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    given = theirs(images=face, text=prompt, return_tensors="pt", add_special_tokens=False)
    assert torch.equal(given["input_ids"], ids)
    with torch.no_grad():
        ours = model(input_ids=ids, pixel_values=processor.pixels([face])).logits
        stock_logits = stock(input_ids=ids, pixel_values=given["pixel_values"]).logits
        torch.testing.assert_close(stock_logits[..., : ours.shape[-1]], ours, atol=2e-4, rtol=2e-4)
        one = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=processor.pixels([face]),
            max_new_tokens=6,
            do_sample=False,
        )
        two = stock.generate(**given, max_new_tokens=6, do_sample=False)
    assert one.tolist() == two.tolist()


def test_the_folder_names_stock_classes_only_and_may_be_bf16(trained, tmp_path):
    export_llava(trained(), tmp_path / "llava", "bf16")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    assert stock.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "given,words",
    [
        ({"tower": "resnet", "select": "full"}, "patch states of a ViT"),
        ({"projector": {"hidden": 48}}, "48 wide"),
        ({"llm": "gemma"}, "scales its logits"),
    ],
)
def test_what_llava_has_no_counterpart_for_is_refused(trained, tmp_path, given, words):
    folder = trained(**given)
    with pytest.raises(UserError, match=words):
        export_llava(folder, tmp_path / "llava")
    assert not (tmp_path / "llava").exists()


def test_an_expert_token_cannot_travel_and_a_verdict_is_told_of(trained, tmp_path, capsys):
    folder = trained()
    info = json.loads((folder / "stage.json").read_text())
    for token, text in ((True, False), (False, True)):
        copy = tmp_path / f"copy{token}"
        shutil.copytree(folder, copy)
        info["expert"] = {"kind": "mask_fer", "source": "x", "token": token, "text": text}
        (copy / "stage.json").write_text(json.dumps(info))
    out = tmp_path / "llava"
    assert main(["export", "--model", str(tmp_path / "copyTrue"), "--out", str(out)]) == 2
    assert "--format llava" in capsys.readouterr().err
    arguments = ["export", "--format", "llava", "--out", str(out), "--model"]
    assert main([*arguments, str(tmp_path / "copyTrue")]) == 2
    assert "cannot travel" in capsys.readouterr().err


def test_a_stage_with_words_answers_the_same_in_stock_classes_with_them_in_the_prompt(
    trained, tmp_path
):
    write_clip(tmp_path / "text_clip")
    folder = write_exp_clip(tmp_path / "exp_clip", tmp_path / "text_clip")
    artifact = trained(expert={"model": str(folder), "text": True})
    export_llava(artifact, tmp_path / "llava")
    face = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    _, (words,) = open_expert(folder, text=True).view([face])
    scorer = LikelihoodScorer.from_artifact(artifact, "fp32")
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
    theirs = AutoProcessor.from_pretrained(tmp_path / "llava")
    turns = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": f"<image>\n{words}\nHow old?"},
    ]
    prompt = theirs.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    given = theirs(images=face, text=prompt, return_tensors="pt", add_special_tokens=False)
    ids = stock.generate(**given, max_new_tokens=6, do_sample=False)[0]
    said = theirs.decode(ids[given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert words.startswith("Expert: ")
    assert said == scorer.generate(face, "How old?", 6)
    card = (tmp_path / "llava" / "README.md").read_text()
    assert "Expert: happiness" in card
    snippet = card.split("```python")[2].split("```")[0].replace("ARTIFACT", str(artifact))
    face.save(tmp_path / "face.png")
    found = {"Image": Image}
    exec(snippet.replace("face.jpg", str(tmp_path / "face.png")), found)
    assert found["words"] == words


def test_llavas_note_tells_of_what_there_was():
    base = ExpertBase("exp_clip", "there", text=True)
    artifact = Artifact(Bases("v", "l"), expert=base)
    assert "verdict before each question" in left_behind(artifact)
    assert "fusion" not in left_behind(artifact)
    fused = dataclasses.replace(artifact, expert=ExpertBase("exp_clip", "there", fusion=True))
    assert left_behind(fused) == "late fusion and calibration stay behind"
