"""Zero-shot tasks: local files give the harness's own prompts, answers and figures."""

import logging
from functools import partial
from unittest.mock import patch

import datasets
import pytest
from harness_rows import HUB, LOCAL, evaluator, write_rows

from cfsp.checkpoints.load import load
from cfsp.evaluation.harness_data import look_up
from cfsp.evaluation.harness_names import manager
from cfsp.evaluation.harness_noise import SPEAKING, without_noise
from cfsp.evaluation.local_splits import with_data
from cfsp.evaluation.local_tasks import read_questions
from cfsp.evaluation.measure import measure
from cfsp.evaluation.zero_shot import PAPERS, task_metrics, with_errors
from cfsp.storage.cache import OFF


@pytest.fixture
def file(tmp_path):
    return partial(write_rows, tmp_path)


def requests(task):
    """What the model is asked: context and continuation of every choice, and which one is right."""
    task.build_all_requests(rank=0, world_size=1)
    asked = [request.args for request in task.instances]
    return asked, [task.doc_to_target(doc) for doc in task.eval_docs]


@pytest.mark.slow  # the harness reads all of its tasks
@pytest.mark.parametrize("task", HUB)
def test_prompts_are_the_harness_s_own(task, file):
    row = HUB[task]
    splits = {
        split: datasets.Dataset.from_list([row] * 4) for split in ("train", "validation", "test", "dev")
    }
    with patch("lm_eval.api.task.datasets.load_dataset", return_value=splits):
        own = manager().load([task])["tasks"][task]
    spec = {"group": "local", "task": [with_data(task, {"": read_questions(task, file(task))})]}
    ours = manager().load([spec])["tasks"][task]
    asked, targets = requests(own)
    assert requests(ours)[0] == asked
    assert [str(target) for target in requests(ours)[1]] == [str(target) for target in targets]
    assert ours.config.metric_list == own.config.metric_list
    assert ours.VERSION == own.VERSION
    assert len(asked) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_figures_are_kept_with_all_that_they_depend_on(rank, file, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", rank)  # as under torchrun
    model, tokenizer = load(tiny_checkpoint)
    model.config.max_position_embeddings = 256
    files = {task: str(file(task)) for task in ("piqa", "openbookqa")}
    whole = evaluator(["piqa", "openbookqa"], files=files)
    found = {name: one for part in whole.parts() for name, one in part.run(model, tokenizer).items()}
    assert [found.pop(f"cut_prompts/{task}").value for task in files] == [0, 0]
    assert set(found) == {"acc/piqa", "acc_norm/piqa", "acc/openbookqa", "acc_norm/openbookqa"}
    for name, metric in found.items():
        assert metric.n == 4
        assert metric.stderr == 0  # four times the same question
        assert metric.value in (0, 1)
        assert metric.protocol["task_version"] == ["1.0"]
        assert metric.protocol["harness"].startswith("lm-eval 0.")
        measure, task = name.split("/")
        assert metric.protocol["papers"] == (PAPERS[task] == measure)
        assert metric.outcomes.kind == "correct"
        assert len(set(metric.outcomes.items)) == 1  # it is one question
        assert metric.outcomes.values == [metric.value] * 4
    assert found["acc/piqa"].outcomes.items != found["acc/openbookqa"].outcomes.items
    assert tokenizer.pad_token == load(tiny_checkpoint)[1].pad_token


def test_questions_of_a_group_count_alike():
    outcome = {
        "n-samples": {"a": {"effective": 10}, "b": {"effective": 30}},
        "versions": {"a": 1.0, "b": 1.0},
        "samples": {},
        "results": {
            "a": {"acc,none": 0.5, "acc_stderr,none": 0.1},
            "b": {"acc,none": 0.9, "acc_stderr,none": 0.02},
        },
    }
    (metric,) = task_metrics("mmlu", outcome, {}).values()
    assert metric.value == pytest.approx(0.8)
    assert metric.stderr == pytest.approx((1.0**2 + 0.6**2) ** 0.5 / 40)
    assert metric.n == 40
    assert metric.protocol["papers"]


def test_mmlu_goes_by_subject(file):
    rows = [HUB["mmlu_anatomy"]] * 2 + [{**HUB["mmlu_anatomy"], "subject": "virology"}] * 3
    spec = evaluator(["mmlu"], files={"mmlu": {"test": str(file("mmlu", rows))}}).spec("mmlu")
    tasks = manager().load([spec])["tasks"]
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        "mmlu_anatomy": 2,
        "mmlu_virology": 3,
    }


@pytest.mark.parametrize(
    ("task", "hint"), [("hellaswg", "hellaswag"), ("arc_esy", "arc_easy"), ("winogrand", "winogrande")]
)
def test_an_unknown_task_suggests_the_nearest(task, hint):
    with pytest.raises(ValueError, match=f"'{task}'.*did you mean '{hint}'"):
        evaluator([task])


def test_a_broken_line_is_named(file, tmp_path):
    path = file("piqa")
    with open(path, "a") as out:
        out.write('\n{"goal": ')
    with pytest.raises(ValueError, match=r"piqa\.jsonl, line 5"):
        read_questions("piqa", path)


@pytest.mark.parametrize("task", LOCAL)
def test_a_row_that_lacks_a_column_is_named_before_anything_runs(task, file, tiny_checkpoint):
    task = "mmlu" if task.startswith("mmlu") else task
    row = LOCAL.get(task, HUB["mmlu_anatomy"])
    broken = {key: value for key, value in row.items() if key != [*row][-1]}
    path = file(task, [row, broken])
    model, tokenizer = load(tiny_checkpoint)
    message = rf"{task}\.jsonl, line 2: not a question of {task}; expected .*{[*row][-1]}"
    with pytest.raises(ValueError, match=message):
        evaluator([task], files={task: str(path)}).protocol(model, tokenizer)


def test_zero_shots_are_none_whatever_the_task_has_of_its_own(file, tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    seen = {}

    def stop(**options):
        seen.update(options)
        raise InterruptedError

    with patch("cfsp.evaluation.harness.simple_evaluate", stop), pytest.raises(InterruptedError):
        evaluator(["piqa"], files={"piqa": str(file("piqa"))}).run(model, tokenizer)
    assert seen["num_fewshot"] == 0


def test_a_task_with_other_metrics_too_gives_its_accuracy(file, tiny_checkpoint, capfd):
    model, tokenizer = load(tiny_checkpoint)
    rows = [{"text": "the cat sat on a mat"}, {"text": "two dogs ran far away"}]
    task = evaluator(["lambada_openai"], files={"lambada_openai": str(file("lambada_openai", rows))})
    found = task.run(model, tokenizer)
    assert set(found) == {"acc/lambada_openai", "cut_prompts/lambada_openai"}
    assert found["acc/lambada_openai"].stderr is not None
    assert "bootstrapping" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("piqa", "data set baber/piqa cannot be loaded .no route to host.*FILE.* goal, sol1, sol2, label"),
        (
            "mmlu",
            r"data set cais/mmlu cannot be loaded .*\.files\.mmlu=FILE.*question, subject, choices, answer",
        ),
        ("arithmetic_1dc", "data set json cannot be loaded .*files.arithmetic_1dc=FILE"),
    ],
)
def test_a_data_set_out_of_reach_is_named_before_anything_runs(task, message, tiny_checkpoint):
    lost = patch("datasets.load_dataset_builder", side_effect=ConnectionError("no route to host"))
    with lost, pytest.raises(ValueError, match=message):
        evaluator([task]).protocol(*load(tiny_checkpoint))


def test_a_data_set_is_looked_up_once_by_all_that_says_where_it_lies(tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    look_up.cache_clear()
    with patch("datasets.load_dataset_builder") as asked:
        for _ in range(2):
            evaluator(["arithmetic_1dc", "mmlu"]).protocol(model, tokenizer)
    look_up.cache_clear()
    (place, name), options = asked.call_args_list[0]
    assert (place, name) == ("json", None)
    assert "single_digit" in options["data_files"]["validation"]
    assert [one.args[0] for one in asked.call_args_list] == ["json", "cais/mmlu"]


@pytest.mark.parametrize("task", ["piqa", "hellaswag"])
def test_the_harness_says_nothing(task, file, tiny_checkpoint, tmp_path, monkeypatch, capfd, caplog):
    """Neither warnings about a model in memory, nor bars, nor git's complaint about the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    model, tokenizer = load(tiny_checkpoint)
    capfd.readouterr()
    evaluator([task], files={task: str(file(task, [HUB[task]] * 4))}).run(model, tokenizer)
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_the_harness_speaks_again_afterwards():
    before = [getattr(module, name) for module, name, _ in SPEAKING]
    with without_noise():
        assert all(getattr(module, name) is other for module, name, other in SPEAKING)
        assert not logging.getLogger("lm_eval").isEnabledFor(logging.WARNING)
    assert [getattr(module, name) for module, name, _ in SPEAKING] == before
    assert logging.getLogger("lm_eval").isEnabledFor(logging.WARNING)


def test_the_protocol_knows_the_tokenizer(file, tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    asked = evaluator(["piqa"], files={"piqa": str(file("piqa"))})

    def name():
        return asked.protocol(model, tokenizer)["tokenizer_sha256"]

    first = name()
    tokenizer(["a", "a cat"], padding=True, truncation=True, max_length=4)  # leaves settings behind
    assert name() == first == asked.protocol(model, load(tiny_checkpoint)[1])["tokenizer_sha256"]
    tokenizer.add_tokens(["zyx"])
    second = name()
    tokenizer.eos_token = "zyx"
    assert len({first, second, name()}) == 3


def test_questions_beyond_the_window_are_counted(file, tiny_checkpoint, capsys):
    model, tokenizer = load(tiny_checkpoint)
    rows = [LOCAL["piqa"], {**LOCAL["piqa"], "goal": "the cat sat on a mat " * 20}]
    asked = evaluator(["piqa"], files={"piqa": str(file("piqa", rows))})
    cut = measure([asked], model, tokenizer, OFF, name="dense")["cut_prompts/piqa"]
    assert (cut.value, cut.n, cut.better, cut.protocol["papers"]) == (0.5, 4, "lower", False)
    told = "cfsp: dense: zero_shot piqa: 2 of 4 answers do not fit into 64 tokens"
    assert told in capsys.readouterr().err


def test_errors_are_those_of_means():
    samples = [{"filter": "none", "acc": value} for value in (1.0, 0.0, 0.0, 1.0, 1.0)]
    (figures,) = with_errors({"results": {"a": {}}, "samples": {"a": samples}})["results"].values()
    assert figures["acc_stderr,none"] == pytest.approx((0.6 * 0.4 / 4) ** 0.5)


@pytest.mark.parametrize(("task", "leaf"), [("gsm8k", "gsm8k"), ("wikitext", "wikitext"), ("glue", "cola")])
def test_a_task_without_an_accuracy_is_refused(task, leaf):
    with pytest.raises(ValueError, match=f"{task!r}.*{leaf!r} has neither acc nor acc_norm"):
        evaluator([task])


def test_groups_and_tags_of_accuracies_are_taken():
    assert evaluator(["mmlu", "ai2_arc", "mmlu_continuation", "blimp"])


def test_a_missing_file_is_an_error_before_anything_runs(tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    with pytest.raises(FileNotFoundError, match="zero_shot file of piqa"):
        evaluator(["piqa"], files={"piqa": "nowhere.jsonl"}).protocol(model, tokenizer)
