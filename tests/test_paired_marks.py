"""Marks of tables: only models of one size are compared, with a run or with the best of their column."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import tabled
from paired_answers import answers, keep

from cfsp.cli.tables import main
from cfsp.records.reading import read_records
from cfsp.tables.against_run import marked_tables
from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame
from cfsp.tables.rivals import best_runs, same_size

ROWS = ["--rows", "method", "--metric", "acc/x"]


def keep_right(folder, method, right, sparsity=0.2, **more):
    """Write a run that answers the first questions of 60 rightly, as many as said. 5 fewer are alike."""
    values = [1] * right + [0] * (60 - right)
    keep(folder, method, answers([1] * 50 + [0] * 10), answers(values), sparsity=sparsity, **more)


def shown(capsys, folder, against, form="markdown"):
    main([str(folder), *ROWS, "--against", against, "--paired", "--format", form])
    return capsys.readouterr().out


def cells_of(capsys, folder, against):
    """The marks and figures of the table, by method and sparsity."""
    found = csv.DictReader(io.StringIO(shown(capsys, folder, against, "csv")))
    names = ("mark", "difference", "low", "high", "p", "flips")
    return {(cell["method"], cell["sparsity"]): [cell[name] for name in names] for cell in found}


def marks_of(capsys, folder, against):
    return {key: mark for key, (mark, *_) in cells_of(capsys, folder, against).items()}


@pytest.fixture
def two_sizes(tmp_path):
    """Three methods at 20 % and 30 %; the first is best at 20 %, the second at 30 %."""
    for method, right, fewer in [("a", 50, 30), ("b", 47, 40), ("c", 20, 10)]:
        keep_right(tmp_path, method, right)
        keep_right(tmp_path, method, fewer, sparsity=0.3)
    return tmp_path / "records"


def test_a_run_is_compared_with_its_own_size_alone(two_sizes, capsys):
    found = cells_of(capsys, two_sizes, "b0.30")
    assert {key: mark for key, (mark, *_) in found.items() if key[1] == "0.3"} == {
        ("a", "0.3"): "",
        ("b", "0.3"): "≡",
        ("c", "0.3"): "",
    }
    assert all(values == ["?", "", "", "", "", ""] for key, values in found.items() if key[1] == "0.2")
    text = shown(capsys, two_sizes, "b0.30")
    assert "careful: 3 not compared: b0.30 has another size" in text
    assert "?: not compared" in text


def test_the_dense_model_is_compared_with_all_sizes(two_sizes, capsys):
    assert "?" not in "".join(marks_of(capsys, two_sizes, "dense").values())
    assert "another size" not in shown(capsys, two_sizes, "dense")


@pytest.mark.parametrize(
    ("removed", "active", "same"),
    [
        ((0.10, 0.105), (1, 1), True),
        ((0.10, 0.115), (1, 1), False),
        ((0.115, 0.10), (1, 1), False),
        ((0.0, 0.0), (0.5, 0.505), True),
        ((0.0, 0.0), (0.5, 0.52), False),
        ((0.0, 0.0), (0.5, 1), False),
    ],
)
def test_a_point_of_either_share_is_another_size(removed, active, same):
    pair = []
    for gone, share in zip(removed, active, strict=True):
        one = tabled.record("m", 0.2, 0.5)
        notes = {} if share == 1 else {"active": share}
        pair.append(replace(one, sparsity=one.sparsity | {"model": gone}, notes=notes))
    assert same_size(*pair) is same


def test_the_best_of_each_column_is_the_run_of_it(two_sizes, capsys):
    """A column looks as if it were compared with its bold run alone."""
    best = cells_of(capsys, two_sizes, "best")
    for sparsity, run in {"0.2": "a0.20", "0.3": "b0.30"}.items():
        alone = cells_of(capsys, two_sizes, run)
        column = {key: values for key, values in best.items() if key[1] == sparsity}
        assert column == {key: values for key, values in alone.items() if key[1] == sparsity}
    assert {mark for mark, *_ in best.values()} == {"≡", "≈", ""}
    text = shown(capsys, two_sizes, "best")
    inside = [cell for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert sum("**" in cell for cell in inside) == 2
    assert all(("**" in cell) == ("≡" in cell) for cell in inside)
    assert "≡: the best of its column itself" in text
    assert "≈: not distinguishable from the best of its column" in text


def test_of_equal_best_cells_one_is_the_best(tmp_path, capsys):
    for method in "ab":
        keep_right(tmp_path, method, 40)
    marks = marks_of(capsys, tmp_path, "best").values()
    assert sorted(marks) == sorted("≡≈")


@pytest.mark.parametrize(("better", "best"), [("lower", "b0.20"), ("higher", "a0.20")])
def test_of_cells_that_round_alike_the_one_ahead_is_the_best(better, best):
    values = {"a": 5.001, "b": 4.999}
    records = [tabled.record(name, 0.2, value, better=better) for name, value in values.items()]
    (one,) = comparisons(frame(records), tabled.NAME, "method")
    assert best_runs(one) == {(0.2,): ((best,), "")}


def test_a_column_without_a_best_is_not_compared(tmp_path, capsys):
    keep_right(tmp_path, "a", 50, removed=0.05)
    keep_right(tmp_path, "b", 30, removed=0.10)
    keep_right(tmp_path, "alone", 30, sparsity=0.5)
    assert set(marks_of(capsys, tmp_path, "best").values()) == {"?"}
    text = shown(capsys, tmp_path, "best")
    assert "2 not compared: their column has no best: 5.0% to 10.0% removed" in text
    assert "1 not compared: their column has no best: no rival" in text


def test_runs_of_equal_seeds_are_paired(tmp_path, capsys):
    """Across seeds the methods are alike, at equal seeds never."""
    for seed, best, other in [(0, 50, 20), (1, 25, 10)]:
        keep_right(tmp_path, "best", best, seed=seed)
        keep_right(tmp_path, "other", other, seed=seed)
    assert marks_of(capsys, tmp_path, "best0.21")["other", "0.2"] == "≈"
    assert marks_of(capsys, tmp_path, "best") == {("best", "0.2"): "≡", ("other", "0.2"): ""}
    keep_right(tmp_path, "near", 48, seed=0)
    keep_right(tmp_path, "near", 4, seed=1)
    keep_right(tmp_path, "near", 9, seed=2)
    assert marks_of(capsys, tmp_path, "best")["near", "0.2"] == "≈?"
    text = shown(capsys, tmp_path, "best")
    assert "1 not compared: the best of their column has no run of their seed" in text
    assert "runs of equal seeds are paired" in text


def test_every_seed_of_a_part_counts(tmp_path, capsys):
    windows = {"_target_": "cfsp.data.calibration.RandomWindows"}
    for seed, best, other in [(0, 50, 20), (1, 25, 10)]:
        keep_right(tmp_path, "best", best, calibration=windows | {"seed": seed})
        keep_right(tmp_path, "other", other, calibration=windows | {"seed": seed})
    assert marks_of(capsys, tmp_path, "best")["other", "0.2"] == ""


def test_the_only_run_of_the_best_is_paired_with_all(tmp_path, capsys):
    keep_right(tmp_path, "best", 50)
    for seed, right in [(0, 10), (1, 20), (2, 48)]:
        keep_right(tmp_path, "other", right, seed=seed)
    assert marks_of(capsys, tmp_path, "best") == {("best", "0.2"): "≡", ("other", "0.2"): "≈"}


def test_a_seed_of_another_size_is_not_compared(tmp_path, capsys):
    """The cells have one size, on average."""
    keep_right(tmp_path, "best", 50)
    for seed, removed in [(0, 0.08), (1, 0.12)]:
        keep_right(tmp_path, "other", 48, seed=seed, removed=removed)
    assert marks_of(capsys, tmp_path, "best")["other", "0.2"] == "?"
    assert "2 not compared: best0.20 has another size" in shown(capsys, tmp_path, "best")


@pytest.mark.parametrize("against", ["best", "dense", "b0.30"])
def test_scripts_get_the_tables_of_the_command(two_sizes, capsys, against):
    found, faults = read_records([two_sizes])
    assert not faults
    assert all(isinstance(path, Path) for path in found)
    command = shown(capsys, two_sizes, against)
    (one,) = marked_tables(found, "acc/x", "method", run=against)
    assert render([one], "markdown") == command
    (named,) = marked_tables(found, "acc/x", lambda record: record.config["method"] * 2, run=against)
    assert [*named.cells["method"]] == [method * 2 for method in one.cells["method"]]
    assert [*named.cells["mark"]] == [*one.cells["mark"]]


def test_the_best_needs_paired(two_sizes, capsys):
    with pytest.raises(SystemExit, match="1"):
        main([str(two_sizes), *ROWS, "--against", "best"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--against 'best': expected --paired beside the id of a record, dense or best" in error
