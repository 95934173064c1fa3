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


def test_prompts_differ_and_each_twenty_have_every_instruction(rows):
    assert len({row["prompt"] for row in rows}) == len({row["key"] for row in rows}) == len(rows) == 240
    kinds = [(row["instruction_id_list"][0], row["kwargs"][0].get("relation")) for row in rows]
    for start in range(0, len(rows), 20):
        assert {*kinds[start : start + 20]} == {*kinds}
        assert len({row["prompt"].split(".")[0] for row in rows[start : start + 20]}) == 12
    assert not any("{" in row["prompt"] or "{" in str(row["kwargs"][0].values()) for row in rows)


def words(number):
    return " ".join(["rain"] * number)


ANSWERS = {
    ("punctuation:no_comma", None): ("no comma here", "one, two"),
    ("length_constraints:number_words", "at least"): (words(60), words(59)),
    ("length_constraints:number_words", "less than"): (words(29), words(30)),
    ("length_constraints:number_sentences", "less than"): (
        "It falls. It stops.",
        "It falls. It stops. It ends.",
    ),
    ("length_constraints:number_paragraphs", None): ("It falls.\n***\nIt stops.", "It falls."),
    ("keywords:existence", None): ("The {0} and the {1}.", "The {0}."),
    ("keywords:frequency", "at least"): ("The {0}: a {0}.", "The {0}."),
    ("keywords:forbidden_words", None): ("rain falls", "rain and wind"),
    ("detectable_format:number_bullet_lists", None): ("* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", None): ("It *falls*.", "It falls."),
    ("detectable_format:multiple_sections", None): ("Section 1 a\nSection 2 b", "Section 1 a"),
    ("detectable_format:title", None): ("<<Rain>> It falls.", "Rain. It falls."),
    ("detectable_format:json_format", None): ('{"rain": true}', "It falls."),
    ("detectable_content:number_placeholders", None): ("Dear [name]", "Dear friend"),
    ("detectable_content:postscript", None): ("It falls.\nP.S. Often.", "It falls."),
    ("change_case:english_lowercase", None): (
        "the rain falls on the town all day",
        "The rain falls on the Town all day",
    ),
    ("change_case:english_capital", None): (
        "THE RAIN FALLS ON THE TOWN ALL DAY",
        "The rain falls on the town all day",
    ),
    ("startend:quotation", None): ('"It falls."', "It falls."),
    ("startend:end_checker", None): ("It falls. That is all.", "It falls."),
    ("combination:two_responses", None): ("It falls.\n******\nIt stops.", "It falls."),
}
"""(instruction, relation) -> an answer to the first such prompt that follows it, and one that does not."""


def test_every_instruction_has_an_answer_here(rows):
    assert {(row["instruction_id_list"][0], row["kwargs"][0].get("relation")) for row in rows} == {*ANSWERS}


@pytest.mark.parametrize(("name", "relation"), sorted(ANSWERS, key=str))
def test_the_harness_tells_a_good_answer_from_a_bad_one(rows, name, relation):
    pytest.importorskip("langdetect", reason="pip install 'cfsp[ifeval]'")
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("python -m nltk.downloader punkt_tab")  # the harness fetches it as it is imported
    from lm_eval.tasks.ifeval.utils import process_results

    kind = [name], relation
    row = next(row for row in rows if (row["instruction_id_list"], row["kwargs"][0].get("relation")) == kind)
    used = row["kwargs"][0].get("keywords", [row["kwargs"][0].get("keyword")])
    texts = [text.format(*used) if name.startswith("keywords") else text for text in ANSWERS[name, relation]]
    good, bad = (process_results(row, [text])["prompt_level_strict_acc"] for text in texts)
    assert good
    assert not bad
