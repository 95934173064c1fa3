"""Instructions: questions and answers from files or the hub, as text with the answers marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar, TypeVar

from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_choice
from cfsp.data.chats import Message, by_template
from cfsp.data.rows import ROWS, Row, check_texts, find_row_files, hub_rows, json_rows, strings
from cfsp.data.texts import Text, files_label, listed

Made = TypeVar("Made")
Rendered = tuple[str, list[tuple[int, int]]]
"""A text, and the [start, end) of each answer in it."""

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
"""Prompts of Stanford Alpaca. Models tuned on it expect them unchanged."""

COLUMNS = {
    "alpaca": ("instruction", "output"),
    "pairs": ("prompt", "response"),
    "chat": ("messages",),
}


@dataclass(frozen=True)
class Conversations(Text):
    """Rows of instruction data. As a text, each row is a document.

    paths: files, folders or globs of .jsonl, .json (.gz) or .parquet; or `hub`, the name of a data set there.
    form: "alpaca" has instruction, input (may be missing) and output; "pairs" has prompt and response,
        used as they are; "chat" has messages, each with role and content, written by the tokenizer's
        chat template.
    """

    asks: ClassVar[bool] = True
    form: str
    paths: Sequence[str] | str | None = None
    hub: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        check_choice("form", self.form, COLUMNS)
        if (self.paths is None) == (self.hub is None):
            raise ValueError("instructions: expected either paths or hub")
        if self.paths is not None:
            listed(self.paths)

    @property
    def label(self) -> str:
        if self.hub is not None:
            return f"{self.hub}:{self.split}"
        return files_label(listed(self.paths))

    def documents(self) -> list[str]:
        return [" ".join(strings(row)) for _, row in self.rows()]

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each row after its place in the data. Raises ValueError at the first that lacks a column."""
        for where, row in self._read():
            for column in COLUMNS[self.form]:
                if not isinstance(row, Mapping) or column not in row:
                    raise ValueError(
                        f"{where}: expected a JSON object with the key {column!r} (form {self.form!r})"
                    )
            check_texts(where, row)
            yield where, row

    def _read(self) -> Iterator[Row]:
        if self.hub is not None:
            for number, row in enumerate(hub_rows(self.hub, split=self.split)):
                yield f"data set {self.hub!r}, row {number}", row
            return
        for path in find_row_files(listed(self.paths), ROWS):
            yield from json_rows(path)

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Rendered]:
        """Yield each row as the model reads it, EOS included."""
        render: Callable[[Mapping[str, Any], PreTrainedTokenizerBase], Rendered]
        render = {"alpaca": alpaca, "pairs": pair, "chat": chat}[self.form]
        yield from self._each(lambda row: render(row, tokenizer))

    def questions(self, template: bool) -> list[list[Message]]:
        """Return the messages of each row before its first answer; without a template, Alpaca's prompt."""
        ask = {"alpaca": alpaca_question, "pairs": pair_question, "chat": chat_question}[self.form]
        return [*self._each(lambda row: ask(row, template))]

    def answers(self) -> list[str]:
        """Return the first answer of each row."""
        answer = {"alpaca": alpaca_answer, "pairs": pair_answer, "chat": chat_answer}[self.form]
        return [*self._each(answer)]

    def _each(self, read: Callable[[Mapping[str, Any]], Made]) -> Iterator[Made]:
        """Yield what `read` makes of each row. Raises ValueError that names the row."""
        for where, row in self.rows():
            try:
                yield read(row)
            except (TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{where}: not of form {self.form!r} ({error!r})") from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


def alpaca(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    return answered(alpaca_prompt(row), row["output"], tokenizer)


def alpaca_prompt(row: Mapping[str, Any]) -> str:
    """Write an instruction as Stanford Alpaca does."""
    template = WITH_INPUT if row.get("input") else WITHOUT_INPUT
    return template.format(instruction=row["instruction"], input=row.get("input"))


def alpaca_question(row: Mapping[str, Any], template: bool) -> list[Message]:
    said = [row["instruction"], *([row["input"]] if row.get("input") else [])]
    return [{"role": "user", "content": "\n\n".join(said) if template else alpaca_prompt(row)}]


def pair_question(row: Mapping[str, Any], template: bool) -> list[Message]:
    return [{"role": "user", "content": row["prompt"]}]


def chat_question(row: Mapping[str, Any], template: bool) -> list[Message]:
    """Return the messages before the assistant's first one. Raises ValueError if there is none."""
    asked = [*takewhile(lambda message: message["role"] != "assistant", messages_of(row))]
    if not any(message["role"] == "user" for message in asked):
        raise ValueError("no message of a user before the first answer; expected a question")
    return asked


def alpaca_answer(row: Mapping[str, Any]) -> str:
    return row["output"]


def pair_answer(row: Mapping[str, Any]) -> str:
    return row["response"]


def chat_answer(row: Mapping[str, Any]) -> str:
    """Return the assistant's first message. Raises ValueError if there is none."""
    said = (message["content"] for message in messages_of(row) if message["role"] == "assistant")
    if (first := next(said, None)) is None:
        raise ValueError("no message of the assistant; expected an answer")
    return first


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    messages = row["messages"]
    return json.loads(messages) if isinstance(messages, str) else messages


def pair(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    return answered(row["prompt"], row["response"], tokenizer)


def answered(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Join prompt, answer and EOS. EOS is part of the answer: the model must learn to stop."""
    text = prompt + answer + str(tokenizer.eos_token or "")
    return text, [(len(prompt), len(text))]


def chat(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; expected form=alpaca or pairs, or one that has")
    messages = messages_of(row)

    def upto(number: int, ask: bool) -> str:
        return by_template(messages[:number], tokenizer, ask)

    text = upto(len(messages), ask=False)
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = upto(number, ask=True), upto(number + 1, ask=False)
        if not (text.startswith(before) and text.startswith(after)):
            raise ValueError("the chat template changes earlier messages, so the answers cannot be located")
        answers.append((len(before), len(after)))
    return text, answers
