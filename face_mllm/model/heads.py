"""Language head and loss at the label rows: any LLM's own scaling, chunked for many rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from face_mllm.errors import UserError

LOGITS = 2**28  # that exist at once in training, 1 GiB in fp32; captions bring more

Scaling = Callable[[torch.Tensor], torch.Tensor]


def logit_scaling(config: Any) -> Scaling | None:
    """What an LLM does to its head's output: Gemma's soft cap, Cohere's and Granite's factors."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    factor = getattr(config, "logit_scale", None)
    if factor is not None:
        return lambda logits: logits * factor
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        return lambda logits: logits / divisor
    return None


def head_logits(language_model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] of hidden states [..., H], as the LLM's own forward makes them."""
    logits = language_model.get_output_embeddings()(hidden)
    scaling = logit_scaling(language_model.config)
    return logits if scaling is None else scaling(logits)


def check_head(language_model: Any) -> None:
    """Compare :func:`head_logits` with the LLM's own head on two random hidden states.

    Call it on a freshly loaded LLM: its decoder is bypassed meanwhile.

    Raises:
        UserError: the LLM does something to its logits that is not known here.
    """
    weight = language_model.get_output_embeddings().weight
    if weight.is_meta or hasattr(weight, "ds_id"):  # no numbers to compare
        return
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2, weight.shape[1], generator=draw).to(weight)
    decoder = language_model.get_decoder()
    decoded = _Decoded(hidden)
    decoder.forward = lambda *_, **__: decoded
    try:
        with torch.no_grad():
            theirs = language_model(inputs_embeds=hidden, use_cache=False).logits
            ours = head_logits(language_model, hidden)
    finally:
        del decoder.forward
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{language_model.config.model_type}: its logits are not its head's output",
            "use another LLM, or add its scaling to face_mllm/model/heads.py",
        )


class _Decoded(tuple):
    """A decoder output that holds hidden states only, by name and by index."""

    past_key_values = hidden_states = attentions = router_logits = cross_attentions = None

    def __new__(cls, hidden: torch.Tensor) -> _Decoded:
        self = super().__new__(cls, (hidden,))
        self.last_hidden_state = hidden
        return self

    last_hidden_state: torch.Tensor


def chunk_rows(vocabulary: int) -> int:
    """Label rows whose logits exist at once in training."""
    return max(1, LOGITS // vocabulary)


def label_losses(
    language_model: Any, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Negative log likelihoods at the label rows.

    With more than :func:`chunk_rows` the logits are made chunk by chunk, and again for gradients.

    Args:
        language_model: the LLM.
        hidden: [L, H] hidden states of the label rows.
        targets: [L] token ids.

    Returns:
        Losses [L] in fp32 (fp64 stays) and the logits [L, V], None when chunked.
    """
    chunk = chunk_rows(language_model.config.vocab_size)
    if len(hidden) <= chunk:
        logits = head_logits(language_model, hidden)
        return token_losses(logits, targets), logits

    def part(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return token_losses(head_logits(language_model, states), wanted)

    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    losses = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    return torch.cat(losses), None


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of each target: logits [L, V], targets [L] to [L]."""
    return functional.cross_entropy(_wide(logits), targets, reduction="none")


@torch.no_grad()
def label_entropies(language_model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the LLM's distribution at each label row, [L]; without gradient."""
    parts = []
    for states in hidden.split(chunk_rows(language_model.config.vocab_size)):
        logs = _wide(head_logits(language_model, states)).log_softmax(-1)
        parts.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(parts)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
