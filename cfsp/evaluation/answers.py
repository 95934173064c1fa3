"""Answers that a model writes to prompts, in batches, by greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from cfsp.evaluation.likelihoods import padded
from cfsp.model.blocks import max_positions


@dataclass(frozen=True)
class Answer:
    """What a model wrote. text: up to the first stop.

    tokens: what it wrote, without the end of the text. ended: whether it came to a stop or to the end by
    itself. whole_prompt: whether it read all of the prompt.
    """

    text: str
    tokens: int
    ended: bool
    whole_prompt: bool


class Stops(StoppingCriteria):
    """Ends a row once its new text holds one of the stops. start: the number of tokens of the prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], start: int) -> None:
        self.tokenizer, self.stops, self.start = tokenizer, stops, start
        self.reach = max((len(stop.encode()) for stop in stops), default=0) + 1  # a token is a byte at least

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return which rows have ended. [rows]"""
        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.reach) :].tolist()
        ended = [first_stop(decoded(self.tokenizer, tail), self.stops) is not None for tail in tails]
        return torch.tensor(ended, device=input_ids.device)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first of the stops begins in a text."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Return an answer to each prompt, in order. A batch has prompts of similar lengths, the longest first.

    A prompt that leaves no room for `new_tokens` loses its beginning.
    """
    limit = max_positions(model)
    room = None if limit is None else limit - new_tokens
    if room is not None and room < 1:
        raise ValueError(f"generation new_tokens={new_tokens}: the model has {limit} positions")
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    found: dict[int, Answer] = {}
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        read = [tuple(prompts[place][-room:] if room else prompts[place]) for place in places]
        rows = continued(model, tokenizer, read, stops, new_tokens)
        for place, shown, row in zip(places, read, rows, strict=True):
            found[place] = answer_of(model, tokenizer, row, stops, len(shown) == len(prompts[place]))
        advance(len(places))
    return [found[place] for place in range(len(prompts))]


@torch.no_grad()
def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    stops: Sequence[str],
    new_tokens: int,
) -> list[list[int]]:
    """Return the new tokens of each prompt; a row that ended early is filled up."""
    ids, mask = padded(prompts, left=True)
    out = model.generate(  # pyright: ignore[reportCallIssue]  # of classes that can generate
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=[*ends_of(model, tokenizer)] or None,
        pad_token_id=fill_of(model, tokenizer),
        stopping_criteria=StoppingCriteriaList([Stops(tokenizer, stops, ids.shape[1])] if stops else []),
    )
    return out[:, ids.shape[1] :].tolist()


def answer_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: Sequence[int],
    stops: Sequence[str],
    whole_prompt: bool,
) -> Answer:
    """Return the answer in a row of new tokens."""
    ends = ends_of(model, tokenizer)
    length = next((place for place, token in enumerate(row) if token in ends), None)
    written = row[:length]
    # With special tokens, because a stop may be one.
    text = decoded(tokenizer, written)
    place = first_stop(text, stops)
    if place is not None and length is None:
        reach = range(1, len(written) + 1)  # the row is filled up after the stop
        length = next(n for n in reach if first_stop(decoded(tokenizer, written[:n]), stops) is not None)
        written = written[:length]
    plain = decoded(tokenizer, written, plain=True)
    stop = first_stop(plain, stops)
    return Answer(plain[:stop], len(written), length is not None, whole_prompt)


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end an answer: those of the model's generation config and the tokenizer's."""
    given = getattr(model.generation_config, "eos_token_id", None)
    ends = {*given} if isinstance(given, list | tuple) else {given}
    return {token for token in (*ends, tokenizer.eos_token_id) if isinstance(token, int)}


def fill_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up rows that have ended; an end itself, which no answer goes beyond."""
    pad = tokenizer.pad_token_id
    return min(ends_of(model, tokenizer), default=pad if isinstance(pad, int) else 0)


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], plain: bool = False) -> str:
    """Return tokens as text. plain: without special tokens."""
    text = tokenizer.decode([*tokens], skip_special_tokens=plain)
    assert isinstance(text, str), "one row of tokens is one text"
    return text
