"""References: what a causal model writes, against the answers that people wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import task as shown_task
from cfsp.checks import check_choice, check_integer
from cfsp.data.chats import Message, conversation_tokens, has_template
from cfsp.data.instructions import Conversations
from cfsp.data.tasks.metrics import mean as scored
from cfsp.data.tasks.rouge import ROUGE, rouge
from cfsp.data.texts import Text
from cfsp.evaluation.answers import Answer, check_room, cut_remarks, write_answers
from cfsp.evaluation.base import Evaluator
from cfsp.model.blocks import is_causal
from cfsp.passes.modes import evaluating
from cfsp.passes.writing import ends_of
from cfsp.records.outcomes import Outcomes, item_name
from cfsp.records.record import Metric


@dataclass(frozen=True)
class Asked:
    """What is asked, and every answer that a person wrote to it."""

    messages: Sequence[Message]
    answers: Sequence[str]


@dataclass(frozen=True)
class References(Evaluator):
    """ROUGE of answers by greedy decoding: F-measures (Lin 2004), the mean over questions.

    A question that has several rows (E2E: Novikova et al. 2017, arXiv:1706.09254) counts once, with the best
    of its references.

    conversations: the rows. chat: write questions by the tokenizer's chat template; false: as plain text.
    metrics: any of rouge1, rouge2, rougeL and rougeLsum. stemmer: compare words by their Porter stems.
    new_tokens: most tokens of an answer. stops: texts at which an answer ends, besides the end of the text.
    limit: questions, from the first; null: all.
    """

    conversations: Conversations
    chat: bool
    metrics: Sequence[str]
    stemmer: bool
    new_tokens: int
    batch_size: int
    stops: Sequence[str] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("new_tokens", "batch_size"):
            check_integer(f"references {name}", getattr(self, name), least=1)
        if self.limit is not None:
            check_integer("references limit", self.limit, least=1)
        if not self.metrics:
            raise ValueError(f"references metrics=[]: expected some of {', '.join(ROUGE)}")
        for name in self.metrics:
            check_choice("references metrics", name, ROUGE)
        if "" in self.stops:
            raise ValueError("references stops: an empty text; expected texts of one character at least")

    def reads(self) -> Sequence[Text]:
        return [self.conversations]

    def questions(self) -> list[Asked]:
        """Return the questions, each once. Raises ValueError if there are none."""
        found: dict[str, Asked] = {}
        asked = self.conversations.questions(self.chat)
        for messages, answer in zip(asked, self.conversations.answers(), strict=True):
            key = json.dumps([*map(dict, messages)], sort_keys=True)
            before = found[key].answers if key in found else ()
            found[key] = Asked(messages, [*before, answer])
        if not found:
            raise ValueError(f"references: {self.conversations.label} has no rows; expected some")
        return [*found.values()][: self.limit]

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        if not is_causal(model):
            raise ValueError(
                f"references needs a causal language model, not {type(model).__name__} "
                "(task=summarization measures an encoder-decoder)"
            )
        if self.chat and not has_template(tokenizer):
            raise ValueError("references chat=true: the tokenizer has no chat template; expected chat=false")
        check_room(model, self.new_tokens, "references new_tokens")
        asked = self.questions()
        prompts = [conversation_tokens(tokenizer, one.messages, self.chat) for one in asked]
        answers = [[*one.answers] for one in asked]
        return {
            "measure": "references",
            "text": self.conversations.label,
            "text_sha256": hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16],
            "tokens_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
            "chat": self.chat,
            "stemmer": self.stemmer,
            "new_tokens": self.new_tokens,
            "stops": [*self.stops],
            "limit": self.limit,
            "decoding": "greedy",
            "ends": sorted(ends_of(model, tokenizer)),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "device": model.device.type,
        }

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Return `<metric>/<text>`, the answers' mean length, and the fractions that were cut."""
        protocol = self.protocol(model, tokenizer)
        asked = self.questions()
        prompts = [conversation_tokens(tokenizer, one.messages, self.chat) for one in asked]
        work = shown_task(f"references on {self.conversations.label}", "answer", len(asked))
        with evaluating(model), work as shown:
            said = write_answers(
                model, tokenizer, prompts, self.stops, self.new_tokens, self.batch_size, shown.advance
            )
        return self.scores(asked, said, protocol) | self.lengths(said, protocol)

    def scores(
        self, asked: Sequence[Asked], said: Sequence[Answer], protocol: dict[str, Any]
    ) -> dict[str, Metric]:
        """Return the mean of each metric, with the outcome of every question."""
        references = [one.answers for one in asked]
        values = rouge(self.metrics, references, [one.text for one in said], self.stemmer)
        names = [item_name([*map(dict, one.messages)]) for one in asked]
        found = {}
        for name, own in values.items():
            score = scored(own)
            kept = Outcomes("share", names, own)
            key = f"{name}/{self.conversations.label}"
            found[key] = Metric(score.value, score.stderr, score.n, "higher", protocol, outcomes=kept)
        return found

    def remarks(self, metrics: Mapping[str, Metric], model: PreTrainedModel) -> list[str]:
        return cut_remarks("references", self.conversations.label, metrics, str(self.new_tokens))

    def lengths(self, said: Sequence[Answer], protocol: dict[str, Any]) -> dict[str, Metric]:
        measured = {
            "answer_tokens": [float(one.tokens) for one in said],
            "cut_answers": [float(not one.ended) for one in said],
            "cut_prompts": [float(not one.whole_prompt) for one in said],
        }
        return {
            f"{name}/{self.conversations.label}": Metric(mean(own), None, len(own), "lower", protocol)
            for name, own in measured.items()
        }
