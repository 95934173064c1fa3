"""Runs of LoRAShear: exact size, restarts, refusals, recipes."""

import pytest
from killed_runs import killed_and_whole
from pages import understood
from trained_runs import assert_loads_anywhere, own_text

from cfsp.data.paragraphs import Paragraphs
from cfsp.data.sources import Prose
from cfsp.records.record import Record

SHORT = [
    "schedule=lorashear",
    "sites=[mlp,attention]",
    "schedule.pruner.periods=3",
    "schedule.training.max_steps=24",
    "schedule.training.batch_size=4",
    "schedule.training.warmup=0",
    "schedule.training.learning_rate=1e-2",
    "schedule.training.evaluate_every=6",
]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("words", [[], ["+schedule.training.arguments.optim=sgd"]])
def test_a_run_removes_exactly_what_is_asked_and_loads_anywhere(cli, text_file, tmp_path, words):
    record = Record.load(cli(*SHORT, *own_text(text_file), *words, "sparsity=0.5", f"save={tmp_path}/out"))
    assert 0.5 <= record.sparsity["sites"] < 0.58
    training = record.schedule_training
    assert (training["steps"], training["met"]) == (24, True)
    assert training["reached"] == pytest.approx(record.sparsity["sites"])
    assert record.density > 0.999  # nothing zero is left
    assert_loads_anywhere(tmp_path / "out")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("share", "count"), [(0.3, 1), (0.5, 2)])
def test_what_the_knowledge_analysis_protects_survives(cli, text_file, tmp_path, share, count):
    """Its sites keep every unit, the others lose exactly what is asked, and the notes say why."""
    words = [*SHORT, *own_text(text_file), "allocator.protect=knowledge", "+allocator/knowledge=default"]
    words += [f"allocator.knowledge.share={share}", "sparsity=0.25", f"save={tmp_path}/out"]
    record = Record.load(cli(*words))
    notes = record.notes["knowledge"]
    means = {site: sum(values) for site, values in notes["deviations"].items()}
    assert [*notes["protected"]] == sorted(means, key=lambda site: -means[site])[:count]
    for site in notes["protected"]:
        assert record.widths[site][0] == record.widths[site][1]
    free = {site: width for site, width in record.widths.items() if site not in notes["protected"]}
    total = sum(record.unit_cost[site] * before for site, (before, _) in record.widths.items())
    gone = sum(record.unit_cost[site] * (before - left) for site, (before, left) in free.items())
    assert 0 <= gone - 0.25 * total < min(record.unit_cost[site] for site in free)
    assert record.schedule_training["reached"] == pytest.approx(gone / total)
    assert record.density > 0.999  # nothing of a protected site is zero either
    assert_loads_anywhere(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(tiny_overrides, text_file, tmp_path):
    words = [
        *tiny_overrides(),
        *SHORT,
        *own_text(text_file),
        "sparsity=0.5",
        "schedule.training.max_steps=120",
    ]
    found, expected, err = killed_and_whole(words, tmp_path, "*/schedule/checkpoint-60")
    assert "begins anew" not in err
    assert found.widths == expected.widths
    for key in ("steps", "tokens", "reached", "periods", "held_out_curve"):
        assert found.schedule_training[key] == expected.schedule_training[key], key
    for name, metric in expected.metrics["pruned"].items():
        assert found.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["schedule.parameters.targets=[o_proj]"],
            "mlp has no adapter on any of 2 layers that make its units",
        ),
        (["schedule.pruner.periods=20", "schedule.training.max_steps=4"], "do not fit into 4 steps"),
        (["sites=[attention]", "schedule.pruner.periods=9"], r"periods=9, but at most \d units are to go"),
        (["sites=[query_heads]"], "expected only mlp, attention and cross_attention in sites"),
        (
            ["recovery/parameters@schedule.parameters=full"],
            "expected recovery/parameters@schedule.parameters=lora",
        ),
        (["schedule.parameters.merge=false"], "with merge=true"),
        (["schedule.pruner.variant=linear"], "expected one of paper, linear_decay"),
        (["schedule.pruner.warmup=0"], "expected a warmup above 0"),
        (["schedule.pruner.epsilon=1"], r"expected a number in \[0, 1\)"),
        (["allocator.protect=[0,1]"], "every block is protected"),
        (["allocator.protect=[0]", "sparsity=0.9"], "expected at most 0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(cli, text_file, words, message):
    with pytest.raises(ValueError, match=message):
        cli(*SHORT, *own_text(text_file), "sparsity=0.3", *words)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["llama_7b_20", "llama_7b_20_alpaca", "llama_7b_50", "llama_7b_50_alpaca"])
def test_the_papers_recipes_are_understood(name):
    parts = understood(f"cfsp +experiment=lorashear/{name}")
    assert parts.schedule.pruner.on_adapters
    assert parts.schedule.sparsity == float(f"0.{name[9]}")
    assert parts.recovery.rounds > 1
    assert ("alpaca" in name) == ({*parts.recovery.data.sources} == {"alpaca"})
    assert parts.method.allocator.analysis is not None
    prose = [source for source in parts.recovery.data.sources.values() if isinstance(source, Prose)]
    assert len(prose) == (0 if "alpaca" in name else 4)
    for source in prose:  # paragraphs of 64 tokens or fewer are dropped, BookCorpus' sentences are joined
        assert source.min_tokens == 65
        assert isinstance(source.text, Paragraphs)
        assert source.text.rows == (16 if "bookcorpus" in source.label else 1)
