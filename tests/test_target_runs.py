"""Runs with a target: their ids, records, tables and pages, and what is refused on the command line."""

import pytest
from tabled import record as record_of
from trained_runs import own_text

from cfsp.cli.overrides import understood
from cfsp.records.identity import run_id
from cfsp.records.record import Record
from cfsp.records.wanted import target_of, wanted_of
from cfsp.tables.compare import compare, frame
from cfsp.tables.filters import Filter, select

SIZED = ["evaluation=[perplexity_text,size]", "evaluation.size.context=64"]
NONE = dict.fromkeys(("parameters", "memory", "macs", "latency")) | {
    "batch": 1,
    "context": 512,
    "tokens": 512,
}


def test_ids_change_with_a_target_and_not_without_one():
    old = {"sparsity": 0.2, "model": {"path": "m"}}
    assert run_id(old | {"target": NONE}) == run_id(old)
    assert run_id(old | {"target": NONE | {"batch": 4}}) == run_id(old)
    null = old | {"sparsity": None}
    of = {
        text: run_id(null | {"target": NONE | {"memory": text}}) for text in ("2GiB", "2048MiB", 2**31, "2GB")
    }
    assert len({of["2GiB"], of["2048MiB"], of[2**31]}) == 1
    assert of["2GiB"] != of["2GB"]
    other = run_id(null | {"target": NONE | {"memory": "2GiB", "batch": 2}})
    elsewhere = run_id(null | {"target": NONE | {"memory": "2GiB", "tokens": 2}})
    assert other != of["2GiB"] == elsewhere


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"parameters": 100e6}, "100M parameters"),
        ({"parameters": "1.5B"}, "1.5B parameters"),
        ({"memory": 2**31, "batch": 8, "context": 4096}, "2GiB with 8 x 4096 tokens"),
        ({"memory": "500MB", "batch": 1, "context": 10}, "500MB with 1 x 10 tokens"),
        ({"macs": 40e9, "tokens": 1024}, "40G MACs of 1024 tokens"),
        ({"latency": 0.8, "batch": 2, "tokens": 64}, "80% of the seconds of 2 x 64 tokens"),
        ({"latency": "0.12s", "batch": 2, "tokens": 64}, "120ms of 2 x 64 tokens"),
    ],
)
def test_a_target_is_shown_as_people_write_it(options, text):
    assert target_of(options).text == text
    assert target_of(target_of(options).data) == target_of(options)


def test_a_run_holds_what_was_asked_and_reached(cfsp, tmp_path):
    code, out, err = cfsp("target.memory=1100kB", "target.batch=2", "target.context=16", *SIZED)
    assert code == 0, err
    record = Record.load(out.splitlines()[-1])
    assert record.config["sparsity"] is None
    figures = {name: metric.value for name, metric in record.metrics["pruned"].items()}
    assert record.target["kind"] == "memory"
    assert record.target["asked"] == 1_100_000
    assert record.target["reached"] <= 1_100_000 < record.target["reached"] + 3 * 32 * 4
    cache = figures["cache_bytes"] / 64 * 16  # `size` counts 64 tokens here
    assert record.target["reached"] == figures["bytes_on_disk"] + 2 * cache
    assert "asked 1.1MB with 2 x 16 tokens" in out
    again = cfsp("target.memory=1100000", "target.batch=2", "target.context=16", *SIZED)
    assert "read, not run" in again[2][-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["target.parameters=9k", "sparsity=0.3"],
            "target.parameters=9k beside sparsity=0.3: a target",
        ),
        (["target.parameters=9k", "sparsity_of=model"], "beside sparsity_of=model: a target is of the whole"),
        (
            ["target.parameters=9k", "target.macs=1M"],
            "target.parameters=9k beside target.macs=1M: expected",
        ),
        (["target.memory=2gb"], "target.memory=2gb: expected bytes above 0, or a number with B, kB, MB, GB"),
        (["sparsity=null"], "sparsity=null: expected a share to remove, in [0, 1), or one of target.para"),
        (["target.size=3"], "target.size: no such option"),
        (["target=3"], "target=3: expected one of target.parameters"),
        (["target.parameters=1"], "at least 2"),
        (["target.parameters=270k", "schedule=routed_once", "sites=[mlp]"], "a routed MLP loses no weight"),
    ],
)
def test_refusals_are_one_line(cfsp, words, message):
    code, _, err = cfsp(*words, "evaluation=[]")
    assert code == 1
    errors = [line for line in err if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_target_in_a_config_needs_the_sparsity_null(cli):
    with pytest.raises(ValueError, match=r"target.parameters=9k beside sparsity=0.2: expected sparsity=null"):
        cli("target.parameters=9000")


def test_a_sweep_over_targets_is_one(tmp_path):
    words = ["-m", "target.parameters=9000,8000", "criterion=flap,magnitude"]
    assert understood(words) == [*words, "sparsity=null"]
    with pytest.raises(ValueError, match=r"target.parameters=9k,8k beside sparsity=0.2,0.3: a target"):
        understood(["-m", "target.parameters=9k,8k", "sparsity=0.2,0.3"])
    assert understood(["target={parameters:9k}"]) == ["target={parameters:9k}", "sparsity=null"]
    with pytest.raises(ValueError, match=r"target={parameters:9k} beside sparsity=0.3: a target"):
        understood(["target={parameters:9k}", "sparsity=0.3"])
    assert understood(["sparsity=0.3"]) == ["sparsity=0.3"]
    assert understood(["target.batch=3"]) == ["target.batch=3"]
    assert understood(["target.parameters=null", "sparsity=0.3"]) == [
        "target.parameters=null",
        "sparsity=0.3",
    ]


def test_tables_group_by_what_was_asked():
    small, large = ({"parameters": amount, "batch": 1} for amount in (80e6, 100e6))
    shares = [record_of("flap", 0.2, 9.0), record_of("cfsp", 0.2, 8.0)]
    found = [
        *(record_of("flap", 0.3, 5.0 + seed, seed=seed, target=large) for seed in (0, 1)),
        record_of("cfsp", 0.4, 4.0, target=large),
        record_of("cfsp", 0.5, 6.0, target=small),
    ]
    for record in found:
        record.config["sparsity"] = None
    table = compare([*shares, *found], "perplexity/x", "criterion")
    assert [*table.columns] == ["20% removed", "100M parameters", "80M parameters"]
    assert table.loc["flap", "100M parameters"].startswith("5.50 ± 0.71")
    assert frame(found)["target.parameters"].tolist() == [100e6, 100e6, 100e6, 80e6]
    both = frame([*shares, *found])
    assert len(select(both, [Filter.parse("sparsity<0.3")])) == 2
    assert len(select(both, [Filter.parse("target.parameters>=100e6")])) == 3
    assert len(select(both, [Filter.parse("sparsity=100M parameters")])) == 3
    with pytest.raises(ValueError, match="sparsity is no number but 100M parameters, 80M parameters"):
        select(frame(found), [Filter.parse("sparsity<0.3")])


def test_what_is_asked_sorts_from_large_models_to_small():
    shares = [wanted_of({"sparsity": share}) for share in (0.5, 0.2)]
    targets = [target_of({"parameters": amount}) for amount in ("80M", "100M")]
    assert [one.text for one in sorted([*shares, *targets])] == [
        "100M parameters",
        "80M parameters",
        "20%",
        "50%",
    ]


def test_a_page_shows_targets(cfsp, tmp_path):
    from cfsp.cli.report import main

    for words in (["target.parameters=270k"], ["target.parameters=269k"], ["sparsity=0.1"]):
        code, _, err = cfsp(*words)
        assert code == 0, err
    import sys

    sys.argv = ["cfsp-report", f"{tmp_path}/results/records", "-o", f"{tmp_path}/page.html"]
    main()
    assert "270k parameters" in (tmp_path / "page.html").read_text()


TRAINED = [
    "schedule=movement",
    "schedule.pruner.tile=4",
    "schedule.pruner.learning_rate=0.3",
    "schedule.training.max_steps=8",
    "schedule.training.batch_size=4",
    "schedule.training.evaluate_every=4",
]


@pytest.mark.parametrize("target", ["parameters=270k", "memory=1090kB"])
def test_a_training_ends_at_its_target(cli, text_file, target):
    words = [*TRAINED, *own_text(text_file), "sparsity=null", f"target.{target}", "target.context=16"]
    record = Record.load(cli(*words, "evaluation=[]"))
    assert record.target["reached"] <= record.target["asked"] < record.target["reached"] + 3 * 32 * 4
    assert record.schedule_training["steps"] == 8


def test_a_training_that_cannot_know_how_much_goes_is_refused(cli, text_file):
    words = [*TRAINED, *own_text(text_file), "sparsity=null", "target.memory=1090kB", "target.context=16"]
    with pytest.raises(ValueError, match=r"expected sites=\[mlp\] of one kind of block, or target"):
        cli(*words, "sites=[mlp,attention]", "evaluation=[]")
