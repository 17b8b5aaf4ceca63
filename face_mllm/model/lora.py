"""Plain LoRA layers in one autograd step: the same sum as PEFT's, without its passes over memory.

PEFT casts the layer's input up and down, multiplies and adds as tensors of their own; on a CPU that
takes as long as the layer's small products. Here scaling and addition happen inside them.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.autograd.function import once_differentiable


def fuse_lora(model: nn.Module) -> int:
    """Let every plain LoRA layer run fused; returns how many.

    DoRA, quantised and other layers stay as they are, and so do names and saved weights.
    """
    layers = [layer for layer in model.modules() if type(layer) is LoraLinear]
    for layer in layers:
        layer.__class__ = FusedLoraLinear
    return len(layers)


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer on a frozen ``nn.Linear``; any other case is PEFT's own forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., in] to [..., out]."""
        name = self._plain_adapter()
        if args or kwargs or name is None:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        weight, bias = self.base_layer.weight, self.base_layer.bias
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        elif not x.dtype == a.dtype == b.dtype == weight.dtype:
            return super().forward(x)
        return _LoraLinear.apply(x, a, b, weight, bias, self.scaling[name])

    def _plain_adapter(self) -> str | None:
        """Name of the one adapter at work here, None where PEFT has more to do than add it."""
        base = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]  # not other parts'
        if self.disable_adapters or self.merged or type(base) is not nn.Linear:
            return None
        if len(names) != 1 or names[0] in self.lora_variant:
            return None
        if self.lora_bias[names[0]] or any(p.requires_grad for p in base.parameters()):
            return None
        if hasattr(base.weight, "ds_id"):  # ZeRO-3 brings weights when their own layer is called
            return None
        plain = not self.training or isinstance(self.lora_dropout[names[0]], nn.Identity)
        return names[0] if plain else None


class _LoraLinear(torch.autograd.Function):
    """``x W' + bias + scaling * (x A') B'`` with a frozen W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        ctx.wide, ctx.scaling = a.dtype, scaling
        a, b = a.to(x.dtype), b.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.t()
        result = nn.functional.linear(rows, weight, bias)
        result.addmm_(inner, b.t(), alpha=scaling)
        ctx.save_for_backward(x, a, b, weight, inner)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, weight, inner = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_inner = (rows @ b).mul_(ctx.scaling)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (rows @ weight).addmm_(to_inner, a).view_as(x)
        to_a = to_inner.t() @ x.reshape(-1, x.shape[-1])
        to_b = (rows.t() @ inner).mul_(ctx.scaling)
        return to_x, to_a.to(ctx.wide), to_b.to(ctx.wide), None, None, None
