"""References: ROUGE of what a causal model writes, with the best of a question's references."""

import json

import pytest
from rouge_score.rouge_scorer import RougeScorer

from cfsp.checkpoints.load import load
from cfsp.data.instructions import Conversations
from cfsp.evaluation.answers import Answer, write_answers
from cfsp.evaluation.measure import measure
from cfsp.evaluation.references import References
from cfsp.storage.cache import OFF

ROWS = [
    {"prompt": "the cat sat", "response": "on a mat"},
    {"prompt": "the dog", "response": "ran away"},
    {"prompt": "the cat sat", "response": "by the door\nin the sun"},
]


@pytest.fixture
def loaded(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def evaluator(path, form="pairs", **options):
    given = {"chat": False, "metrics": ["rouge1", "rougeL"], "stemmer": False, "new_tokens": 5}
    conversations = Conversations(form=form, paths=path)
    return References(conversations, **{**given, "batch_size": 2, **options})


def answer_with(monkeypatch, *texts):
    said = [Answer(text, 3, True, True) for text in texts]
    monkeypatch.setattr("cfsp.evaluation.references.write_answers", lambda *_: said)


def test_a_question_counts_once_with_its_best_reference(loaded, rows, monkeypatch):
    answer_with(monkeypatch, "by the sea", "ran home")
    found = evaluator(rows).run(*loaded)["rouge1/files:pairs.jsonl"]
    scorer = RougeScorer(["rouge1"])
    best = scorer.score("by the door\nin the sun", "by the sea")["rouge1"].fmeasure
    assert found.outcomes.values == [best, scorer.score("ran away", "ran home")["rouge1"].fmeasure]
    assert found.value == pytest.approx(sum(found.outcomes.values) / 2)
    assert (found.n, found.better) == (2, "higher")
    assert found.stderr > 0


def test_a_reference_itself_is_one(loaded, rows, monkeypatch):
    answer_with(monkeypatch, "on a mat", "ran away")
    found = evaluator(rows).run(*loaded)
    assert found["rouge1/files:pairs.jsonl"].value == found["rougeL/files:pairs.jsonl"].value == 1


def test_the_model_writes_greedily_and_cut_answers_are_counted(loaded, rows):
    model, tokenizer = loaded
    found = evaluator(rows).run(model, tokenizer)
    prompts = [tokenizer(text)["input_ids"] for text in ("the cat sat", "the dog")]
    said = write_answers(model, tokenizer, prompts, (), 5, 1)
    scorer = RougeScorer(["rougeL"])
    expected = [
        max(scorer.score(reference, one.text)["rougeL"].fmeasure for reference in references)
        for one, references in zip(said, (["on a mat", "by the door\nin the sun"], ["ran away"]), strict=True)
    ]
    assert found["rougeL/files:pairs.jsonl"].outcomes.values == expected
    assert found["answer_tokens/files:pairs.jsonl"].value == sum(one.tokens for one in said) / 2
    assert found["cut_answers/files:pairs.jsonl"].value == sum(not one.ended for one in said) / 2


def test_cut_answers_are_told_with_the_model_and_the_limit(loaded, rows, monkeypatch, capsys):
    said = [Answer("on a mat", 5, ended, True) for ended in (True, False)]
    monkeypatch.setattr("cfsp.evaluation.references.write_answers", lambda *_: said)
    measure([evaluator(rows)], *loaded, OFF, name="pruned")
    told = "references files:pairs.jsonl: 1 of 2 answers reached new_tokens=5 and were cut"
    assert capsys.readouterr().err == f"cfsp: pruned: {told}\n"


def test_a_run_tells_of_both_models_whose_answers_are_cut(cfsp, rows):
    part = "evaluation.references"
    options = [f"{part}.conversations.paths={rows}", f"{part}.conversations.form=pairs", f"{part}.chat=false"]
    code, _, err = cfsp("evaluation=[perplexity_text,references]", f"{part}.new_tokens=2", *options)
    assert code == 0, err
    assert [line.split(": ")[1] for line in err if "2 of 2 answers reached new_tokens=2" in line] == [
        "dense",
        "pruned",
    ]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("alpaca", {"instruction": "say", "input": "it", "output": "said"}),
        (
            "chat",
            {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "said"}]},
        ),
    ],
)
def test_every_form_has_its_answer(tmp_path, form, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (asked,) = evaluator(str(path), form).questions()
    assert asked.answers == ["said"]


def test_the_protocol_knows_questions_references_and_limit(loaded, rows, tmp_path):
    before = evaluator(rows).protocol(*loaded)
    assert evaluator(rows, limit=1).protocol(*loaded)["tokens_sha256"] != before["tokens_sha256"]
    other = tmp_path / "other" / "pairs.jsonl"
    other.parent.mkdir()
    other.write_text("\n".join(map(json.dumps, [*ROWS[:2], ROWS[2] | {"response": "else"}])))
    after = evaluator(str(other)).protocol(*loaded)
    assert {key for key in before if before[key] != after[key]} == {"text_sha256"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": []}, "metrics=\\[\\]: expected some of rouge1"),
        ({"metrics": ["rouge3"]}, "rouge3.*expected"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"limit": 0}, "limit"),
        ({"stops": [""]}, "empty text"),
    ],
)
def test_bad_options_are_named(rows, options, said):
    with pytest.raises(ValueError, match=said):
        evaluator(rows, **options)


def test_what_cannot_be_measured_is_refused_before_it_costs(loaded, rows, tmp_path):
    with pytest.raises(ValueError, match="no chat template; expected chat=false"):
        evaluator(rows, chat=True).protocol(*loaded)
    with pytest.raises(ValueError, match="new_tokens"):
        evaluator(rows, new_tokens=100_000).protocol(*loaded)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        evaluator(str(empty)).protocol(*loaded)
