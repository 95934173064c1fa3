"""Log-likelihoods of continuations; tokens that several sequences begin with are read once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cfsp.evaluation.latency import cache_of
from cfsp.passes.writing import padded

Tokens = tuple[int, ...]
Score = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding would write it."""


@dataclass(frozen=True)
class Continuation:
    """Tokens to score after a context of at least one token."""

    context: Tokens
    tokens: Tokens

    def cut(self, most: int) -> Continuation:
        """Return it without the beginning of its context, if that exceeds a window of `most` tokens.

        Raises ValueError if the continuation alone exceeds it.
        """
        over = len(self.read) - most
        if over >= len(self.context):
            raise ValueError(f"an answer of {len(self.tokens)} tokens; expected at most {most}, the window")
        return Continuation(self.context[over:], self.tokens) if over > 0 else self

    @property
    def read(self) -> Tokens:
        """What the model reads; nothing is predicted from the last token."""
        return self.context + self.tokens[:-1]


@dataclass
class Stem:
    """Sequences with a common beginning. shared: its length, below every first scored position."""

    shared: int
    members: list[int] = field(default_factory=list)
    """Indices of the continuations."""


@torch.no_grad()
def score(
    model: PreTrainedModel,
    asked: Sequence[Continuation],
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Score]:
    """Return the score of each continuation, in order. batch_size: sequences at once."""
    found: dict[int, Score] = {}
    for stems in batches(grouped(asked, batch_size), asked, batch_size):
        members = [index for stem in stems for index in stem.members]
        logits = logits_of(model, stems, asked)
        for index, row in zip(members, logits, strict=True):
            found[index] = score_of(row, asked[index].tokens)
        advance(len(members))
    return [found[index] for index in range(len(asked))]


def score_of(logits: Tensor, tokens: Tokens) -> Score:
    """Return the score of a continuation. logits: of its tokens alone. [tokens, vocabulary]"""
    wanted = torch.tensor(tokens, device=logits.device)
    loss = F.cross_entropy(logits.float(), wanted, reduction="sum")
    return -loss.item(), bool((logits.argmax(-1) == wanted).all())


def grouped(asked: Sequence[Continuation], most: int) -> list[Stem]:
    """Return the sequences in groups of at most `most` that are cheaper to read with a common beginning.

    Neighbours in alphabetical order have the longest common beginnings. One joins the group if that lowers
    the number of tokens to read, and if the next one does not share more than twice as much with it.
    """
    order = sorted(range(len(asked)), key=lambda index: asked[index].read)
    overlaps = [common(asked[one].read, asked[other].read) for one, other in pairwise(order)]
    stems: list[Stem] = []
    for place, index in enumerate(order):
        alone = len(asked[index].context) - 1
        if stems and (count := len(stems[-1].members)) < most:
            group = stems[-1]
            shared = min(group.shared, alone, overlaps[place - 1])
            following = overlaps[place] if place < len(overlaps) else 0
            if (count - 1) * group.shared < count * shared and 2 * shared >= min(alone, following):
                group.shared = shared
                group.members.append(index)
                continue
        stems.append(Stem(alone, [index]))
    return stems


def common(one: Tokens, other: Tokens) -> int:
    """Return how many tokens both begin with."""
    short = min(len(one), len(other))
    return next((place for place in range(short) if one[place] != other[place]), short)


def batches(stems: list[Stem], asked: Sequence[Continuation], most: int) -> Iterator[list[Stem]]:
    """Yield groups of similar lengths, the longest first; at most `most` sequences in a batch."""

    def longest(stem: Stem) -> tuple[int, int]:
        return stem.shared, max(len(asked[index].read) for index in stem.members) - stem.shared

    batch: list[Stem] = []
    for stem in sorted(stems, key=longest, reverse=True):
        if batch and sum(len(one.members) for one in batch) + len(stem.members) > most:
            yield batch
            batch = []
        batch.append(stem)
    if batch:
        yield batch


def logits_of(model: PreTrainedModel, stems: Sequence[Stem], asked: Sequence[Continuation]) -> list[Tensor]:
    """Return each member's logits for its continuation. Each [tokens, vocabulary]

    The common beginnings are read in one pass, whose cache every member continues in a second one. They are
    padded on the left, so that the distances between tokens stay right under a sliding window.
    """
    heads = [asked[stem.members[0]].read[: stem.shared] for stem in stems]
    tails = [asked[index].read[stem.shared :] for stem in stems for index in stem.members]
    owners = torch.tensor([row for row, stem in enumerate(stems) for _ in stem.members])
    scored = [len(asked[index].tokens) for stem in stems for index in stem.members]
    ids, mask = padded(tails, left=False)
    state = {}
    if any(heads):
        begun, begun_mask = padded(heads, left=True)
        out = model(**inputs(model, begun, begun_mask, 0), use_cache=True, **last_logit(model))
        (name, cache), *_ = cache_of(out).items()
        cache.batch_select_indices(owners.to(model.device))
        state, mask = {name: cache}, torch.cat([begun_mask[owners], mask], dim=1)
    out = model(**inputs(model, ids, mask, mask.shape[1] - ids.shape[1]), use_cache=bool(state), **state)
    ends = [len(tail) for tail in tails]
    return [row[end - count : end] for row, end, count in zip(out.logits, ends, scored, strict=True)]


def inputs(model: PreTrainedModel, ids: Tensor, mask: Tensor, before: int) -> dict[str, Tensor]:
    """Return the model's inputs with positions that padding does not count in.

    ids: [rows, tokens]; mask: [rows, before + tokens].
    """
    made = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        made["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
    return {name: tensor.to(model.device) for name, tensor in made.items()}


def last_logit(model: PreTrainedModel) -> dict[str, int]:
    """Return the option that spares all logits but the last, if the model has it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
