"""Sequence to sequence: pairs, loss, ROUGE, what the model writes, and runs of it."""

import json
from dataclasses import replace

import pytest
import torch
from labelled import encoder
from two_stacks import PAIRS, make_pair, pair_tokenizer, saved_pair, summaries

from cfsp.data.labelled_rows import LabelledRows
from cfsp.data.tasks.rouge import rouge
from cfsp.data.tasks.sequence_to_sequence import IGNORED, SequenceToSequence, Written
from cfsp.data.tasks.task_data import TaskCalibration
from cfsp.evaluation.latency import Latency
from cfsp.evaluation.size import Size
from cfsp.evaluation.task import TaskScores
from cfsp.training.distillation import Distillation


@pytest.fixture
def task(tmp_path):
    """A task of toy summaries, by a file of each split."""
    train, dev = (
        LabelledRows(paths=str(summaries(tmp_path / f"{name}.jsonl", rows, seed)))
        for name, rows, seed in (("train", 24, 0), ("dev", 7, 1))
    )
    return SequenceToSequence(
        name="toy",
        train=train,
        test=dev,
        source="document",
        target="summary",
        prefix="",
        window=12,
        target_window=8,
        metrics=["rouge1", "rouge2", "rougeL", "rougeLsum", "length"],
        stemmer=True,
        beams=1,
        shortest=0,
        length_penalty=1.0,
        no_repeat=0,
    )


def batch_of(task):
    tokenizer = pair_tokenizer()
    return task.collator(tokenizer)(task.encode(tokenizer, task.items(task.test)).examples)


@pytest.mark.parametrize("family", PAIRS)
def test_the_loss_is_the_models_own_and_padding_does_not_count(task, family):
    model, batch = make_pair(family), batch_of(replace(task, target="document"))
    assert (batch["labels"] == IGNORED).any()
    torch.testing.assert_close(task.loss(model, batch, None), model(**batch).loss)
    tokenizer = pair_tokenizer()
    coded = replace(task, target="document").encode(tokenizer, task.items(task.test)[:2])
    alone = [task.collator(tokenizer)([example]) for example in coded.examples]
    counts = [int((one["labels"] != IGNORED).sum()) for one in alone]
    both = task.collator(tokenizer)(coded.examples)
    sums = sum(task.loss(model, one, 1) for one in alone)
    torch.testing.assert_close(task.loss(model, both, None), sums / sum(counts), rtol=1e-4, atol=1e-4)


def test_distilling_from_itself_costs_nothing_but_the_labels(task):
    model, batch = make_pair("bart"), batch_of(task)
    both = Distillation(label_weight=0.5, logit_weight=3.0, hidden_weight=0.0, temperature=2.0).of(task)
    loss = both.loss(model, batch, model, None, None)
    torch.testing.assert_close(loss, 0.5 * task.loss(model, batch, None))
    with pytest.raises(ValueError, match="the task's models have two; expected hidden_weight=0"):
        Distillation(label_weight=0.0, logit_weight=0.0, hidden_weight=1.0, temperature=1.0).of(task)


def test_long_texts_are_cut_and_a_prefix_comes_first(task):
    tokenizer, items = pair_tokenizer(), task.items(task.test)
    coded = replace(task, window=8, target_window=3, prefix="the new ").encode(tokenizer, items)
    assert coded.cut == len(items)  # a summary has three words and an end
    assert all(len(one["input_ids"]) <= 8 and len(one["labels"]) == 3 for one in coded.examples)
    assert tokenizer.decode(coded.examples[0]["input_ids"]).startswith("the new ")
    assert replace(task, window=16).encode(tokenizer, items).cut == 0


def test_rouge_is_its_closed_form_and_the_stemmer_matters():
    said, right = ["the cat sat by a tree"], [["the cat was by the tree"]]
    names = ["rouge1", "rouge2", "rougeL"]
    found = rouge(names, right, said, stemmer=False)
    # shared words: the, cat, by, tree; pairs: the cat; subsequence: the cat by tree
    assert [found[name] for name in names] == [
        pytest.approx([4 / 6]),
        pytest.approx([1 / 5]),
        pytest.approx([4 / 6]),
    ]
    stems = [
        rouge(["rougeL"], [["cats running"]], ["cat run"], stemmer)["rougeL"] for stemmer in (True, False)
    ]
    assert stems == [[1.0], [0.0]]


def test_a_perfect_answer_scores_one_and_lengths_are_recorded(task):
    items = task.items(task.test)
    found = task.scores([Written(item.target, 3 + number) for number, item in enumerate(items)], items)
    assert all(found[name].value == 1 for name in task.metrics if name != "length")
    assert (found["length"].value, found["length"].n, found["length"].better) == (6, 7, "lower")
    assert found["length"].stderr == pytest.approx((28 / 6 / 7) ** 0.5)
    assert found["rougeL"].stderr == 0


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_measured_is_what_the_model_writes(task, family, beams):
    task, model, tokenizer = replace(task, beams=beams), make_pair(family), pair_tokenizer()
    model.generation_config.min_length = 8  # the task's options count, not the checkpoint's
    said = []
    for item in task.items(task.test):
        ids = tokenizer(item.source, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**ids, num_beams=beams, max_new_tokens=8, min_length=0, do_sample=False)
        said.append(tokenizer.decode(made[0], skip_special_tokens=True))
    expected = rouge(["rougeL"], [[item.target] for item in task.items(task.test)], said, True)["rougeL"]
    found = TaskScores(task, batch_size=3).run(model, tokenizer)
    assert found["rougeL/toy"].value == pytest.approx(sum(expected) / len(expected))
    assert found["length/toy"].value == pytest.approx(sum(len(one.split()) for one in said) / 7)
    assert (found["rougeL/toy"].n, found["rougeL/toy"].better) == (7, "higher")
    assert found["rougeL/toy"].protocol["beams"] == beams
    assert model.generation_config.min_length == 8


def test_nan_is_no_text(task):
    model = make_pair("t5")
    with torch.no_grad():
        model.decoder.final_layer_norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="task toy: an output is NaN or infinite"):
        TaskScores(task, batch_size=3).run(model, pair_tokenizer())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"document": "a cat"}, r"line 1: 'summary' is not there; it has 'document'"),
        ({"document": " ", "summary": "cat"}, r"line 1: 'document' is empty; expected text"),
        ({"document": "cat", "summary": 3}, r"line 1: 'summary' is int; expected text"),
    ],
)
def test_rows_that_lack_something_are_named(task, tmp_path, row, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        task.items(LabelledRows(paths=str(tmp_path / "bad.jsonl")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": []}, "task.metrics=.*expected one or more of rouge1"),
        ({"metrics": ["bleu"]}, "task.metrics='bleu'"),
        ({"beams": 0}, "task beams=0"),
        ({"shortest": 8}, "task.shortest=8 beside task.target_window=8"),
    ],
)
def test_options_that_cannot_be_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        replace(task, **options)


def test_models_that_cannot_write_are_refused(task):
    with pytest.raises(ValueError, match="expected model.head=sequence_to_sequence"):
        task.check(encoder(), pair_tokenizer(), "recovery")
    with pytest.raises(ValueError, match="task.target_window=64: the model has 48 positions"):
        replace(task, target_window=64).check(make_pair("bart"), pair_tokenizer(), "recovery")
    model = make_pair("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="config has no decoder_start_token_id"):
        task.check(model, pair_tokenizer(), "recovery")


def test_calibration_is_pairs(task):
    batches = TaskCalibration(task, task.train, samples=5, seqlen=12, batch_size=2, seed=0).batches(
        pair_tokenizer()
    )
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_size_and_speed_are_of_both_stacks(family):
    model, tokenizer = make_pair(family), pair_tokenizer()
    found = Size(context=8).run(model, tokenizer)
    stacks = sum(weight.numel() for path, weight in model.named_parameters() if weight.dim() == 2)
    embeddings = model.get_input_embeddings().weight.numel()
    assert found["macs_per_token"].value > (stacks - embeddings) / 2
    timing = Latency(batch_sizes=[1], prompts=[8], new_tokens=2, repeats=1, warmup=0)
    dense, _ = timing.run_pair(model, model, tokenizer)
    assert dense["forward_ms/b1xp8"].value > 0


@pytest.fixture
def summarise(task_run, tmp_path):
    """Type a command with the task; exit code, the record if there is one, stderr."""
    train, dev = summaries(tmp_path / "a.jsonl", 40, 0), summaries(tmp_path / "b.jsonl", 6, 1)
    words = ["task=summarization", f"task.train.paths={train}", f"task.test.paths={dev}"]
    words += ["task.target_window=8", "sites=[mlp,attention,cross_attention]"]

    def call(family, *more):
        return task_run(*words, f"model.path={saved_pair(tmp_path / family, family)}", *more)

    return call


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "method",
    [
        "criterion=cfsp",
        "criterion=flap allocator=global_rank compensation=mean",
        "criterion=obs allocator=uniform compensation=least_squares",
        "criterion=taylor schedule=iterative schedule.steps=2",
        "criterion=magnitude allocator=uniform",
    ],
)
def test_one_command_prunes_it(summarise, method, tmp_path):
    code, record, err = summarise("t5", *method.split(), "sparsity=0.3", "save=out")
    assert code == 0, err
    assert record.sparsity["sites"] == pytest.approx(0.3, abs=0.03)
    assert {*record.metrics["pruned"]} == {
        f"{name}/summarization" for name in ("rouge1", "rouge2", "rougeL", "length")
    }
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_trained_masks_are_cut_and_recovery_follows(summarise, family):
    tiny = ["schedule.pruner.tile=2", "schedule.pruner.cooldown=0.5"]
    tiny += [f"schedule.training.{one}" for one in ("max_steps=8", "batch_size=4", "warmup=0")]
    tiny += ["schedule.data.held_out=4"]
    code, record, err = summarise(family, "schedule=movement", "sparsity=0.4", *tiny)
    assert code == 0, err
    assert record.density < 1
    assert record.training is None
    after = ["recovery=distill", "recovery.data.held_out=4", "recovery.training.max_steps=2"]
    code, record, err = summarise(family, "schedule=movement", "sparsity=0.4", *tiny, *after)
    assert code == 0, err
    assert record.sparsity["sites"] == pytest.approx(0.4, abs=0.03)
    assert record.schedule_training["steps"] == 8
    assert record.training["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_units_shrink_while_adapters_train(summarise, family):
    """LoRAShear, on the heads that read the encoder too."""
    tiny = [f"schedule.training.{one}" for one in ("max_steps=12", "batch_size=4", "warmup=0")]
    tiny += ["schedule.data.held_out=4", "schedule.pruner.periods=2", "schedule.pruner.warmup=0.2"]
    code, record, err = summarise(family, "schedule=lorashear", "recovery=none", "sparsity=0.4", *tiny)
    assert code == 0, err
    assert record.sparsity["sites"] >= 0.4
    assert record.schedule_training["reached"] == pytest.approx(record.sparsity["sites"])
    assert record.density > 0.999  # nothing zero is left


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("schedule=blockwise", "goes through one stack of blocks, and a t5 has two"),
        ("allocator=error_curves", "goes through one stack of blocks, and a t5 has two"),
        ("allocator.protect=knowledge", "the knowledge analysis goes through one stack of blocks"),
        ("recovery=reconstruction", "recovery trains causal language models"),
        (
            "calibration=text calibration.text={paths:a.jsonl,column:document} calibration.seqlen=4",
            "expected labels in every batch",
        ),
    ],
)
def test_what_cannot_go_through_two_stacks_is_refused(summarise, words, message):
    code, _, err = summarise("t5", *words.split())
    assert code == 1
    assert message in err
