"""Size: parameters, multiplications per token, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.evaluation.base import Evaluator
from cfsp.layouts import check_positions
from cfsp.record import Metric


@dataclass(frozen=True)
class Size(Evaluator):
    """Parameters, MACs per token, and bytes of the weights on disk.

    A MAC is one multiplication with its addition, in matrix products and attention, the head included;
    counted while the model reads one sequence of `context` tokens, and divided by them.
    """

    context: int

    def __post_init__(self) -> None:
        check_integer("size context", self.context, least=1)

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        check_positions(model, self.context, "size context")
        return {"measure": "size", "context": self.context, "dtype": str(model.dtype).removeprefix("torch.")}

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        protocol = self.protocol(model, tokenizer)
        weights = list(model.parameters())  # a tied weight once, as on disk
        figures = {
            "parameters": sum(weight.numel() for weight in weights),
            "bytes_on_disk": sum(weight.numel() * weight.element_size() for weight in weights),
            "macs_per_token": macs(model, self.context) / self.context,
        }
        return {name: Metric(value, None, 1, "lower", protocol) for name, value in figures.items()}


@torch.no_grad()
def macs(model: PreTrainedModel, tokens: int) -> float:
    """MACs of one forward pass over one sequence."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # plain products, which every version of the counter knows
    try:
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, use_cache=False)
    finally:
        model.set_attn_implementation(attention)
    return counter.get_total_flops() / 2
