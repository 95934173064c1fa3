"""Question answering: find the answer to a question in a context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.labelled_rows import LabelledRow, LabelledRows, text_in, value_in
from cfsp.data.tasks.base import Encoded, LabelledTask, Score
from cfsp.data.tasks.metrics import mean
from cfsp.data.tasks.spans import Window, likeliest_span
from cfsp.data.tasks.squad import best, exact, f1


@dataclass(frozen=True)
class Question:
    """A question with its context. answers: the right ones, possibly none. starts: their places."""

    where: str = field(repr=False)  # the same questions in another file are the same text
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(LabelledTask):
    """Find the answer to a question in its context (SQuAD, arXiv:1606.05250; 2.0, arXiv:1806.03822).

    A context longer than the window is split into windows that overlap by `stride` tokens. If a window does
    not contain the whole answer, its label is its first token, which stands for no answer. Rows are SQuAD's
    JSON, or have question, context and answers, as on the hub.

    no_answer: whether a question may have no answer (SQuAD 2.0). longest: tokens of an answer, at most.
    """

    head = "question_answering"
    metrics: ClassVar[Sequence[str]] = ("exact_match", "f1")
    stride: int
    no_answer: bool
    longest: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("task longest", self.longest, least=1)
        if self.stride not in range(self.window // 2 + 1):
            raise ValueError(
                f"task.stride={self.stride}: expected 0 to {self.window // 2}, half of the window"
            )

    @property
    def protocol(self) -> dict[str, Any]:
        return {"stride": self.stride, "no_answer": self.no_answer, "longest": self.longest}

    def items(self, rows: LabelledRows) -> list[Question]:
        return [self.item(where, row) for where, row in questions(rows.rows())]

    def item(self, where: str, row: Mapping[str, Any]) -> Question:
        """Return the question of a row. Raises ValueError if an answer is not at its place in the context."""
        question, context = (text_in(where, row, column) for column in ("question", "context"))
        texts, starts = right_answers(where, value_in(where, row, "answers"))
        if not texts and not self.no_answer:
            raise ValueError(f"{where}: no answer; expected one, or task.no_answer=true")
        for text, start in zip(texts, starts, strict=True):
            if start < 0 or not text or context[start : start + len(text)] != text:
                raise ValueError(f"{where}: answer {text!r} does not stand at {start} in the context")
        return Question(where, question, context, texts, starts)

    def encode(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[Question]) -> Encoded:
        self.check_questions(tokenizer, items)
        coded = tokenizer(
            [item.question for item in items],
            [item.context for item in items],
            truncation="only_second",
            max_length=self.window,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        keys = [key for key in ("input_ids", "token_type_ids") if key in coded]
        examples, windows, answered = [], [], set()
        for row, number in enumerate(coded["overflow_to_sample_mapping"]):
            ids, item = coded["input_ids"][row], items[number]
            of = zip(coded.sequence_ids(row), coded["offset_mapping"][row], strict=True)
            silence = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            window = Window(number, tuple(offset if one == 1 else None for one, offset in of), silence)
            places = (silence, silence)
            if item.answers:
                places = window.places(item.starts[0], item.starts[0] + len(item.answers[0]))
            if places != (silence, silence):
                answered.add(number)
            examples.append({key: coded[key][row] for key in keys} | {"labels": [*places]})
            windows.append(window)
        cut = sum(bool(item.answers) for item in items) - len(answered)
        return Encoded(examples, [window.item for window in windows], windows, cut=cut)

    def check_questions(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[Question]) -> None:
        """Raise ValueError if a question leaves no room for its context."""
        coded = tokenizer([item.question for item in items], verbose=False)["input_ids"]
        for item, ids in zip(items, coded, strict=True):
            if len(ids) + self.stride + 2 >= self.window:
                raise ValueError(
                    f"{item.where}: a question of {len(ids)} tokens leaves no room for its context; expected "
                    f"a larger task.window than {self.window}, or a smaller task.stride than {self.stride}"
                )

    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.logits(output, inputs).flatten(0, 1), inputs["labels"].flatten()

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the first and the last token, -1e9 for padding. [batch, 2, tokens]"""
        both = torch.stack([output.start_logits, output.end_logits], dim=1).float()
        return both.masked_fill(inputs["attention_mask"][:, None] == 0, -1e9)

    def outputs_of(self, output: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logits of the first and the last token, for each row of a batch. Each [2, tokens]"""
        return [*self.logits(output, inputs).cpu()]

    def answers(self, outputs: Sequence[Any], encoded: Encoded, items: Sequence[Question]) -> list[str]:
        of: dict[int, list[int]] = {}
        for row, number in enumerate(encoded.items):
            of.setdefault(number, []).append(row)
        said = []
        for number, item in enumerate(items):
            windows, logits = ([part[row] for row in of[number]] for part in (encoded.about, outputs))
            span = likeliest_span(windows, logits, self.longest, self.no_answer)
            said.append("" if span is None else item.context[slice(*span)])
        return said

    def scores(self, answers: Sequence[str], items: Sequence[Question]) -> dict[str, Score]:
        return {
            name: mean([best(measure, said, item.answers) for said, item in zip(answers, items, strict=True)])
            for name, measure in zip(self.metrics, (exact, f1), strict=True)
        }


def questions(rows: Sequence[LabelledRow]) -> Iterator[LabelledRow]:
    """Yield the questions in rows. A row of SQuAD's JSON has articles, another row is one question."""
    for where, row in rows:
        if "data" not in row:
            yield where, row
            continue
        try:
            for article in row["data"]:
                for paragraph in article["paragraphs"]:
                    for one in paragraph["qas"]:
                        yield f"{where}, question {one.get('id')}", {"context": paragraph["context"], **one}
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{where}: not of SQuAD's form ({error!r})") from error


def right_answers(where: str, answers: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return texts and places of answers, from a list of pairs or a mapping to lists. Raises ValueError."""
    try:
        if isinstance(answers, Mapping):
            texts, starts = answers["text"], answers["answer_start"]
        else:
            texts, starts = ([one[key] for one in answers] for key in ("text", "answer_start"))
        pairs = [(str(text), int(start)) for text, start in zip(texts, starts, strict=True)]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{where}: answers of an unknown form ({error!r}); expected text and answer_start"
        ) from error
    return tuple(text for text, _ in pairs), tuple(start for _, start in pairs)
