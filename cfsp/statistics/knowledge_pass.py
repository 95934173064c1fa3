"""The passes of the knowledge analysis: each site masked alone, in the dense model, by gates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.model.blocks import is_causal
from cfsp.model.model_inputs import arguments_of
from cfsp.model.sites import Site
from cfsp.model.views import UnitView
from cfsp.passes.forward import counted_tokens
from cfsp.passes.walk import Walk, walking
from cfsp.plans.choose import best_units
from cfsp.plans.gates import Gates
from cfsp.plans.subject import Subject
from cfsp.statistics.cached import origin_of_statistics
from cfsp.statistics.knowledge import Knowledge, masked_units
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest
from cfsp.storage.tensors import read_tensors, write_tensors


def knowledge_once(
    subject: Subject, batches: Sequence[Mapping[str, Tensor]], analysis: Knowledge
) -> dict[str, list[float]]:
    """Return the result of `knowledge_of`, from the cache if this model was analysed so before."""
    chosen, cache = batches[: analysis.batches], subject.cache
    options = {**asdict(analysis), "ratios": [*analysis.ratios], "share": None}  # any share reads the same
    origin = [origin_of_statistics(subject, subject.sites, chosen), options, code_of(knowledge_of)]
    if cache.folder is None:
        return knowledge_of(subject.model, subject.sites, chosen, analysis)
    folder = f"statistics/{digest(origin)}"
    with cache.alone(folder):
        kept = cache.get(f"{folder}/knowledge.safetensors", read_tensors)
        if kept is None:
            made = knowledge_of(subject.model, subject.sites, chosen, analysis)
            kept = {name: torch.tensor(values, dtype=torch.float64) for name, values in made.items()}
            cache.describe(folder)
            cache.put(f"{folder}/knowledge.safetensors", partial(write_tensors, kept))
    return {site.name: kept[site.name].tolist() for site in subject.sites}


@torch.no_grad()
def knowledge_of(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Mapping[str, Tensor]],
    analysis: Knowledge,
) -> dict[str, list[float]]:
    """Return site name -> deviation from the dense model at each ratio of masked units.

    Raises ValueError if there is no batch, or the model has no loss on them.
    """
    if not batches:
        raise ValueError("the knowledge analysis got no batches; expected calibration samples")
    found: dict[str, list[float]] = {}
    with walking(model, batches) as walk:
        judge = Judge(walk, analysis.measure)
        for block in bar(range(len(walk.blocks)), "knowledge", "block"):
            here = [site for site in sites if site.block == block or (block == 0 and site.block is None)]
            for site in here:
                found[site.name] = deviations(site, judge, analysis.ratios)
            if block < len(walk.blocks) - 1:
                walk.advance()
    return {site.name: found[site.name] for site in sites}


def deviations(site: Site, judge: Judge, ratios: Sequence[float]) -> list[float]:
    """Return the deviation with the lowest units of one site masked, at each ratio; 0 if that masks none."""
    model, found = judge.walk.model, []
    norm = UnitView(model, site).totals(torch.square).sqrt()
    for ratio in ratios:
        masked = masked_units(site, ratio)
        if not masked:
            found.append(0.0)
            continue
        gate = torch.zeros(site.units, device=norm.device)
        gate[[*best_units(norm, site.units - masked, site.groups)]] = 1
        with Gates(model, [site], {site.name: gate}):
            found.append(judge.deviation())
    return found


class Judge:
    """Measures how far the present model is from the dense one, on the batches of a walk.

    It is made while the model is dense, and reads the dense model's outputs then.
    """

    def __init__(self, walk: Walk, measure: str) -> None:
        self.walk, self.measure = walk, measure
        numbers = range(len(walk.batches)) if measure == "kl" else ()
        self.dense = [self.shown(number, self.output(number)) for number in numbers]
        self.level = 0.0 if measure == "kl" else self.mean_loss()

    def output(self, number: int) -> Any:
        """Run one batch, from the walk's block on."""
        inputs = {
            name: tensor.to(self.walk.model.device)
            for name, tensor in arguments_of(self.walk.batches[number]).items()
        }
        # the keys and values of all blocks are as large as the hidden states, and nobody reads them
        options = {"use_cache": False} if is_causal(self.walk.model) else {}
        with self.walk.resumed(number):
            return self.walk.model(**inputs, **options)

    def shown(self, number: int, output: Any) -> Tensor:
        """Return log probabilities of the tokens that count, or of the texts. [answers, choices]"""
        logits = getattr(output, "logits", None)
        if logits is None:
            raise ValueError(
                f"the knowledge analysis compares what models answer; a {type(self.walk.model).__name__} "
                "gives no logits; expected a model with a head"
            )
        if logits.dim() == 3:
            logits = logits[counted_tokens(self.walk.batches[number]).to(logits.device)]
        return logits.float().log_softmax(-1)

    def mean_loss(self) -> float:
        """Return the mean loss over all predicted tokens, or of the labels in the batches."""
        total = count = 0.0
        for number, batch in enumerate(self.walk.batches):
            output = self.output(number)  # of one batch at a time: logits are large
            if is_causal(self.walk.model) and "labels" not in batch:
                loss, weight = next_token_loss(output.logits, batch)
            elif (loss := getattr(output, "loss", None)) is not None:
                loss, weight = float(loss), len(batch["input_ids"])
            else:
                raise ValueError(
                    "the batches have no labels and the model predicts no next token; expected "
                    "allocator.knowledge.measure=kl for the knowledge analysis"
                )
            total, count = total + loss * weight, count + weight
        return total / count

    def deviation(self) -> float:
        """Return how far the model is from the dense one now."""
        if self.measure != "kl":
            now = self.mean_loss()
            return now - self.level if self.measure == "loss" else math.exp(now) - math.exp(self.level)
        total = count = 0.0
        for number, dense in enumerate(self.dense):
            given = self.shown(number, self.output(number))
            total += F.kl_div(given, dense, log_target=True, reduction="sum").item()
            count += len(dense)
        return total / count


def next_token_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[float, int]:
    """Return the mean loss of the next token, in nats, and the number of tokens that it is of.

    logits: [batch, tokens, vocabulary].
    """
    ids = batch["input_ids"].to(logits.device)
    mask = batch.get("attention_mask", torch.ones_like(ids)).to(logits.device).bool()
    counts = counted_tokens(batch).to(logits.device)[:, 1:] & mask[:, :-1]
    wanted = ids[:, 1:][counts]
    return float(F.cross_entropy(logits[:, :-1][counts].float(), wanted)), len(wanted)
