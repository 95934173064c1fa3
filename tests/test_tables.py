"""Tables: honest cells, no mixed protocols."""

from dataclasses import replace

import pytest

from cfsp.record import Metric, Record
from cfsp.tables import bar, compare, part_name

NAME = "perplexity/x"


def record(method, sparsity, value, protocol="a", seed=0):
    def metric(value):
        return Metric(value, None, 1, "lower", {"window": protocol})

    return Record(
        id=f"{method}{sparsity}{seed}",
        created="",
        config={"sparsity": sparsity, "method": method, "seed": seed},
        parameters={},
        sparsity={"model": sparsity / 2},
        widths={},
        unit_cost={},
        notes={},
        metrics={"dense": {NAME: metric(4.0)}, "pruned": {NAME: metric(value)}},
        seconds={},
        peak_bytes={},
        git=None,
        environment={},
    )


def method(one):
    return one.config["method"]


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


def test_mixed_protocols_are_refused():
    with pytest.raises(ValueError, match="mix 2 protocols"):
        compare([record("a", 0.2, 5), record("b", 0.2, 5, protocol="b")], NAME, method)


def test_mixed_models_are_refused():
    other = record("b", 0.2, 5)
    other.metrics["dense"][NAME] = replace(other.metrics["dense"][NAME], value=9.0)
    with pytest.raises(ValueError, match="the records are of 2 dense models"):
        compare([record("a", 0.2, 5), other], NAME, method)


def test_part_name_is_the_yaml_name():
    targets = {
        "x.CFSPReleased": "cfsp_released",
        "x.WandaSP": "wanda_sp",
        "x.FLAP": "flap",
        "x.GlobalRank": "global_rank",
    }
    assert {target: part_name({"_target_": target}) for target in targets} == targets


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="no records"):
        compare([], NAME, method)
    with pytest.raises(ValueError, match="no 'accuracy'"):
        compare([replace(record("a", 0.2, 5))], "accuracy", method)


def test_bar():
    assert bar(0.5, width=4) == "██░░"
