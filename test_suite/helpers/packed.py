"""Linear layers whose weights are packed: four bits each, two to a byte, beside a scale for each row.

As bitsandbytes, GPTQ and others do it: there is no matrix to multiply with, only a module to call.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from test_suite.helpers.models import checkpoint, word_tokenizer


class PackedLinear(nn.Module):
    """A linear layer of 16 values for each row; the packed ones stand under `name`."""

    def __init__(self, linear: nn.Linear, name: str) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = weight.abs().amax(dim=1, keepdim=True) / 7
        values = ((weight / scales).round() + 8).to(torch.uint8)
        self.name, self.in_features, self.out_features = name, linear.in_features, linear.out_features
        self.register_parameter(name, nn.Parameter(values[:, ::2] | values[:, 1::2] << 4, requires_grad=False))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def unpacked(self) -> Tensor:
        packed = getattr(self, self.name)
        values = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
        return (values.to(self.scales) - 8) * self.scales

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.unpacked(), self.bias)


PackedLinear.__module__ = "bitsandbytes.nn.modules"  # whose code counts as a model's own


def packed_bridge(architecture: str, name: str, *, unpacked: bool = False) -> Any:
    """A bridge around a small model with packed layers, whose packed weights stand under `name`; or with layers that
    hold the very same values in full."""
    whole = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(architecture), dtype=torch.float64).eval()
    for path, module in list(whole.named_modules()):
        if type(module) is nn.Linear and module is not whole.get_output_embeddings():
            packed: Any = PackedLinear(module, name)
            if unpacked:
                module.weight.data = packed.unpacked()
                continue
            parent, _, own = path.rpartition(".")
            setattr(whole.get_submodule(parent), own, packed)
    options = {"hf_model": whole, "tokenizer": word_tokenizer(), "dtype": torch.float64}
    return TransformerBridge.boot_transformers(str(checkpoint(architecture)), **options).eval()
