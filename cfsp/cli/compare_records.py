"""`cfsp-compare` of records: two runs, or a run and its dense model, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfsp.records.outcome_file import read_outcomes
from cfsp.records.record import Record
from cfsp.report.base import Section
from cfsp.report.paired_runs import Side, paired_section

DENSE = "dense"


def are_records(given: Sequence[str]) -> bool:
    """Return whether the arguments are records, or one and "dense".

    Raises:
        ValueError: a .json file that is not there, "dense" without a record, or a record beside a model,
            whose answers to single questions are not known.
    """
    for lost in (one for one in given if one.endswith(".json") and not Path(one).exists()):
        raise ValueError(f"{lost}: no such file; expected a record, such as results/records/ID.json")
    files = [one for one in given if one.endswith(".json") and Path(one).is_file()]
    if files and len(files) + given.count(DENSE) < len(given):
        (model,) = [one for one in given if one not in (*files, DENSE)]
        raise ValueError(f"{files[0]} is a record and {model} is not; expected two records, or one and dense")
    if DENSE in given and not files and not Path(DENSE).exists():
        raise ValueError(f"{' '.join(given)}: dense is the dense model of a record; expected one beside it")
    return bool(files)


def compare_records(given: Sequence[str]) -> list[Section]:
    """Return the paired comparison of two records; "dense" is the dense model of the other one."""
    paths = {one: Path(one) for one in given if one != DENSE}
    records = {one: Record.load(path) for one, path in paths.items()}
    (first, *_) = paths
    sides = [
        side(paths[first], records[first], DENSE)
        if one == DENSE
        else side(paths[one], records[one], "pruned")
        for one in given
    ]
    return [paired_section(*sides)]


def side(path: Path, record: Record, model: str) -> Side:
    """Return one side: the "dense" or the "pruned" model of a record."""
    file = read_outcomes(path, record)
    kept = {name: found for name in record.metrics[model] if (found := file.read(model, name))}
    return record.id if model == "pruned" else f"the dense model of {record.id}", record.metrics[model], kept
