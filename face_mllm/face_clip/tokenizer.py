"""A small byte-level BPE for captions: any text has tokens, caption words have one each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# letters and digits stay together: AU12 is one word, and so one token
WORD = r" ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+"
PAD, BOS, UNK, EOS = "<|pad|>", "<|startoftext|>", "<|unk|>", "<|endoftext|>"


def train_tokenizer(
    captions: Iterable[str], vocabulary: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE (Sennrich et al. 2016) on captions.

    Args:
        captions: training texts; words of held-out attributes must not be among them.
        vocabulary: most entries.
        max_tokens: longest text the text tower takes, both ends included.
    """
    core = Tokenizer(models.BPE(unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Prepend(" "),  # the first word is the token it is elsewhere
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, UNK, EOS],  # eos must not be 2: CLIP reads that id as legacy
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(captions, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(BOS, core.token_to_id(BOS)), (EOS, core.token_to_id(EOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=EOS,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """Read a tokenizer written by ``save_pretrained``."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
