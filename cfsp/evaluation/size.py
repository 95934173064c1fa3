"""Size: parameters, multiplications per token, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.evaluation.base import Evaluator
from cfsp.model.blocks import check_positions
from cfsp.model.pass_cost import macs
from cfsp.records.record import Metric


@dataclass(frozen=True)
class Size(Evaluator):
    """Parameters, MACs per token, and bytes of the weights on disk.

    A MAC is one multiplication with its addition, in matrix products and attention, the head included.
    MACs are counted in one pass over `context` tokens and divided by their number. All three include
    adapters that are not merged; a record's own `parameters` do not.
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
