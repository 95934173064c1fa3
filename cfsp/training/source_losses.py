"""Source losses: the loss of a model on the held-out examples of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.examples import TrainingData
from cfsp.data.windows import Example
from cfsp.passes.modes import evaluating


@torch.no_grad()
def source_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    held_out: Mapping[str, Sequence[Example]],
    batch_size: int,
) -> dict[str, float]:
    """Return source -> mean loss of its held-out examples, over labels, in nats."""
    collate, found = data.collator(tokenizer), {}
    with evaluating(model):
        for name, examples in held_out.items():
            total = count = 0.0
            for first in range(0, len(examples), batch_size):
                batch = collate([*examples[first : first + batch_size]])
                loss, labels = summed_loss(
                    model, data, {key: one.to(model.device) for key, one in batch.items()}
                )
                total, count = total + loss, count + labels
            found[name] = total / count
    return found


def summed_loss(model: nn.Module, data: TrainingData, inputs: Mapping[str, Tensor]) -> tuple[float, int]:
    """Return the loss of a batch summed over its labels, and their number. inputs: name -> [batch, ...]"""
    tokens = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    logits, right = data.task.decisions(model(**tokens), inputs)
    return float(data.task.cost(logits.float(), right)), len(right)
