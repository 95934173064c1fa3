"""The prompts that stand in for IFEval are its rows, and the harness checks their answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "real_models" / "prompts.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "new" / "prompts.jsonl"
    subprocess.run([sys.executable, SCRIPT, path], check=True)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_differ_and_the_first_30_have_every_instruction(rows):
    assert len({row["prompt"] for row in rows}) == len({row["key"] for row in rows}) == len(rows)
    names = {row["instruction_id_list"][0] for row in rows}
    assert {row["instruction_id_list"][0] for row in rows[:30]} == names


ANSWERS = {
    "punctuation:no_comma": ("no comma here", "one, two"),
    "keywords:forbidden_words": ("rain falls", "rain and wind"),
    "detectable_format:title": ("<<Rain>> It falls.", "Rain. It falls."),
    "startend:quotation": ('"It falls."', "It falls."),
    "startend:end_checker": ("It falls. That is all.", "It falls."),
    "detectable_content:postscript": ("It falls.\nP.S. Often.", "It falls."),
    "detectable_format:number_bullet_lists": ("* a\n* b\n* c", "* a"),
    "keywords:existence": ("water in the morning", "water at night"),
    "length_constraints:number_sentences": (
        "It falls. It stops.",
        "A. It falls. It stops. It ends. It is dry.",
    ),
    "change_case:english_lowercase": (
        "the rain falls on the town all day",
        "The rain falls on the Town all day",
    ),
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_the_harness_tells_a_good_answer_from_a_bad_one(rows, name):
    pytest.importorskip("langdetect", reason="pip install 'cfsp[ifeval]'")
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("python -m nltk.downloader punkt_tab")  # the harness fetches it as it is imported
    from lm_eval.tasks.ifeval.utils import process_results

    row = next(row for row in rows if row["instruction_id_list"] == [name])
    good, bad = (process_results(row, [answer])["prompt_level_strict_acc"] for answer in ANSWERS[name])
    assert good
    assert not bad
