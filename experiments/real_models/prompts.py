"""Write prompts with instructions that a program checks, in the columns of IFEval (arXiv:2311.07911).

    python experiments/real_models/prompts.py data/instructions/ifeval_like.jsonl

They are for machines without the hub's `google/IFEval`. The same task of lm-evaluation-harness checks the
answers, but the prompts are these, so scores compare with each other and not with published ones. Each
prompt has one of twenty instructions; each twenty prompts in a row have every instruction once. Numbers,
words and subjects change from one twenty to the next. The same file is written each time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUBJECTS = {
    "Write a short text about rain.": ("roof", "umbrella"),
    "Describe a market in the morning.": ("bread", "crowd"),
    "Explain why bread rises.": ("yeast", "oven"),
    "Write a letter to a friend who moved to another city.": ("visit", "street"),
    "Recommend a book for a long train ride.": ("chapter", "window"),
    "Tell a story about a lost key.": ("door", "pocket"),
    "Explain how a bicycle stays upright.": ("wheel", "balance"),
    "Describe the work of a lighthouse keeper.": ("lamp", "storm"),
    "Give advice to someone who cannot sleep.": ("night", "quiet"),
    "Write an advertisement for a pair of shoes.": ("comfort", "price"),
    "Plan a birthday party for a child.": ("cake", "games"),
    "Compare tea with coffee.": ("taste", "cup"),
}
"""Subject -> two words that an answer may be told to use."""

INSTRUCTIONS: tuple[tuple[str, str, dict[str, tuple[Any, ...]]], ...] = (
    ("punctuation:no_comma", "Use no commas.", {}),
    (
        "length_constraints:number_words",
        "Use at least {num_words} words.",
        {"relation": ("at least",), "num_words": (60, 80, 100)},
    ),
    (
        "length_constraints:number_words",
        "Use fewer than {num_words} words.",
        {"relation": ("less than",), "num_words": (30, 40, 50)},
    ),
    (
        "length_constraints:number_sentences",
        "Use fewer than {num_sentences} sentences.",
        {"relation": ("less than",), "num_sentences": (3, 4, 5)},
    ),
    (
        "length_constraints:number_paragraphs",
        "Write {num_paragraphs} paragraphs, separated by three asterisks: ***",
        {"num_paragraphs": (2, 3)},
    ),
    (
        "keywords:existence",
        'Use the words "{first}" and "{second}".',
        {"keywords": (["{first}", "{second}"],)},
    ),
    (
        "keywords:frequency",
        'Use the word "{first}" at least {frequency} times.',
        {"relation": ("at least",), "keyword": ("{first}",), "frequency": (2, 3)},
    ),
    (
        "keywords:forbidden_words",
        'Do not use the word "{forbidden_words[0]}".',
        {"forbidden_words": (["and"], ["the"], ["is"])},
    ),
    (
        "detectable_format:number_bullet_lists",
        "Answer with exactly {num_bullets} bullet points. Begin each with an asterisk and a space.",
        {"num_bullets": (2, 3, 4)},
    ),
    (
        "detectable_format:number_highlighted_sections",
        "Highlight at least {num_highlights} parts with markdown, such as *a highlighted part*.",
        {"num_highlights": (1, 2, 3)},
    ),
    (
        "detectable_format:multiple_sections",
        "Write {num_sections} sections. Begin each with {section_spliter} and its number, such as "
        "{section_spliter} 1.",
        {"section_spliter": ("Section", "PART"), "num_sections": (2, 3)},
    ),
    ("detectable_format:title", "Give it a title in double angular brackets, such as <<title>>.", {}),
    ("detectable_format:json_format", "Answer in JSON and with nothing else.", {}),
    (
        "detectable_content:number_placeholders",
        "Use at least {num_placeholders} placeholders in square brackets, such as [name].",
        {"num_placeholders": (1, 2, 3)},
    ),
    (
        "detectable_content:postscript",
        "Add a postscript at the end. Begin it with {postscript_marker}",
        {"postscript_marker": ("P.S.", "P.P.S")},
    ),
    ("change_case:english_lowercase", "Write in English and in lowercase letters only.", {}),
    ("change_case:english_capital", "Write in English and in capital letters only.", {}),
    ("startend:quotation", "Put the whole answer in double quotation marks.", {}),
    (
        "startend:end_checker",
        'End with exactly these words: "{end_phrase}"',
        {"end_phrase": ("That is all.", "Ask me for more.", "Thank you for reading.")},
    ),
    (
        "combination:two_responses",
        "Give two different answers, separated by six asterisks: ******",
        {},
    ),
)
"""Name in IFEval, wording, and for each argument the values that take turns."""


def prompts() -> Iterator[dict[str, Any]]:
    """Yield every subject with every instruction, in rounds of all instructions."""
    subjects = list(SUBJECTS)
    for turn in range(len(subjects)):
        for place, (name, wording, choices) in enumerate(INSTRUCTIONS):
            subject = subjects[(place + turn) % len(subjects)]
            chosen = {key: values[turn % len(values)] for key, values in choices.items()}
            yield {
                "key": turn * len(INSTRUCTIONS) + place,
                "prompt": f"{subject} {filled(wording, subject, **chosen)}",
                "instruction_id_list": [name],
                "kwargs": [{key: filled(value, subject) for key, value in chosen.items()}],
            }


def filled(value: Any, subject: str, **arguments: Any) -> Any:
    """Return a text, or each text of a list, with the subject's words and the arguments in its braces."""
    if isinstance(value, list):
        return [filled(one, subject, **arguments) for one in value]
    first, second = SUBJECTS[subject]
    return value.format(first=first, second=second, **arguments) if isinstance(value, str) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the .jsonl file to write")
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(row) for row in prompts()]
    file.write_text("\n".join(rows) + "\n")
    print(f"{file}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
