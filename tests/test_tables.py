"""Tables: honest cells, no mixed protocols."""

import io
import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tabled import NAME, record

from cfsp.cli.tables import main
from cfsp.records.identity import part_name
from cfsp.records.record import Metric
from cfsp.running.build import CONF, choices
from cfsp.tables.compare import compare, comparisons, frame, wide
from cfsp.tables.formats import render
from cfsp.tables.frame import find_fields, find_metrics


def method(one):
    return one.config["method"]


def only(records, **options):
    (one,) = comparisons(frame(records), NAME, "criterion", **options)
    return one


@pytest.fixture
def saved(tmp_path):
    """Save records where the command finds them."""

    def save(*records):
        for one in records:
            one.save(tmp_path)
        return str(tmp_path / "records")

    return save


def test_compare_has_methods_as_rows_best_first():
    table = compare(
        [record("b", 0.2, 6), record("a", 0.2, 5), record("a", 0.5, 9), record("b", 0.5, 8)], NAME, method
    )
    assert [*table.columns] == ["20% removed", "50% removed"]
    assert [*table.index] == ["b", "a"]
    assert table.loc["a", "20% removed"] == "5.00 (−10.0%)"
    assert table.index.name == "perplexity/x; dense 4.00"


def test_compare_averages_over_seeds():
    table = compare([record("a", 0.2, value, seed=seed) for seed, value in enumerate([4, 6])], NAME, method)
    assert table.loc["a", "20% removed"] == "5.00 ± 1.41 (−10.0%)"


def test_a_perplexity_of_millions_takes_no_digits_from_the_others():
    table = compare([record("a", 0.2, 5.25), record("b", 0.2, 2432722.25)], NAME, method)
    assert table.loc["a", "20% removed"] == "5.25 (−10.0%)"
    assert table.loc["b", "20% removed"] == "2432722 (−10.0%)"


def test_compare_takes_fields_as_rows():
    table = compare([record("cfsp", 0.2, 5), record("flap", 0.2, 6)], NAME, "criterion")
    assert [*table.index] == ["cfsp", "flap"]


def test_mixed_protocols_are_refused():
    with pytest.raises(ValueError, match="mix 2 protocols: they differ in window"):
        compare([record("a", 0.2, 5), record("b", 0.2, 5, protocol="b")], NAME, method)


def test_mixed_models_are_refused():
    other = record("b", 0.2, 5)
    other.metrics["dense"][NAME] = replace(other.metrics["dense"][NAME], value=9.0)
    with pytest.raises(ValueError, match="the records are of 2 dense models"):
        compare([record("a", 0.2, 5), other], NAME, method)


def test_rounding_of_another_machine_is_no_other_model():
    other = record("b", 0.2, 5)
    other.metrics["dense"][NAME] = replace(other.metrics["dense"][NAME], value=4.0 + 1e-6)
    assert len(compare([record("a", 0.2, 5), other], NAME, method)) == 2


def test_times_of_a_dense_model_tell_no_models_apart():
    pair = [record("a", 0.2, 5), record("b", 0.2, 6)]
    for one, dense in zip(pair, (4.0, 4.3), strict=True):
        protocol = {"measure": "latency"}
        one.metrics["pruned"][NAME] = replace(one.metrics["pruned"][NAME], protocol=protocol)
        one.metrics["dense"][NAME] = Metric(dense, None, 1, "lower", protocol)
    assert only(pair).cells["mean"].tolist() == [5.0, 6.0]


def test_protocols_make_tables_of_their_own_that_say_what_differs():
    made = comparisons(frame([record("a", 0.2, 5), record("a", 0.2, 6, protocol="b")]), NAME, "criterion")
    assert [one.cells["mean"].tolist() for one in made] == [[5.0], [6.0]]
    assert [one.caption.split(":")[0] for one in made] == [f"{NAME}, window a", f"{NAME}, window b"]


def test_a_table_of_all_windows_says_so_and_notes_count_in_english():
    some, whole = record("a", 0.2, 5), record("a", 0.2, 6)
    protocol = some.metrics["pruned"][NAME].protocol
    some.metrics["pruned"][NAME] = replace(some.metrics["pruned"][NAME], protocol=protocol | {"windows": 32})
    lacking = record("b", 0.2, 5, name="size")
    made = comparisons(frame([some, whole, lacking]), NAME, "criterion")
    assert [one.caption.split(":")[0] for one in made] == [f"{NAME}, windows 32", f"{NAME}, windows all"]
    assert made[0].notes == (f"1 record has no {NAME}",)


def test_unlike_runs_do_not_share_a_cell():
    pair = [record("a", 0.2, 4, allocator="u"), record("a", 0.2, 6, allocator="v", seed=1)]
    with pytest.raises(
        ValueError,
        match=r"criterion=a, sparsity=0\.2: they differ in allocator; .*--average",
    ):
        only(pair)
    averaged = only(pair, average=True)
    assert averaged.cells["mean"].tolist() == [5.0]
    assert "careful: averaged over allocator" in averaged.notes[0]


def test_a_run_counts_once_and_has_one_figure():
    one = record("a", 0.2, 4)
    again = replace(one, id="again", config=one.config | {"evaluation": {"more": 1}})
    assert only([one, again]).cells["n"].tolist() == [1]
    other = record("a", 0.2, 5)
    with pytest.raises(ValueError, match=r"one run has several figures .*: a0\.20, a0\.20"):
        only([one, other])


@pytest.mark.parametrize(("better", "best"), [("lower", [0, 1]), ("higher", [0])])
def test_best_of_a_column_is_bold_and_ties_are(better, best):
    values = {"a": 5.001, "b": 4.999, "c": 9.0}
    table = only([record(name, 0.2, value, better=better) for name, value in values.items()])
    cells = wide(table, bold=lambda text: f"**{text}**")["20% removed"]
    assert [place for place, cell in enumerate(cells) if "**" in cell] == best
    assert cells.iloc[0] == ("**5.00 (−10.0%)**" if better == "lower" else "**9.00 (−10.0%)**")


def test_a_column_of_unlike_shares_has_no_best():
    more, less = record("a", 0.2, 5), record("b", 0.2, 4)
    less = replace(less, sparsity=less.sparsity | {"model": 0.05})
    cells = wide(only([more, less]), bold=lambda text: f"**{text}**")["20% removed"]
    assert not any("**" in cell for cell in cells)


def test_absent_cells_and_odd_numbers_of_seeds():
    records = [record(name, 0.2, 5 + seed, seed=seed) for name in "abc" for seed in range(3)]
    table = wide(only([*records[:-1], record("a", 0.5, 9)]))
    assert table.loc["c", "20% removed"] == "5.50 ± 0.71 [n=2] (−10.0%)"
    assert table.loc["b", "50% removed"] == "-"


def test_overlaps_are_told():
    warned = replace(record("a", 0.2, 5), overlaps=["x is measured on, and more", "y is measured on"])
    assert only([warned]).notes == ("careful: x is measured on, and more",)
    assert "careful" in compare([warned], NAME, method).index.name


def test_frame_has_leaves_and_names_of_parts():
    recovery = {"_target_": "x.Finetune", "parameters": {"_target_": "x.Lora", "rank": 8}}
    recovery["objective"] = {"_target_": "x.NextToken"}
    config = {
        "recovery": recovery,
        "compensation": {"_target_": "x.NoCompensation"},
        "model": {"_target_": "cfsp.checkpoints.load.load", "path": "some/where/Llama", "revision": None},
        "calibration": {"protect": [], "bos": True},
    }
    row = frame([record("wanda_sp", 0.2, 5, **config)]).iloc[0]
    expected = {
        "criterion": "wanda_sp",
        "recovery": "lora",
        "recovery.parameters": "lora",
        "recovery.parameters.rank": 8,
        "compensation": "none",
        "model": "Llama",
        "model.revision": "null",
        "calibration.protect": "[]",
        "calibration.bos": "true",
        "sites": "mlp",
        "removed.model": 0.1,
        "value": 5,
        "dense": 4.0,
    }
    assert {name: row[name] for name in expected} == expected


def test_names_of_metrics_and_fields():
    there = ["perplexity/a:test", "perplexity/b:test", "acc/boolq"]
    assert find_metrics(there, "acc,perplexity/b") == ["acc/boolq", "perplexity/b:test"]
    assert find_metrics(there, "perplexity/*") == there[:2]
    assert find_metrics(there) == there[:2]
    assert find_metrics(there[2:]) == ["acc/boolq"]
    with pytest.raises(ValueError, match=r"may be perplexity/a:test, .* or --metric 'perplexity\*' for all"):
        find_metrics(there, "perplexity")
    with pytest.raises(ValueError, match="did you mean acc/boolq"):
        find_metrics(there, "acc/bolq")
    with pytest.raises(ValueError, match=r"did you mean allocator\.round_to"):
        find_fields(["allocator.round_to", "seed"], "seed,round_to")


def test_csv_gives_the_numbers_back():
    records = [record(name, 0.2, value, seed=seed) for name in "ab" for seed, value in enumerate([4.25, 6.5])]
    read = pd.read_csv(io.StringIO(render([only(records)], "csv")))
    assert read["mean"].tolist() == [5.375, 5.375]
    assert read["std"].tolist() == pytest.approx([pd.Series([4.25, 6.5]).std()] * 2)
    assert read[["n", "removed"]].to_numpy().tolist() == [[2, 0.1]] * 2
    assert json.loads(read["protocol"][0]) == {"text": "x", "window": "a"}


def test_command_prints_a_table(saved, capsys):
    main([saved(record("cfsp", 0.2, 5), record("flap", 0.2, 6), record("flap", 0.5, 7)), "sparsity<0.5"])
    out = capsys.readouterr().out
    assert "**5.00 (−10.0%)**" in out
    assert "50% removed" not in out


def test_command_names_a_broken_record_and_shows_the_others(saved, capsys, tmp_path):
    folder = saved(record("cfsp", 0.2, 5))
    (tmp_path / "records" / "broken.json").write_text('{"id": "bro')
    (tmp_path / "records" / "list.json").write_text("null")
    with pytest.raises(SystemExit, match="1"):
        main([folder, "--format", "csv"])
    captured = capsys.readouterr()
    assert "5.0" in captured.out
    assert [line.split("/")[-1][:9] for line in captured.err.splitlines()] == ["broken.js", "list.json"]


def test_command_writes_a_file(saved, tmp_path, capsys):
    main([saved(record("cfsp", 0.2, 5)), "--output", str(tmp_path / "made" / "table.md")])
    assert "5.00" in (tmp_path / "made" / "table.md").read_text()
    assert capsys.readouterr().out == ""


def test_command_shows_a_table_for_every_perplexity(saved, capsys):
    pair = record("cfsp", 0.2, 5), record("cfsp", 0.3, 6, name="perplexity/y")
    main([saved(*pair, record("cfsp", 0.4, 1, name="size"))])
    out = capsys.readouterr().out
    assert re.findall(r"\*\*(\S+): .*, dense", out) == ["perplexity/x", "perplexity/y"]


def test_command_finds_folders_by_globs(saved, tmp_path, capsys):
    saved(record("cfsp", 0.2, 5))
    main([f"{tmp_path}/rec*", "--metric", "perplexity/x"])
    assert "5.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no records; expected a folder"),
        (["sparsity=0.2"], "no place of records"),
        (["RECORDS", "--rows", "critrion"], "did you mean criterion"),
        (["RECORDS", "--metric", "acc"], "no metric 'acc'; expected one of perplexity/x"),
        (["RECORDS", "--strict"], "mix 2 protocols"),
        (["RECORDS", "--rows", "sparsity"], "asked for as rows and as columns"),
        (["RECORDS", "--papers"], "no folder papers/"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(arguments, message, saved, capsys, monkeypatch):
    folder = saved(record("cfsp", 0.2, 5), record("flap", 0.2, 5, protocol="b"))
    with pytest.raises(SystemExit, match="1"):
        main([folder if one == "RECORDS" else one for one in arguments])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.quick_cases(9)
@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in ("criterion", "allocator", "compensation", "schedule", "recovery")
        for name in choices(group)
        if name not in ("cfsp", "llm_pruner") or group != "recovery"  # presets of others
    ],
)
def test_a_part_is_called_what_the_user_typed(group, name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [f"{group}={name}"]))
    assert part_name(config[group]) == name


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="no records"):
        compare([], NAME, method)
    with pytest.raises(ValueError, match="no 'accuracy'"):
        compare([replace(record("a", 0.2, 5))], "accuracy", method)
