"""Dense answers: what the dense model answers, and how far from it a cut model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cfsp.allocators.compared_answers import ComparedAnswers, kept_bytes
from cfsp.model.model_inputs import arguments_of
from cfsp.model.weights import weight_of
from cfsp.passes.forward import counted_tokens
from cfsp.passes.hidden_states import Store
from cfsp.passes.walk import Walk


@dataclass(frozen=True)
class DenseAnswers:
    """The dense model's answers to one batch.

    shown: the positions that are compared. [batch, tokens], bool
    values: log probabilities. [answers, choices]; with `tokens`, of these and of all others together
        [answers, top + 1].
    tokens: the likeliest of each answer, int32. [answers, top]; None: all
    """

    shown: Tensor
    values: Tensor
    tokens: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self.values.nbytes + (0 if self.tokens is None else self.tokens.nbytes)

    def divergence(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> float:
        """Return KL(dense || model) on the batch, the sum over its answers, in nats."""
        given = of_tokens(answers_at(model, batch, self.shown), self.tokens)
        return F.kl_div(given, self.values.to(given.device), log_target=True, reduction="sum").item()


def dense_answers(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], compared: ComparedAnswers, store: Store
) -> list[DenseAnswers]:
    """Return the model's answers to each batch. The same positions are drawn however windows are batched."""
    head = model.get_output_embeddings()
    choices = 0 if head is None else len(weight_of(head))  # few, if it is no vocabulary
    whole = kept_bytes(sum(int(counted_tokens(batch).sum()) for batch in batches), choices)
    top, most = compared.limits(whole)
    chance, found = Generator().manual_seed(0), []
    for number, batch in enumerate(batches):
        shown = drawn_positions(counted_tokens(batch), most, chance)
        logits = answers_at(model, batch, shown)
        tokens = None
        if 0 < top < logits.shape[-1]:
            tokens = store.keep(logits.topk(top, dim=-1).indices.int(), f"tokens.{number}")
        values = store.keep(of_tokens(logits, tokens), f"dense.{number}")
        found.append(DenseAnswers(shown, values, tokens))
    return found


def drawn_positions(counted: Tensor, most: int, chance: Generator) -> Tensor:
    """Draw at most so many of the tokens that count in each row; 0: all. [batch, tokens] -> the same, bool"""
    shown = counted.clone()
    for row in shown if most else ():
        places = row.nonzero().flatten()
        left_out = torch.randperm(len(places), generator=chance)[most:]
        row[places[left_out.to(places.device)]] = False
    return shown


def answers_at(model: PreTrainedModel, batch: Mapping[str, Tensor], shown: Tensor) -> Tensor:
    """Return logits in float32, for each position that is shown or for each text. [answers, choices]"""
    inputs = {name: tensor.to(model.device) for name, tensor in arguments_of(batch).items()}
    with head_reading(model, shown):
        logits = getattr(model(**inputs), "logits", None)
    if logits is None:
        raise ValueError(
            f"error curves compare what models answer, and {type(model).__name__} gives no logits; expected "
            "a model with a head, or another allocator"
        )
    if logits.dim() == 3:  # one answer per token, not per text
        logits = logits[shown.to(logits.device)] if logits.shape[:2] == shown.shape else logits[0]
    return logits.float()


@contextmanager
def head_reading(model: PreTrainedModel, shown: Tensor) -> Iterator[None]:
    """Make the head read only these positions, as one row. shown: [batch, tokens]

    Over a large vocabulary the head costs more than many blocks.
    """
    head = model.get_output_embeddings()

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        states, *rest = inputs
        if states.shape[:-1] != shown.shape:
            return None
        return states[shown.to(states.device)][None], *rest

    if head is None or shown.all():
        yield
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def of_tokens(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """Return the log probabilities of these tokens, and last of all others together. [answers, top + 1]

    tokens: [answers, top]; None: all, and nothing last
    """
    if tokens is None:
        return logits.log_softmax(-1)
    places = tokens.to(logits.device, torch.long)
    chosen = logits.gather(-1, places)
    others = logits.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([chosen, others], dim=-1).log_softmax(-1)


def log_probabilities(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return log probabilities, for each token that counts or for each text. [answers, choices]"""
    return of_tokens(answers_at(model, batch, counted_tokens(batch)), None)


def divergence(walk: Walk, batches: Sequence[Mapping[str, Tensor]], dense: Sequence[DenseAnswers]) -> float:
    """Return KL(dense || present model), mean over tokens, in nats."""
    total, count = 0.0, 0
    for number, (batch, wanted) in enumerate(zip(batches, dense, strict=True)):
        with walk.resumed(number):
            total += wanted.divergence(walk.model, batch)
        count += len(wanted.values)
    return total / count
