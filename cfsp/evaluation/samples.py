"""Samples: what a model says, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.evaluation.base import Sampler
from cfsp.layouts import check_positions, is_causal


@dataclass(frozen=True)
class Samples(Sampler):
    """How a model goes on after each prompt, always with the likeliest token."""

    prompts: Sequence[str]
    new_tokens: int

    def __post_init__(self) -> None:
        check_integer("samples new_tokens", self.new_tokens, least=1)
        if not self.prompts:
            raise ValueError("samples prompts=[]: expected a list of texts")

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if not is_causal(model):
            raise ValueError(f"samples needs a causal language model, not {type(model).__name__}")
        for prompt in self.prompts:
            length = len(tokenizer(prompt, verbose=False)["input_ids"])
            if not length:
                raise ValueError(f"samples prompt {prompt!r} has no token; expected some text")
            check_positions(model, length + self.new_tokens, f"samples prompt {prompt[:30]!r} + new_tokens")

    @torch.no_grad()
    def say(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        said = {}
        for prompt in self.prompts:
            batch = tokenizer(prompt, return_tensors="pt").to(model.device)
            batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
            out = model.generate(
                **batch,
                max_new_tokens=self.new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            )
            said[prompt] = tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return said
