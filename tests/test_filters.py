"""Filters: the records that people ask for."""

from dataclasses import replace

import pytest
from tabled import record

from cfsp.tables.compare import frame
from cfsp.tables.filters import Filter, select


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("criterion=cfsp", ["cfsp0.20", "cfsp0.51"]),
        ("criterion=c*,wanda_sp", ["cfsp0.20", "cfsp0.51", "wanda_sp0.30"]),
        ("criterion!=cfsp", ["flap0.20", "wanda_sp0.30"]),
        ("sparsity>=0.3", ["cfsp0.51", "wanda_sp0.30"]),
        ("sparsity<3e-1", ["cfsp0.20", "flap0.20"]),
        ("seed!=0", ["cfsp0.51"]),
        ("sites=[mlp]", ["cfsp0.20", "cfsp0.51", "flap0.20", "wanda_sp0.30"]),
        ("rank>4", ["flap0.20"]),
        ("rank!=8", ["cfsp0.20", "cfsp0.51", "wanda_sp0.30"]),
    ],
)
def test_filters(text, left):
    records = [
        record("cfsp", 0.2, 5),
        record("cfsp", 0.5, 5, seed=1),
        replace(record("flap", 0.2, 5, rank=8), id="flap0.20"),
        record("wanda_sp", 0.3, 5),
    ]
    assert select(frame(records), [Filter.parse(text)])["id"].tolist() == left


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty=0.2", "no field 'sparsty'; did you mean sparsity"),
        ("criterion=nothing", "no record is left; there criterion is cfsp"),
        ("sparsity>much", "expected a number after >"),
        ("criterion>2", "criterion is no number but cfsp"),
        ("what", "expected field=value"),
        ("criterion=[a", "not YAML"),
    ],
)
def test_wrong_filters_say_what_is_right(text, message):
    with pytest.raises(ValueError, match=message):
        select(frame([record("cfsp", 0.2, 5)]), [Filter.parse(text)])
