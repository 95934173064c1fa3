"""Check whether the fine scores of CFSP's release rank units differently, with its exact formulas.

Each takes |W| of the projections (down: outputs by neurons, transposed here; up, gate: neurons by
inputs), divides by the sum over a neuron's own weights and averages over the same weights. n is the
root mean square of the neuron's activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from calibrated import calibrated
from torch import Tensor

from cfsp.criteria.cfsp import CFSP
from cfsp.model.views import UnitView
from cfsp.plans.choose import best_units


def own(weight: Tensor) -> Tensor:
    """Return a neuron's weights as fractions of their sum. [units, other] -> [units, other]"""
    return weight / weight.sum(1, keepdim=True)


FORMULAS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "one_a": lambda down, up, gate, n: (own(down) * n.sqrt()).mean(1),
    "one_wa": lambda down, up, gate, n: (own(down * n) * n).mean(1),
    "three_w_one_a": lambda down, up, gate, n: ((own(down) + own(up) + own(gate)) * n).mean(1),
    "three_w_one_wa": lambda down, up, gate, n: ((own(down * n) + own(up) + own(gate)) * n).mean(1),
    "wanda_base": lambda down, up, gate, n: (down * n).mean(1),
}


def agreement(overrides: Sequence[str]) -> pd.DataFrame:
    """Return the fraction of kept neurons that the activation alone keeps too; the least of all blocks."""
    model, sites, stats = calibrated(overrides, {"input_sq_mean"})
    rows: dict[str, dict[str, float]] = {}
    for site in sites:
        view, statistics = UnitView(model, site), stats[site.name]
        n = statistics["input_sq_mean"].sqrt()[:, None]  # [units, 1]
        gate, up, down = (weight.abs().flatten(1).double() for weight in view.members())
        scores = {name: formula(down, up, gate, n) for name, formula in FORMULAS.items()}
        scores["eq. 8, as criterion=cfsp reads it"] = CFSP().score(view, statistics)
        for name, score in scores.items():
            for sparsity in (0.2, 0.5):
                count = round(site.units * (1 - sparsity))
                kept, by_activation = (set(best_units(one, count)) for one in (score, n[:, 0]))
                share = len(kept & by_activation) / count
                column = f"{sparsity:.0%} removed"
                rows.setdefault(name, {}).setdefault(column, 1.0)
                rows[name][column] = min(rows[name][column], share)
    return pd.DataFrame(rows).T
