"""Tiny real models: configured, randomly initialised, no download."""

from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    ResNetConfig,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data_pipeline.records import QA, FaceRecord, write_dataset
from face_mllm.model import FaceMLLMConfig, FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.model.vision import count_image_tokens

torch.set_num_threads(1)  # tiny products: threads only get in each other's way

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["Is AU12 active? yes no How old? 35 years happiness sadness fear anger -10 degrees face"]

TOWERS = {
    "clip": CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    ),
    "siglip": SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    ),
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    ),
}
_LLM = {
    "initializer_range": 0.3,  # a frozen random head must be able to say something
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLMS = {
    "llama": LlamaConfig(**_LLM),
    "qwen": Qwen2Config(**_LLM),
    "mistral": MistralConfig(**_LLM, sliding_window=None),
    "mistral-sliding": MistralConfig(**_LLM, sliding_window=20),
    "qwen-sliding": Qwen2Config(
        **_LLM, use_sliding_window=True, sliding_window=20, max_window_layers=1
    ),
    "gemma": Gemma3TextConfig(
        **_LLM,
        head_dim=8,
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
    ),
}


@pytest.fixture
def cache_of_a_test(tmp_path, monkeypatch):
    """Features of tiny models stay out of the user's cache, and of other tests."""
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cache_of_a_module(tmp_path_factory):
    """The same where a module's tests share what they computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACE_MLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(WORDS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def make_model(tokenizer, image_processor):
    """Build (model, processor) of a named tiny tower and LLM."""

    def make(tower="resnet", llm="llama", dtype=torch.float32, select="full", seed=0):
        torch.manual_seed(seed)
        vision = AutoModel.from_config(TOWERS[tower]).eval()
        language_config = copy.deepcopy(LLMS[llm])  # attention is chosen in it
        language = AutoModelForCausalLM.from_config(language_config)
        processor = FaceProcessor(image_processor, tokenizer, 0, system="Look.")
        processor.image_tokens = count_image_tokens(vision, (32, 32), -1, select)
        config = FaceMLLMConfig(
            TOWERS[tower],
            language_config,
            vision_select=select,
            image_tokens=processor.image_tokens,
            image_token_id=processor.image_token_id,
        )
        model = FaceMLLMForConditionalGeneration(config, vision, language).to(dtype).eval()
        return model, processor

    return make


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory, tokenizer, image_processor):
    """Folders of a tiny vision tower and a tiny LLM, as a user would point to."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    AutoModel.from_config(TOWERS["resnet"]).save_pretrained(root / "vision")
    image_processor.save_pretrained(root / "vision")
    AutoModelForCausalLM.from_config(LLMS["llama"]).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    return root


def face_jpeg(smiling: bool, rng) -> bytes:
    """A tiny picture whose brightness says the answer."""
    pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8) + (150 if smiling else 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A built dataset of 24 training and 8 test faces with one learnable question."""
    out = tmp_path_factory.mktemp("data") / "faces"
    rng = np.random.default_rng(0)
    with write_dataset(out) as writer:
        for number in range(32):
            smiling = bool(number % 2)
            split = "train" if number < 24 else "test"
            answer = "yes" if smiling else "no"
            qa = (
                QA("action_unit", "AU12", "Is AU12 active?", answer, ("yes", "no")),
                QA("age", "all", "How old?", "35 years"),
            )
            labels = {"action_units": {"AU12": 3.0 if smiling else 0.0}, "age": 35.0}
            image = face_jpeg(smiling, rng)
            writer.add(
                FaceRecord(f"toy_{number}", "toy", split, f"s{number}", image, labels, qa=qa)
            )
        manifest = {"holdout_attributes": ["smiling"], "seed": 0, "questions": "compact"}
        manifest["sources"] = [{"source": "toy", "protocol": "toy/all"}]
        (writer.folder / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture(scope="session")
def word_faces():
    """Bright faces are happy, dark ones angry."""
    rng = np.random.default_rng(1)
    return [
        FaceRecord(
            f"w{number}",
            "toy",
            "train",
            f"w{number}",
            face_jpeg(bool(number % 2), rng),
            {},
            qa=(QA("expression", "all", "?", "happiness" if number % 2 else "anger"),),
        )
        for number in range(40)
    ]
