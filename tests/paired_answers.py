"""Records with outcomes of single questions, in a folder."""

from dataclasses import replace

import tabled

from cfsp.records.outcome_file import named_outcomes, write_outcomes
from cfsp.records.outcomes import Outcomes


def answers(values, first=0):
    return Outcomes("correct", [f"q{first + place}" for place in range(len(values))], [*values])


def split(lost, won, both=20, neither=10):
    """Answers of two models: right with the one alone, with the other alone, with both, with none."""
    one = [1] * lost + [0] * won + [1] * both + [0] * neither
    other = [0] * lost + [1] * won + [1] * both + [0] * neither
    return answers(one), answers(other)


def keep(folder, method, dense, pruned, protocol="a", seed=0, sparsity=0.2, removed=None, **config):
    """Write a record of two models' answers, and the answers themselves. removed: of all parameters."""
    made = tabled.record(method, sparsity, 0.5, protocol, seed, better="higher", name="acc/x", **config)
    if removed is not None:
        made = replace(made, sparsity=made.sparsity | {"model": removed})

    def metric(model, outcomes):
        mean = sum(outcomes.values) / len(outcomes.values)
        return {"acc/x": replace(made.metrics[model]["acc/x"], value=mean, outcomes=outcomes)}

    metrics = {"dense": metric("dense", dense), "pruned": metric("pruned", pruned)}
    made = named_outcomes(replace(made, metrics=metrics))
    write_outcomes(folder, made)
    made.save(folder)


def write_results(folder):
    """Two runs; one is far from the dense model, one near, and one keeps no outcomes."""
    keep(folder, "far", *split(20, 1))
    dense, near = split(4, 3, both=34, neither=10)
    keep(folder, "near", Outcomes("correct", dense.items, split(20, 1)[0].values), near)
    tabled.record("old", 0.2, 45 / 51, better="higher", name="acc/x").save(folder)
    return folder / "records"
