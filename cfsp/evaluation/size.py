"""Size: parameters, multiplications per token, bytes of the weights and of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.evaluation.base import Evaluator
from cfsp.model.blocks import check_positions
from cfsp.model.footprint import cache_bytes, weight_bytes
from cfsp.model.pass_cost import macs
from cfsp.records.record import Metric


@dataclass(frozen=True)
class Size(Evaluator):
    """Parameters, MACs per token, bytes of the weights on disk, and bytes of a sequence's keys and values.

    A MAC is one multiplication with its addition, in matrix products and attention, the head included.
    MACs are counted in one pass over `context` tokens and divided by their number; of a routed model they
    are those of all units, as a prompt computes them (`routing` counts what one token needs). The first
    three include adapters that are not merged; a record's own `parameters` do not. `cache_bytes` is of one
    sequence of `context` tokens: with b sequences the model takes bytes_on_disk + b * cache_bytes.
    """

    context: int

    def __post_init__(self) -> None:
        check_integer("size context", self.context, least=1)

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        check_positions(model, self.context, "size context")
        return {"measure": "size", "context": self.context, "dtype": str(model.dtype).removeprefix("torch.")}

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        protocol = self.protocol(model, tokenizer)
        cached = cache_bytes(model, 1, self.context)
        figures = {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "bytes_on_disk": weight_bytes(model),  # a tied weight once, as on disk
            "macs_per_token": macs(model, self.context) / self.context,
        } | ({"cache_bytes": cached} if cached else {})
        return {name: Metric(value, None, 1, "lower", protocol) for name, value in figures.items()}
