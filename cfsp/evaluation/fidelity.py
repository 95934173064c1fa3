"""Fidelity: how far a model's predictions are from those of the dense model, on a held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.data.texts import Text
from cfsp.evaluation.base import PairedEvaluator
from cfsp.evaluation.perplexity import window_names
from cfsp.evaluation.text_windows import TextWindows
from cfsp.records.outcomes import Kind, Outcomes
from cfsp.records.record import Metric


@dataclass(frozen=True)
class Fidelity(PairedEvaluator):
    """KL(dense || model) per token in nats, and the fraction of tokens where both predict the same next one.

    Both read the same windows, so that the difference has less noise than one of two perplexities. Every
    position but the last of a window counts. The dense model's own figures are 0 and 1.

    window, windows: as in perplexity.
    """

    text: Text
    window: int
    batch_size: int
    windows: int | None = None

    def __post_init__(self) -> None:
        check_integer("fidelity window", self.window, least=2)
        check_integer("fidelity batch_size", self.batch_size, least=1)
        if self.windows is not None:
            check_integer("fidelity windows", self.windows, least=1)

    @cached_property
    def reader(self) -> TextWindows:
        """The reader of the text's windows."""
        return TextWindows("fidelity", self.text, self.window, self.windows)

    def reads(self) -> Sequence[Text]:
        return [self.text]

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        read = self.reader.causal_protocol(model, tokenizer)
        return {key: value for key, value in read.items() if key not in ("stride", "bos")}

    def run_pair(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Metric], dict[str, Metric]]:
        """Return `kl/<text>` and `agreement/<text>`; standard errors are over windows.

        Raises:
            ValueError: the vocabularies differ, or an output is NaN or infinite.
        """
        protocol = self.protocol(pruned, tokenizer)
        rows = self.reader.rows(tokenizer)
        found = torch.cat(
            [
                distances(dense, pruned, batch)
                for batch in bar(rows.split(self.batch_size), f"fidelity on {self.text.label}", "batch")
            ]
        )  # [windows, 2]
        if not found.isfinite().all():
            raise ValueError(
                f"kl/{self.text.label}: an output is NaN or infinite; expected models that are sound "
                "in their dtype (try model.dtype=float32)"
            )
        names, tokens = window_names(rows, 1), rows[:, 1:].numel()
        own = torch.tensor([0.0, 1.0], dtype=torch.float64).expand_as(found)
        return tuple(self.metrics(one, names, tokens, protocol) for one in (own, found))  # pyright: ignore

    def metrics(
        self, found: Tensor, names: list[str], tokens: int, protocol: dict[str, Any]
    ) -> dict[str, Metric]:
        """Return both metrics. found: of each window. [windows, 2]"""

        def metric(values: Tensor, kind: Kind, better: Literal["lower", "higher"]) -> Metric:
            error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
            kept = Outcomes(kind, names, values.tolist())
            return Metric(values.mean().item(), error, tokens, better, protocol, outcomes=kept)

        return {
            f"kl/{self.text.label}": metric(found[:, 0], "nats", "lower"),
            f"agreement/{self.text.label}": metric(found[:, 1], "share", "higher"),
        }


@torch.no_grad()
def distances(dense: PreTrainedModel, pruned: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return KL(dense || pruned) in nats and the share of equal predictions of each row. [rows, 2]

    Raises ValueError if the models predict different vocabularies.
    """
    outputs = [model(input_ids=ids.to(model.device), use_cache=False).logits for model in (dense, pruned)]
    sizes = [output.shape[-1] for output in outputs]
    if sizes[0] != sizes[1]:
        raise ValueError(f"fidelity: vocabularies of {sizes[0]} and {sizes[1]} tokens; expected the same")
    rows = []
    # Row by row: float32 logits of a large vocabulary are the peak memory.
    for one, other in zip(*outputs, strict=True):
        mine, its = (row[:-1].to(one.device).float().log_softmax(-1) for row in (one, other))
        kl = (mine.exp() * (mine - its)).sum(-1).double().mean()
        rows.append(torch.stack([kl, (mine.argmax(-1) == its.argmax(-1)).double().mean()]).cpu())
    return torch.stack(rows)
