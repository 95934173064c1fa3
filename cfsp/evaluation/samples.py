"""Samples: how the dense and the pruned model continue prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.chats import conversation_tokens, has_template
from cfsp.evaluation.answers import decoded
from cfsp.evaluation.base import Sampler
from cfsp.model.blocks import check_positions, is_causal
from cfsp.passes.writing import continued


@dataclass(frozen=True)
class Samples(Sampler):
    """Continues each prompt by greedy decoding.

    chat: put each prompt as a user's turn into the tokenizer's chat template, if it has one.
    """

    prompts: Sequence[str]
    new_tokens: int
    chat: bool = False

    def __post_init__(self) -> None:
        check_integer("samples new_tokens", self.new_tokens, least=1)
        if not self.prompts:
            raise ValueError("samples prompts=[]: expected a list of texts")

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if not is_causal(model):
            raise ValueError(f"samples needs a causal language model, not {type(model).__name__}")
        for prompt in self.prompts:
            length = len(self.tokens(tokenizer, prompt))
            if not length:
                raise ValueError(f"samples prompt {prompt!r} has no token; expected some text")
            check_positions(model, length + self.new_tokens, f"samples prompt {prompt[:30]!r} + new_tokens")

    def say(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        said = {}
        for prompt in self.prompts:
            (row,) = continued(model, tokenizer, [self.tokens(tokenizer, prompt)], self.new_tokens)
            said[prompt] = decoded(tokenizer, row, plain=True)
        return said

    def tokens(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        """Return the tokens of a prompt."""
        turns = [{"role": "user", "content": prompt}]
        return conversation_tokens(tokenizer, turns, self.chat and has_template(tokenizer))
