"""Write prompts with instructions that a program checks, in the columns of IFEval (arXiv:2311.07911).

    python experiments/real_models/prompts.py data/instructions/ifeval_like.jsonl

They are for machines without the hub's `google/IFEval`. The same task of lm-evaluation-harness checks the
answers, but the prompts are these, so scores compare with each other and not with published ones. Each
prompt has one of twelve instructions. The same file is written each time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUBJECTS = (
    "Write a short text about rain",
    "Describe a market in the morning",
    "Explain why bread rises",
    "Write a letter to a friend who moved to another city",
    "Recommend a book for a long train ride",
    "Tell a story about a lost key",
    "Explain how a bicycle stays upright",
    "Describe the work of a lighthouse keeper",
    "Give advice to someone who cannot sleep",
    "Write an advertisement for a pair of shoes",
)

INSTRUCTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("punctuation:no_comma", "Use no commas.", {}),
    (
        "length_constraints:number_words",
        "Use at least 80 words.",
        {"relation": "at least", "num_words": 80},
    ),
    (
        "length_constraints:number_words",
        "Use less than 40 words.",
        {"relation": "less than", "num_words": 40},
    ),
    (
        "length_constraints:number_sentences",
        "Use less than 4 sentences.",
        {"relation": "less than", "num_sentences": 4},
    ),
    (
        "keywords:existence",
        "Use the words water and morning.",
        {"keywords": ["water", "morning"]},
    ),
    ("keywords:forbidden_words", "Do not use the word and.", {"forbidden_words": ["and"]}),
    (
        "detectable_format:number_bullet_lists",
        "Answer with exactly 3 bullet points that begin with * and a space.",
        {"num_bullets": 3},
    ),
    ("detectable_format:title", "Give it a title in double angular brackets, such as <<title>>.", {}),
    ("change_case:english_lowercase", "Write in English and in lowercase letters only.", {}),
    ("startend:quotation", "Wrap the whole answer in double quotation marks.", {}),
    (
        "startend:end_checker",
        "End with exactly these words: That is all.",
        {"end_phrase": "That is all."},
    ),
    (
        "detectable_content:postscript",
        "Add a postscript at the end that begins with P.S.",
        {"postscript_marker": "P.S."},
    ),
)


def prompts() -> Iterator[dict[str, Any]]:
    """Yield every subject with every instruction, the instructions taking turns."""
    key = 0
    for turn in range(len(INSTRUCTIONS)):
        for place, subject in enumerate(SUBJECTS):
            name, words, arguments = INSTRUCTIONS[(place + turn) % len(INSTRUCTIONS)]
            prompt = f"{subject}. {words}"
            yield {"key": key, "prompt": prompt, "instruction_id_list": [name], "kwargs": [arguments]}
            key += 1


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
