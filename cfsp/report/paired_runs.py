"""The section of a paired comparison of two runs, for the terminal or a page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cfsp.records.outcomes import Outcomes
from cfsp.records.protocols import difference_words
from cfsp.records.record import Metric
from cfsp.report.base import MISSING, Cell, Section, Table, number, word
from cfsp.tables.paired import LEVEL, Paired, paired

COLUMNS = {
    "metric": "",
    "n": "questions or windows",
    "A": "",
    "B": "",
    "B − A": "difference; of perplexities the difference of their natural logarithms (+0.1 is 10.5% more)",
    "interval": f"{1 - LEVEL:.0%} interval of B − A over the same questions or windows",
    "flips": "questions whose answer changed between right and wrong",
    "p": "of McNemar's exact test, for right and wrong answers",
    "verdict": f"differ: p < {LEVEL:g}, or without a p an interval that leaves out 0; ≈: not distinguishable",
}

Side = tuple[str, Mapping[str, Metric], Mapping[str, Outcomes]]
"""The name of a run, its metrics, and its outcomes by metric."""


def paired_section(one: Side, other: Side) -> Section:
    """Compare the metrics that both runs keep outcomes of.

    Raises:
        ValueError: there are none, or those are of different questions or protocols.
    """
    names = [name for name in one[2] if name in other[2]]
    if not names:
        raise ValueError(
            f"{one[0]} keeps outcomes of {', '.join(one[2]) or 'nothing'}, {other[0]} of "
            f"{', '.join(other[2]) or 'nothing'}; expected a metric of both"
        )
    rows = []
    for name in names:
        if apart := difference_words([one[1][name].protocol, other[1][name].protocol]):
            raise ValueError(f"{name}: {apart}; expected the same")
        try:
            rows.append(row(name, paired(one[2][name], other[2][name])))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    intro = f"A is {one[0]}, B is {other[0]}, on the same questions and windows."
    title = "The metrics that both keep outcomes of."
    kept = [place for place in range(len(COLUMNS)) if any(cells[place] is not MISSING for cells in rows)]
    columns = {name: meaning for place, (name, meaning) in enumerate(COLUMNS.items()) if place in kept}
    table = Table(title, columns, [[cells[place] for place in kept] for cells in rows])
    return Section("paired", "Paired comparison", "", intro, {}, tables=[table])


def row(name: str, pair: Paired) -> list[Cell]:
    """Return the cells of a metric. Means of windows in nats are shown as perplexities where they are one."""
    shown, form = (math.exp, ".2f") if name.startswith("perplexity/") else (float, ".4f")
    interval = MISSING if pair.low is None else word(f"{pair.low:+.4f} to {pair.high:+.4f}")
    return [
        word(name),
        number(pair.n, ",d"),
        number(shown(pair.one), form),
        number(shown(pair.other), form),
        number(pair.difference, "+.4f"),
        interval,
        MISSING if pair.flips is None else number(pair.flips, ".1%"),
        MISSING if pair.p is None else number(pair.p, ".2g"),
        word("differ" if pair.distinguishable else "≈"),
    ]
