"""Measuring: all evaluators on a model, each figure once per weights and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
) -> dict[str, Metric]:
    """All metrics, from the cache where these weights were measured so before.

    So a run that is killed goes on with the measurement that it was at. weights: the model's fingerprint,
    if it is known. again: measure all anew.

    Raises:
        ValueError: an evaluator cannot measure this model, or two of them give one name.
    """
    found: dict[str, Metric] = {}
    weights = weights or fingerprint(model)
    protocols = [evaluator.protocol(model, tokenizer) for evaluator in evaluators]
    for evaluator, protocol in zip(evaluators, protocols, strict=True):
        code = code_of(type(evaluator))
        kept = OFF if code is None else cache
        name = f"metrics/{digest([weights, protocol, code])}.json"
        with kept.alone(name):
            metrics = None if again else kept.get(name, read_metrics)
            if metrics is None:
                metrics = evaluator.run(model, tokenizer)
                kept.put(name, partial(write_metrics, metrics=metrics))
        join(found, metrics)
    return found


def measure_pairs(
    evaluators: Sequence[PairedEvaluator],
    dense: PreTrainedModel | None,
    pruned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Metrics of both models, never kept: they are of this hour and this machine."""
    found: tuple[dict[str, Metric], dict[str, Metric]] = ({}, {})
    if not evaluators:
        return found
    if dense is None:
        raise ValueError("these evaluators measure a pruned model beside the dense one; expected that too")
    for evaluator in evaluators:
        for metrics, more in zip(found, evaluator.run_pair(dense, pruned, tokenizer), strict=True):
            join(metrics, more)
    return found


def say(
    samplers: Sequence[Sampler], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """What the model says to all prompts."""
    return {prompt: text for one in samplers for prompt, text in one.say(model, tokenizer).items()}


def join(found: dict[str, Metric], more: Mapping[str, Metric]) -> None:
    """Add metrics. Raises ValueError if one has a name that is taken, rather than lose either."""
    if taken := found.keys() & more.keys():
        raise ValueError(f"two evaluators measure {sorted(taken)[0]!r}; expected a text of its own for each")
    found.update(more)
