"""The recipes of the paper on LTE: their parts are built, and they measure what they say."""

import pytest
from pages import understood

from cfsp.evaluation.routed_task import RoutedTask
from cfsp.evaluation.task import TaskScores

OWN = "model.path=my/llama schedule.data.sources.text.text.paths=train.jsonl"
TEST = "evaluation.perplexity_text.text.paths=test.jsonl"


@pytest.mark.parametrize(
    ("words", "active", "read"),
    [
        (f"wikitext103 {OWN}", 0.31, "wikitext2:test"),
        (f"xsum {OWN} {TEST}", 0.16, "files:test.jsonl"),
        (f"e2e {OWN} {TEST}", 0.07, "files:test.jsonl"),
    ],
)
def test_a_recipe_for_texts_measures_both_figures_on_the_same_text(words, active, read):
    parts = understood(f"cfsp +experiment/lte={words}")
    assert parts.schedule.active == active
    assert parts.schedule.pruner.expert_size == 32
    assert [one.text.label for one in parts.evaluators] == [read, read]


def test_the_recipe_for_glue_measures_accuracy_and_the_share_on_its_rows():
    parts = understood("cfsp +experiment/lte=glue model.path=my/roberta")
    scores, shares = parts.evaluators
    assert isinstance(scores, TaskScores)
    assert isinstance(shares, RoutedTask)
    assert scores.task.metrics == ["accuracy"]
    assert scores.test.label == shares.scores.test.label
    assert parts.schedule.data.task.name == "sst2"
