"""Pictures and questions to model inputs, by the tower's processor and the LLM's own template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from face_mllm.errors import UserError, brief
from face_mllm.tree import TokenTree, TreeRow

IMAGE_TOKEN = "<image>"
SETTINGS_FILE = "face_processor.json"


class FaceProcessor:
    """Turns pictures into pixel tensors and question-answer pairs into token ids.

    A conversation is rendered once through the tokenizer's chat template and tokenised whole with
    ``<image>`` as a special token; what stands before the image is the prefix, what stands after
    it the branch. So training, scoring and generation see exactly the same ids.

    Args:
        image_processor: the vision tower's.
        tokenizer: the LLM's, with a chat template.
        image_tokens: number of placeholders a picture takes, an expert's token among them.
        system: system message; empty for none (templates that accept none need it empty).
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        image_tokens: int,
        system: str = "",
    ) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template",
                "use an instruction-tuned LLM, or add chat_template to its tokenizer_config.json",
            )
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token", "set eos_token in it")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.system = system
        self.expert: Any = None  # face_mllm.experts.joined.expert.JoinedExpert, where there is one
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.pad_id: int = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else (tokenizer.pad_token_id)
        )
        self._encode = lru_cache(maxsize=65536)(self._encode_uncached)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pixel tensor."""
        crop = getattr(self.image_processor, "crop_size", None)
        size = crop if crop and self.image_processor.do_center_crop else self.image_processor.size
        side = size.get("shortest_edge")
        return (side, side) if side else (size["height"], size["width"])

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pixel tensor [B, 3, H, W] of upright RGB pictures."""
        pixels = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels.clone()  # numpy's memory lies anywhere, and a product's last bit hangs on it

    def expert_view(
        self, images: Sequence[Image.Image]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """What a joined expert gives the model of each face and says in the prompt, else nothing.

        Returns:
            Arguments of the model's forward; words to put before the question, empty for none.
        """
        if self.expert is None:
            return {}, [""] * len(images)
        return self.expert.view(images)

    def prefix_ids(self) -> list[int]:
        """Ids up to and including the image placeholders."""
        before = self._encode("?", None)[0]
        return [*before, *[self.image_token_id] * self.image_tokens]

    def branch_ids(self, question: str, answer: str) -> tuple[list[int], int]:
        """Ids after the image for one question with its answer, and where the answer starts.

        The answer part ends with the end-of-turn token and with nothing after it.
        """
        prompt = self._encode(question, None)[1]
        whole = self._encode(question, answer)[1]
        start = _common_length(prompt, whole)
        answer_ids = list(whole[start:])
        end = self.tokenizer.eos_token_id
        answer_ids = answer_ids[: answer_ids.index(end)] if end in answer_ids else answer_ids
        return [*whole[:start], *answer_ids, end], start

    def prompt_ids(self, turns: Sequence[tuple[str, str | None]]) -> list[int]:
        """Ids of a conversation about one picture, ready for generation.

        Args:
            turns: (question, answer) pairs; the last answer is None.
        """
        ids = self._tokenise(self._render(turns))
        place = self._image_place(ids)
        placeholders = [self.image_token_id] * self.image_tokens
        return [*ids[:place], *placeholders, *ids[place + 1 :]]

    def tree_row(self, qas: Sequence[tuple[str, str, float]]) -> TreeRow:
        """One face's row: prefix, then a branch per (question, answer, weight)."""
        row, root = self.open_row()
        for number, (question, answer, weight) in enumerate(qas):
            tokens, start = self.branch_ids(question, answer)
            row.add_branch(root, tokens, start, weight, number)
        return row

    def open_row(self) -> tuple[TreeRow, int]:
        """A row that holds the prefix only, and the index of its last token."""
        tree = TokenTree()
        root = tree.insert(self.prefix_ids(), share=False)[-1]
        return TreeRow(tree), root

    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and settings into ``folder``."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        settings = {"image_tokens": self.image_tokens, "system": self.system}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> FaceProcessor:
        """Read what :meth:`save` wrote."""
        settings = json.loads((Path(folder) / SETTINGS_FILE).read_text())
        return cls(load_image_processor(folder), load_tokenizer(folder), **settings)

    def _encode_uncached(
        self, question: str, answer: str | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids = self._tokenise(self._render([(question, answer)]))
        place = self._image_place(ids)
        return tuple(ids[:place]), tuple(ids[place + 1 :])

    def _render(self, turns: Sequence[tuple[str, str | None]]) -> str:
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for number, (question, answer) in enumerate(turns):
            content = f"{IMAGE_TOKEN}\n{question}" if number == 0 else question
            messages.append({"role": "user", "content": content})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=turns[-1][1] is None
            )
        except TemplateError as error:
            raise UserError(
                f"the LLM's chat template refuses the conversation ({error})",
                "set `system: ''` in the stage config if it takes no system message",
            ) from error

    def _tokenise(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _image_place(self, ids: Sequence[int]) -> int:
        if list(ids).count(self.image_token_id) != 1:
            raise UserError(
                f"a conversation must hold {IMAGE_TOKEN} exactly once",
                f"remove {IMAGE_TOKEN} from the question or answer text",
            )
        return list(ids).index(self.image_token_id)


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Load a tokenizer folder; errors name the folder."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no tokenizer found ({brief(error)})", "give an LLM folder"
        ) from error


def load_image_processor(folder: Path | str) -> BaseImageProcessor:
    """Load the Pillow image processor of a vision folder (no torchvision needed)."""
    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no image processor found ({brief(error)})", "give a vision model folder"
        ) from error


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
