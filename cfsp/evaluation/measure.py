"""Measuring: run evaluators on a model and cache their metrics by weights and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import speak
from cfsp.evaluation.base import Evaluator, PairedEvaluator, Sampler
from cfsp.records.record import Metric, read_metrics, write_metrics
from cfsp.storage.cache import OFF, Cache
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest, fingerprint


def measure(
    evaluators: Sequence[Evaluator],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    weights: str | None = None,
    again: bool = False,
    name: str = "",
) -> dict[str, Metric]:
    """Return all metrics, from the cache if these weights were measured with the same protocol before.

    So a killed run repeats only the measurement that it was at. weights: the model's fingerprint, if it
    is known. again: ignore what the cache has. name: of the model, such as "dense", before remarks.

    Raises:
        ValueError: an evaluator cannot measure this model, or two of them give metrics of one name.
    """
    found: dict[str, Metric] = {}
    weights = weights or fingerprint(model)
    protocols = [evaluator.protocol(model, tokenizer) for evaluator in evaluators]
    for evaluator, protocol in zip(evaluators, protocols, strict=True):
        code = code_of(*map(type, evaluator.depends_on()))
        kept = OFF if code is None else cache
        file = f"metrics/{digest([weights, protocol, code])}.json"
        with kept.alone(file):
            metrics = None if again else kept.get(file, read_metrics)
            if metrics is None:
                metrics = evaluator.run(model, tokenizer)
                kept.put(file, partial(write_metrics, metrics=metrics))
        add_metrics(found, metrics)
        for remark in evaluator.remarks(metrics, model):
            speak(": ".join(filter(None, ("cfsp", name, remark))), to_stderr=True)
    return found


def measure_pairs(
    evaluators: Sequence[PairedEvaluator],
    dense: PreTrainedModel | None,
    pruned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Return the metrics of both models. They are not cached: they depend on the machine and the moment."""
    found: tuple[dict[str, Metric], dict[str, Metric]] = ({}, {})
    if not evaluators:
        return found
    if dense is None:
        raise ValueError("these evaluators measure a pruned model beside the dense one; expected that too")
    for evaluator in evaluators:
        for metrics, more in zip(found, evaluator.run_pair(dense, pruned, tokenizer), strict=True):
            add_metrics(metrics, more)
    return found


def answers_of(
    samplers: Sequence[Sampler], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Return prompt -> the model's continuation, for all samplers."""
    return {prompt: text for one in samplers for prompt, text in one.say(model, tokenizer).items()}


def add_metrics(found: dict[str, Metric], more: Mapping[str, Metric]) -> None:
    """Add metrics to `found`. Raises ValueError if it has one of that name already."""
    if taken := found.keys() & more.keys():
        raise ValueError(f"two evaluators measure {sorted(taken)[0]!r}; expected a text of its own for each")
    found.update(more)
