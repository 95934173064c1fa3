"""Writing: continue prompts with a model, several at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cfsp.model.generating_as import generating_as


class Dice(LogitsProcessor):
    """Turns greedy decoding into sampling: the token with the highest logit / temperature + Gumbel noise.

    Such a token has the probability that the softmax gives it. Each row has dice of its own, so what it says
    does not depend on the rows beside it, and the process's generators are not touched.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy logits. [rows, vocabulary] -> [rows, vocabulary]"""
        size = scores.shape[1]
        noise = torch.stack([-torch.empty(size).exponential_(generator=dice).log() for dice in self.dice])
        return scores.float() / self.temperature + noise.to(scores.device)


@torch.no_grad()
def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stopping: Sequence[StoppingCriteria] = (),
    dice: Dice | None = None,
) -> list[list[int]]:
    """Return the new tokens of each prompt; a row that ended early is filled up.

    Of the model's generation config only the ends of a text count: a repetition penalty or a least length
    would make the answers depend on more than the weights.

    dice: samples the tokens from the model's own distribution; None: each is the most probable one.
    """
    ids, mask = padded(prompts, left=True)
    ends, fill = ends_of(model, tokenizer), fill_of(model, tokenizer)
    with generating_as(model, GenerationConfig()):
        out = model.generate(  # pyright: ignore[reportCallIssue]  # of classes that can generate
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=[*ends] or None,
            pad_token_id=fill,
            stopping_criteria=StoppingCriteriaList(stopping),
            logits_processor=LogitsProcessorList([dice] if dice else []),
        )
    return out[:, ids.shape[1] :].tolist()


def padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Return rows of one length, and their mask. Both [rows, tokens]"""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(len(row))
        ids[number, span], mask[number, span] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end an answer: those of the model's generation config and the tokenizer's."""
    given = getattr(model.generation_config, "eos_token_id", None)
    ends = {*given} if isinstance(given, list | tuple) else {given}
    return {token for token in (*ends, tokenizer.eos_token_id) if isinstance(token, int)}


def fill_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up rows that have ended; an end itself, which no answer goes beyond."""
    pad = tokenizer.pad_token_id
    return min(ends_of(model, tokenizer), default=pad if isinstance(pad, int) else 0)
