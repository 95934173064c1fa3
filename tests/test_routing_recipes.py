"""The recipes of the paper on LTE: their parts are built, and they measure what they say."""

import pytest
from pages import understood

from cfsp.evaluation.references import References
from cfsp.evaluation.routed_task import RoutedTask
from cfsp.evaluation.task import TaskScores

OWN = "model.path=my/llama schedule.data.sources"
PAIRS = (
    f"{OWN}.instructions.conversations.paths=train.jsonl evaluation.references.conversations.paths=test.jsonl"
)
OWN_FILES = {
    "wikitext103": f"{OWN}.text.text.paths=train.jsonl",
    "xsum": PAIRS,
    "e2e": PAIRS,
    "glue": "model.path=my/roberta",
}


def test_the_recipe_for_texts_measures_both_figures_on_the_same_text():
    parts = understood(f"cfsp +experiment/lte=wikitext103 {OWN_FILES['wikitext103']}")
    assert parts.schedule.active == 0.31
    assert parts.schedule.pruner.expert_size == 32
    assert [one.text.label for one in parts.evaluators] == ["wikitext2:test", "wikitext2:test"]


@pytest.mark.parametrize(("name", "active"), [("xsum", 0.16), ("e2e", 0.07)])
def test_a_recipe_for_written_answers_learns_and_measures_answers(name, active):
    parts = understood(f"cfsp +experiment/lte={name} {PAIRS}")
    assert parts.schedule.active == active
    written, shares = parts.evaluators
    assert isinstance(written, References)
    assert "rougeL" in written.metrics
    assert written.conversations.label == shares.text.label == "files:test.jsonl"
    (source,) = parts.schedule.data.sources.values()
    assert source.answers_only
    assert source.conversations.form == written.conversations.form == "pairs"


def test_the_recipe_for_glue_measures_accuracy_and_the_share_on_its_rows():
    parts = understood("cfsp +experiment/lte=glue model.path=my/roberta")
    scores, shares = parts.evaluators
    assert isinstance(scores, TaskScores)
    assert isinstance(shares, RoutedTask)
    assert scores.task.metrics == ["accuracy"]
    assert scores.test.label == shares.scores.test.label
    assert parts.schedule.data.task.name == "sst2"


@pytest.mark.parametrize("name", ["wikitext103", "xsum", "e2e", "glue"])
def test_routers_learn_at_the_rate_of_the_model_and_eta_may_be_as_large_as_in_the_paper(name):
    schedule = understood(f"cfsp +experiment/lte={name} {OWN_FILES[name]}").schedule
    assert schedule.pruner.learning_rate == schedule.training.learning_rate
    assert (schedule.pruner.most, schedule.pruner.separability) == (2.0, 0.5)
