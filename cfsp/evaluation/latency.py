"""Latency: time per prompt and per token, compared with the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.evaluation.base import PairedEvaluator
from cfsp.machine.memory import peak_bytes, reset_peak, resident_bytes
from cfsp.model.blocks import check_positions, is_causal
from cfsp.model.footprint import cache_of, weight_bytes
from cfsp.model.pass_cost import read_prompt, seconds_of
from cfsp.records.record import Metric


@dataclass(frozen=True)
class Latency(PairedEvaluator):
    """Times prefill and decode of both models in turns, so that other load on the machine affects both.

    Prefill is one pass over `prompt` random tokens that fills the cache and gives the first new token
    (the time to first token). Decode is each of the `new_tokens` after it, greedy. A metric is the median
    of `repeats` rounds, after `warmup` rounds that do not count; its spread is their range. On a GPU, CUDA
    events take the time. A model that does not predict the next token has one stage, `forward`: one pass,
    in which an encoder-decoder reads the tokens in both stacks.
    """

    batch_sizes: Sequence[int]
    prompts: Sequence[int]
    new_tokens: int
    repeats: int
    warmup: int

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"latency {name}=[]: expected a list of whole numbers")
            for value in getattr(self, name):
                check_integer(f"latency {name}", value, least=1)
        for name, least in (("new_tokens", 1), ("repeats", 1), ("warmup", 0)):
            check_integer(f"latency {name}", getattr(self, name), least)

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        new = self.new_tokens if is_causal(model) else 0
        check_positions(model, max(self.prompts) + new, "latency prompt + new_tokens")
        on_gpu = model.device.type == "cuda"
        return {
            "measure": "latency",
            "new_tokens": new,
            "repeats": self.repeats,
            "warmup": self.warmup,
            "clock": "CUDA events" if on_gpu else "perf_counter",
            "device": torch.cuda.get_device_name(model.device) if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
        }

    def run_pair(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Metric], dict[str, Metric]]:
        """Return for b sequences of p tokens (`b1xp128`): `prefill_ms`, `decode_ms` (one token of every
        sequence), `prefill_tokens_per_s`, `decode_tokens_per_s`, `prefill_speedup`, `decode_speedup`
        (dense time / time, round by round), `peak_mib`; and `weights_mib`. Of other models `forward_*`.
        """
        models = (dense, pruned)
        found: tuple[dict[str, Metric], ...] = ({}, {})
        protocol = self.protocol(dense, tokenizer)
        for batch in self.batch_sizes:
            for prompt in self.prompts:
                ids = random_tokens(models, batch, prompt)
                times = self.rounds(models, ids)
                peaks = [
                    peak(model, lambda model=model, ids=ids: self.generate(model, ids)) for model in models
                ]
                shape = {"batch": batch, "prompt": prompt}
                for place, metrics in enumerate(found):
                    figures = self.figures(self.stages(dense, prompt), times, place, batch)
                    figures["peak_mib"] = [peaks[place] / 2**20]
                    for name, values in figures.items():
                        better = "lower" if name.endswith(("ms", "mib")) else "higher"
                        metrics[f"{name}/b{batch}xp{prompt}"] = metric(values, better, protocol | shape)
        for model, metrics in zip(models, found, strict=True):
            metrics["weights_mib"] = metric([weight_bytes(model) / 2**20], "lower", protocol)
        return found

    def stages(self, model: PreTrainedModel, prompt: int) -> dict[str, tuple[int, int]]:
        """Return stage -> its number of passes, and of tokens per sequence."""
        if not is_causal(model):
            return {"forward": (1, prompt)}
        return {"prefill": (1, prompt), "decode": (self.new_tokens, self.new_tokens)}

    def rounds(self, models: Sequence[PreTrainedModel], ids: Tensor) -> list[list[tuple[float, ...]]]:
        """Return the seconds of each stage, per model and counted round."""
        times: list[list[tuple[float, ...]]] = [[], []]
        label = f"latency {ids.shape[0]} x {ids.shape[1]}"
        for number in bar(range(self.warmup + self.repeats), label, "round"):
            order = (0, 1) if number % 2 else (1, 0)
            for place in order:
                seconds = self.generate(models[place], ids)
                if number >= self.warmup:
                    times[place].append(seconds)
        return times

    @torch.no_grad()
    def generate(self, model: PreTrainedModel, ids: Tensor) -> tuple[float, ...]:
        """Return the seconds of prefill, and of all tokens after the first; or those of one pass."""
        if not is_causal(model):
            return (seconds_of(lambda: read_prompt(model, ids), model.device),)
        state: dict[str, Any] = {}

        def prefill() -> None:
            out = read_prompt(model, ids)
            state.update(cache=cache_of(out), token=out.logits[:, -1:].argmax(-1))

        def decode() -> None:
            for _ in range(self.new_tokens):
                out = model(input_ids=state["token"], use_cache=True, **state["cache"])
                state.update(cache=cache_of(out), token=out.logits[:, -1:].argmax(-1))

        return seconds_of(prefill, model.device), seconds_of(decode, model.device)

    def figures(
        self,
        stages: Mapping[str, tuple[int, int]],
        times: list[list[tuple[float, ...]]],
        place: int,
        batch: int,
    ) -> dict[str, list[float]]:
        """Return name -> the figure of every round. stages: what `stages` returned."""
        found = {}
        for index, (stage, (calls, tokens)) in enumerate(stages.items()):
            seconds = [one[index] for one in times[place]]
            found[f"{stage}_ms"] = [1000 * one / calls for one in seconds]
            found[f"{stage}_tokens_per_s"] = [batch * tokens / one for one in seconds]
            found[f"{stage}_speedup"] = [
                dense[index] / one for dense, one in zip(times[0], seconds, strict=True)
            ]
        return found


def metric(values: list[float], better: Literal["lower", "higher"], protocol: dict[str, Any]) -> Metric:
    """Return the median of the values, with their range."""
    spread = [min(values), max(values)] if len(values) > 1 else None
    return Metric(median(values), None, len(values), better, protocol, spread)


def random_tokens(models: Sequence[PreTrainedModel], batch: int, length: int) -> Tensor:
    """Return random tokens that all models know, the same for the same shape. [batch, length]"""
    dice = torch.Generator().manual_seed(0)
    vocabulary = min(model.config.vocab_size for model in models)
    return torch.randint(vocabulary, (batch, length), generator=dice).to(models[0].device)


def peak(model: PreTrainedModel, work: Callable[[], Any]) -> float:
    """Return the peak bytes during `work`: the weights and all that it allocates."""
    device = model.device
    reset_peak(str(device))
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    work()
    after = peak_bytes(device)
    return weight_bytes(model) + max(0, after.get("cuda", after["host"]) - before)
