"""NF4 weights for QLoRA (Dettmers et al. 2023) through bitsandbytes, on CPUs and GPUs."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from face_mllm.errors import UserError
from face_mllm.hardware import choose_hardware


def keep_exact(model: torch.nn.Module) -> None:
    """Keep 4-bit products in the compute dtype.

    On CPUs with AVX512_BF16, bitsandbytes would repack the weights in place at the first pass
    without gradients, round their scales to bf16 and multiply in bf16 whatever was asked for.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def nf4_loading(compute_dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that keep linear weights in 4 bits, scales twice quantised.

    The language head and the embeddings stay as they are.

    Args:
        compute_dtype: dtype the weights are unpacked to for a product.

    Raises:
        UserError: bitsandbytes is not installed or cannot run on this device.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("llm.quant: nf4 needs bitsandbytes", "run `pip install 'face-mllm[quant]'`")
    device = choose_hardware().device
    if device == "mps":
        raise UserError("llm.quant: nf4 does not run on Apple GPUs", "set FACE_MLLM_DEVICE=cpu")
    if device == "cuda":  # one process, one GPU: its own
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        ),
        "device_map": {"": device},
    }
