"""Right answers of local questions: checked, and brought into the form of the hub's rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from cfsp.options import shown

TRUTHS = {"0": 0, "1": 1, "false": 0, "true": 1}
"""BoolQ's answers, as lower-case text -> its label."""

FIGURE = re.compile(r"#### [-$]{0,2}[0-9.]")
"""The end of an answer of GSM8K."""

UNKNOWN = "; rows of a public test split have no answer"


def boolq_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with SuperGLUE's label 0 or 1, made of `answer` in rows of google/boolq."""
    name = "label" if row.get("label") is not None else "answer"
    label = TRUTHS.get(str(row[name]).strip().lower())
    if label is None:
        raise ValueError(f"{name}={shown(row[name])}; expected 0, 1, true or false{UNKNOWN}")
    return {**row, "label": label} if name == "label" else {**row, "answer": bool(label), "label": label}


def piqa_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with label 0 or 1."""
    check_choices("sol1 and sol2", [row["sol1"], row["sol2"]])
    return {**row, "label": place_among("label", row["label"], 2)}


def hellaswag_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a raw row, or a preprocessed one (query, choices, gold) with its label."""
    if not {"query", "choices", "gold"} <= row.keys():
        check_choices("endings", row["endings"])
        return {**row, "label": str(place_among("label", row["label"], len(row["endings"])))}
    check_choices("choices", row["choices"])
    gold = place_among("gold", row["gold"], len(row["choices"]))
    return {"query": row["query"], "choices": row["choices"], "gold": gold, "label": str(gold)}


def winogrande_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with answer "1" or "2"."""
    check_choices("option1 and option2", [row["option1"], row["option2"]])
    sentence, answer = row["sentence"], str(row["answer"]).strip()
    if not isinstance(sentence, str) or not sentence.partition("_")[2].strip():
        raise ValueError(f"sentence={shown(sentence)}; expected a _ for the options, and words after it")
    if answer not in ("1", "2"):
        raise ValueError(f'answer={shown(row["answer"])}; expected "1" or "2"{UNKNOWN}')
    return {**row, "answer": answer}


def keyed_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of ARC or OpenBookQA, whose answerKey is one of the labels of its choices."""
    choices = row["choices"]
    if not isinstance(choices, Mapping) or not isinstance(choices.get("label"), list):
        raise ValueError(f"choices={shown(choices)}; expected an object with lists text and label")
    check_choices("choices.text", choices.get("text"))
    labels, key = [*map(str, choices["label"])], str(row["answerKey"]).strip()
    if len(labels) != len(choices["text"]):
        raise ValueError(f"choices.label={labels}; expected a label for each of {len(choices['text'])} texts")
    if labels.count(key) != 1:
        raise ValueError(f"answerKey={shown(row['answerKey'])}; expected one of {', '.join(labels)}{UNKNOWN}")
    return {**row, "choices": {**choices, "label": labels}, "answerKey": key}


def mmlu_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with answer 0, 1, 2 or 3, for four choices; a letter A to D stands for its place."""
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) != 4:
        raise ValueError(f"choices={shown(choices)}; expected a list of four")
    if isinstance(answer, str) and answer.strip() in ("A", "B", "C", "D"):
        answer = "ABCD".index(answer.strip())
    return {**row, "answer": place_among("answer", answer, 4, " or A to D")}


def gsm8k_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as it is, if its answer ends in `#### NUMBER`."""
    if not isinstance(row["answer"], str) or not FIGURE.search(row["answer"]):
        raise ValueError(f"answer={shown(row['answer'])}; expected a text with #### NUMBER at its end")
    return row


def place_among(name: str, given: object, size: int, others: str = "") -> int:
    """Return the place of the right choice among `size`, a number or its digits as text.

    Raises:
        ValueError: it is none. others: what else the message says is accepted.
    """
    text = "" if isinstance(given, bool) else str(given).strip().removesuffix(".0")
    if not (text.isascii() and text.isdecimal() and int(text) < size):
        missing = UNKNOWN if text in ("", "-1") and not isinstance(given, bool) else ""
        raise ValueError(
            f"{name}={shown(given)}; expected the place of the right choice, 0 to {size - 1}{others}{missing}"
        )
    return int(text)


def check_choices(name: str, given: object) -> None:
    """Raise ValueError unless choices are two or more texts that are not empty."""
    if not isinstance(given, list) or len(given) < 2:
        raise ValueError(f"{name}={shown(given)}; expected a list of two or more texts")
    for one in given:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"{name} hold {shown(one)}; expected texts that are not empty")


ANSWERED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "boolq": boolq_row,
    "piqa": piqa_row,
    "hellaswag": hellaswag_row,
    "winogrande": winogrande_row,
    "arc_easy": keyed_row,
    "arc_challenge": keyed_row,
    "openbookqa": keyed_row,
    "mmlu": mmlu_row,
    "gsm8k": gsm8k_row,
}
"""Task -> what checks and converts a row that has the task's columns."""
