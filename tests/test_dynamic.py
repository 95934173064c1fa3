"""Dynamic recovery: weights and draws in closed form, rounds in order, restarts, refusals."""

import copy
import json

import pytest
import torch

from cfsp.data.examples import Examples, Split
from cfsp.data.instructions import Conversations
from cfsp.data.sources import Instructions, Prose
from cfsp.data.texts import Files
from cfsp.records.record import Record
from cfsp.recovery.dynamic import gaps
from cfsp.recovery.source_weights import Pools, round_weights, whole_counts
from cfsp.storage.fingerprints import fingerprint
from cfsp.training.loop import Loop
from cfsp.training.next_token import NextToken
from cfsp.training.source_losses import source_losses
from cfsp.training.trainer import LossTrainer


def test_weights_by_hand():
    """Gaps 3 and 1 of two sources, a fifth spread evenly: 0.8 * 3/4 + 0.1 and 0.8 * 1/4 + 0.1."""
    assert round_weights({"a": 3.0, "b": 1.0}, 0.2) == pytest.approx({"a": 0.7, "b": 0.3})
    assert round_weights({"a": 3.0, "b": 0.0}, 0.0) == {"a": 1.0, "b": 0.0}
    assert round_weights({"a": 0.0, "b": 0.0}, 0.3) == pytest.approx({"a": 0.5, "b": 0.5})
    assert round_weights({"a": 9.0, "b": 1.0}, 1.0) == pytest.approx({"a": 0.5, "b": 0.5})
    assert gaps({"a": 2.0, "b": 1.0}, {"a": 1.5, "b": 1.2}) == {"a": 0.5, "b": 0.0}


@pytest.mark.parametrize("total", [1, 7, 100])
def test_counts_are_whole_and_sum_up(total):
    weights = round_weights({"a": 0.5, "b": 0.2, "c": 0.0}, 0.3)
    counts = whole_counts(weights, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - weights[name] * total) < 1 for name in counts)


def test_a_source_gives_what_is_asked_and_repeats_nothing_before_it_is_used_up():
    pools = Pools({"a": [*range(10)], "b": [20, 21]})
    rounds = [pools.draw({"a": 4, "b": 5}) for _ in range(3)]
    assert sorted(rounds[0]["a"] + rounds[1]["a"]) == [*range(8)]
    assert sorted(rounds[2]["a"]) == [0, 1, 8, 9]
    assert [one for some in rounds for one in some["b"]] == [20, 21] * 7 + [20]


@pytest.fixture
def mixture(tmp_path):
    """Two texts, and instructions with answers."""
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(3000))))
    (tmp_path / "words.txt").write_text("the cat sat on a mat while two dogs ran home " * 300)
    rows = [{"prompt": f"{one} plus one is", "response": f" {one + 1}"} for one in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "numbers": Prose(Files(str(tmp_path / "numbers.txt"))),
        "pairs": Instructions(Conversations(form="pairs", paths=str(tmp_path / "pairs.jsonl"))),
        "words": Prose(Files(str(tmp_path / "words.txt"))),
    }


def examples(sources, **options):
    defaults = {"weights": None, "window": 16, "packing": True, "held_out": 60, "seed": 0}
    return Examples(sources=sources, **{**defaults, **options})


def test_examples_know_their_source(mixture, tokenizer):
    split = examples(mixture).split(tokenizer)
    assert {*split.held_out} == {*mixture} == {*split.sources}
    assert sum(map(len, split.held_out.values())) == 60
    assert sorted(one for mine in split.sources.values() for one in mine) == [*range(len(split.train))]
    for name, source in mixture.items():
        alone = {str(one) for one in examples({name: source}, held_out=0).split(tokenizer).train}
        assert {str(split.train[index]) for index in split.sources[name]} <= alone
        assert {str(one) for one in split.held_out[name]} <= alone
    part = split.of([5, 2, 9], ["words"])
    assert part.train == [split.train[index] for index in (5, 2, 9)]
    assert {*part.held_out} == {"words"}
    assert all(
        part.train[at] in [split.train[one] for one in split.sources[name]]
        for name in mixture
        for at in part.sources[name]
    )


def test_the_loss_of_a_source_does_not_depend_on_batches(mixture, tokenizer, tiny):
    data = examples(mixture, packing=False)
    held_out = data.split(tokenizer).held_out
    one, many = (source_losses(tiny, tokenizer, data, held_out, size) for size in (1, 64))
    assert one == pytest.approx(many, rel=1e-5)
    for name, rows in held_out.items():
        batch = data.collator(tokenizer)(rows)
        with torch.no_grad():
            loss = NextToken().task.loss(tiny, batch, None)
        assert one[name] == pytest.approx(float(loss), rel=1e-5)


OVERRIDES = [
    "recovery=dynamic",
    "recovery.data.sources=null",
    "recovery.data.window=16",
    "recovery.data.held_out=60",
    "recovery.training.max_steps=6",
    "recovery.training.batch_size=4",
    "recovery.training.warmup=0",
    "recovery.training.evaluate_every=3",
    "recovery.training.learning_rate=1e-2",
    "recovery.per_round=24",
    "recovery.rounds=2",
    "recovery.min_gain=0",
    "criterion=magnitude",
    "allocator=uniform",
    "sparsity=0.8",
]


def words(tmp_path, *more):
    prose = "{_target_: cfsp.data.sources.Prose, text: {_target_: cfsp.data.texts.Files, paths: %s}}"
    pairs = (
        "{_target_: cfsp.data.sources.Instructions, conversations: "
        "{_target_: cfsp.data.instructions.Conversations, form: pairs, paths: %s}}"
    )
    sources = ",".join(
        f"{name}: {form % (tmp_path / file)}"
        for name, form, file in (
            ("numbers", prose, "numbers.txt"),
            ("pairs", pairs, "pairs.jsonl"),
            ("words", prose, "words.txt"),
        )
    )
    found = [word for word in OVERRIDES if "sources=null" not in word]
    return [*found, "~recovery.data.sources", f"+recovery.data.sources={{{sources}}}", *more]


def test_rounds_go_from_pretraining_to_instructions(cli, mixture, tmp_path):
    record = Record.load(cli(*words(tmp_path)))
    training = record.training
    rounds = training["rounds"]
    stages = [one["stage"] for one in rounds]
    assert stages == sorted(stages, reverse=True)  # pretraining, then instruction
    assert {*stages} == {"pretraining", "instruction"}
    for one in rounds:
        names = ["pairs"] if one["stage"] == "instruction" else ["numbers", "words"]
        assert sorted(one["weights"]) == names
        assert sum(one["weights"].values()) == pytest.approx(1)
        assert one["weights"] == pytest.approx(round_weights(gaps(one["before"], one["dense"]), 0.3))
        assert one["examples"] == whole_counts(one["weights"], 24)
        total = sum(gaps(one["before"], one["dense"]).values())
        assert one["gain"] == pytest.approx(1 - sum(gaps(one["after"], one["dense"]).values()) / total)
    assert training["steps"] == 6 * len(rounds)
    steps = [row["step"] for row in training["curve"]]
    assert steps == sorted(steps)
    assert training["examples"] == 24 * len(rounds)


@pytest.mark.slow
def test_it_stops_when_a_round_gains_too_little(cli, mixture, tmp_path):
    record = Record.load(cli(*words(tmp_path, "recovery.min_gain=0.999", "recovery.rounds=3")))
    assert [one["stage"] for one in record.training["rounds"]] == ["pretraining", "instruction"]


def test_it_trains_nothing_if_nothing_was_lost(cli, mixture, tmp_path):
    record = Record.load(cli(*words(tmp_path, "recovery.tolerance=100")))
    assert record.training["rounds"] == []
    assert record.training["steps"] == record.training["trainable"] == 0


def test_its_rounds_imitate_the_teacher_that_is_named(cli, mixture, tmp_path, tiny, tokenizer, monkeypatch):
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    for model in (other, tokenizer):
        model.save_pretrained(tmp_path / "teacher")
    imitated, run = [], Loop.run

    def watched(self, setting, *others):
        imitated.append(fingerprint(setting.dense))
        return run(self, setting, *others)

    monkeypatch.setattr(Loop, "run", watched)
    more = ["recovery/objective=distillation", f"recovery.objective.teacher={tmp_path / 'teacher'}"]
    record = Record.load(cli(*words(tmp_path, *more)))
    assert {*imitated} == {fingerprint(other)}
    expected = {"path": str(tmp_path / "teacher"), "fingerprint": fingerprint(other)}
    assert record.training["teacher"] == expected
    (tmp_path / "teacher" / "config.json").unlink()
    monkeypatch.setattr("cfsp.running.parts.Parts.plan", lambda *_: pytest.fail("planned"))
    with pytest.raises(ValueError, match="objective.teacher="):
        cli(*words(tmp_path, *more, "sparsity=0.4"))


@pytest.mark.slow
def test_a_stopped_run_repeats_no_round(cli, mixture, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    run, train = Loop.run, LossTrainer.train

    def stop_in_the_second(self, setting, *others):
        if setting.folder.name == "round-1":
            raise Stopped
        return run(self, setting, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", stop_in_the_second)
        with pytest.raises(Stopped):
            cli(*words(tmp_path))
    (folder,) = (tmp_path / "results" / "recovery").iterdir()
    assert (folder / "round-0").is_dir()
    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(
            LossTrainer, "train", lambda self, **more: trained.append(self.folder.name) or train(self, **more)
        )
        again = Record.load(cli(*words(tmp_path)))
    assert trained == [f"round-{number}" for number in range(1, len(again.training["rounds"]))]
    whole = Record.load(cli(*words(tmp_path, "overwrite=true")))
    assert again.training["rounds"] == whole.training["rounds"]
    for name, metric in whole.metrics["pruned"].items():
        assert again.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["recovery.data.held_out=1"], r"'\w+' has 0 of the 1 held-out examples and \d+ of the \d+ to train"),
        (["recovery.parameters.merge=false"], "trains again after every round; expected"),
        (["recovery.balance=2"], "recovery.balance=2: expected a fraction"),
        (["recovery.rounds=0"], "recovery.rounds=0"),
        (
            ["recovery.per_round=7", "recovery.training.accumulation=2"],
            "per_round=7 examples are less than one step of batch_size=4 x accumulation=2; .* at least 8",
        ),
    ],
)
def test_what_cannot_work_is_refused(cli, mixture, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        cli(*words(tmp_path, *more))


def test_instructions_without_answers_are_refused(tmp_path, tokenizer):
    rows = [{"prompt": f"say {one}", "response": " "} for one in range(7)]
    (tmp_path / "empty.jsonl").write_text("\n".join(map(json.dumps, rows)))
    conversations = Conversations(form="pairs", paths=str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match="none of its 7 rows has an answer to learn from"):
        examples({"a": Instructions(conversations)}).split(tokenizer)
    assert [*Instructions(conversations, answers_only=False).passages(tokenizer)]


def test_other_recoveries_read_the_held_out_of_all_sources():
    split = Split([], {"a": [{"input_ids": [1]}], "b": [{"input_ids": [2]}]}, {}, {})
    assert [one["input_ids"] for one in split.every_held_out] == [[1], [2]]
