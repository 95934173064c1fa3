"""Answers that a model writes to prompts, in batches, by greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from cfsp.model.blocks import max_positions
from cfsp.passes.writing import continued, ends_of
from cfsp.records.record import Metric


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


def cut_remarks(what: str, on: str, metrics: Mapping[str, Metric], new_tokens: str) -> list[str]:
    """Return a line about the answers, and one about the prompts, that were cut.

    what: the evaluation. on: what the metrics' names end in. new_tokens: the limit, in words.
    """
    told = {
        "cut_answers": f"answers reached new_tokens={new_tokens} and were cut",
        "cut_prompts": "prompts did not fit into the model's window and lost their beginnings",
    }
    found = [(metrics[f"{name}/{on}"], words) for name, words in told.items()]
    return [f"{what} {on}: {one.value * one.n:.0f} of {one.n} {words}" for one, words in found if one.value]


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


def check_room(model: PreTrainedModel, new_tokens: int, what: str) -> None:
    """Raise ValueError if an answer leaves no position for a prompt. what: the option, for errors."""
    limit = max_positions(model)
    if limit is not None and new_tokens >= limit:
        raise ValueError(
            f"{what}={new_tokens}: the model has {limit} positions; expected at most {limit - 1}, as the "
            "prompt takes one"
        )


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
    check_room(model, new_tokens, "new_tokens")
    limit = max_positions(model)
    room = None if limit is None else limit - new_tokens
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    found: dict[int, Answer] = {}
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        read = [tuple(prompts[place][-room:] if room else prompts[place]) for place in places]
        stopping = [Stops(tokenizer, stops, max(map(len, read)))] if stops else []
        rows = continued(model, tokenizer, read, new_tokens, stopping)
        for place, shown, row in zip(places, read, rows, strict=True):
            found[place] = answer_of(model, tokenizer, row, stops, len(shown) == len(prompts[place]))
        advance(len(places))
    return [found[place] for place in range(len(prompts))]


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


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], plain: bool = False) -> str:
    """Return tokens as text. plain: without special tokens."""
    text = tokenizer.decode([*tokens], skip_special_tokens=plain)
    assert isinstance(text, str), "one row of tokens is one text"
    return text
