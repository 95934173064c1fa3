"""A routed classifier is measured on the rows of its task: how much of it they use."""

import pytest
from labelled import saved_encoder

from cfsp.running import run

MOE = ["+experiment=moefication", "sparsity=0", "schedule.maker.expert_size=4", "schedule.maker.epochs=1"]


def test_a_run_tells_what_the_rows_of_its_task_use(task_run, tmp_path):
    path = saved_encoder(tmp_path / "bert")
    measures = ["evaluation=[task,routing_task]", "evaluation.routing_task.batches=[1,4]"]
    code, record, err = task_run(f"model.path={path}", *MOE, "schedule.active=0.25", *measures)
    assert code == 0, err
    dense, found = (
        {name: one for name, one in record.metrics[of].items() if "/sst2" in name}
        for of in ("dense", "pruned")
    )
    assert dense["active_share/sst2"].value == 1
    assert found["active_share/sst2"].value == pytest.approx(0.25, abs=0.03)
    assert found["active_share/sst2"].value < found["union_share_of_4/sst2"].value < 1
    assert found["active_share/sst2"].n == dense["active_share/sst2"].n > 32
    assert found["accuracy/sst2"].n == 32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluation.routing_task.batches=[64]"], "with 32 rows of task sst2; expected at least 64 rows"),
        (["evaluation.routing_task.batches=[0]"], "routing_task batches=0: expected a whole number"),
        (["task=summarization"], "one stack of blocks, and those of task summarization have two"),
        (["evaluation.routing_task.limit=0"], "limit=0: expected a whole number"),
    ],
)
def test_what_it_cannot_measure_is_told_before_the_plan(task_run, tmp_path, words, message, monkeypatch):
    monkeypatch.setattr(run, "STAGES", {"load": run.STAGES["load"]})  # nothing after it
    path = saved_encoder(tmp_path / "bert")
    code, _, err = task_run(f"model.path={path}", *MOE, "evaluation=[routing_task]", *words)
    assert code != 0
    assert message in err
