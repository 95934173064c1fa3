"""The few runs of the study that the README and the documentation's first page show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from cfsp.records.outcome_file import read_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Record
from cfsp.report.groups import perplexities
from cfsp.storage.atomic import replacing
from cfsp.tables.paired import paired

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
SIZES = (0.2, 0.3, 0.5)
REFITS = ("refit (ridge 1, relative)", "refit (ridge 1)", "refit")
ROWS = (
    ("magnitude", "", ("magnitude",)),
    ("Wanda-sp", "", ("wanda_sp",)),
    ("LLM-Pruner's Taylor", "", ("taylor",)),
    ("FLAP", "", ("flap / mean / global_rank",)),
    ("CFSP as released", "", ("cfsp_released",)),
    ("`+experiment=refit`", "", REFITS),
    ("`+experiment=refit compensation.ridge=1` ᵃ", "_in_domain", REFITS),
    ("`+experiment=obs_fisher` ᵃ", "_in_domain", ("obs_fisher",)),
    ("CFSP as released ᵃ", "_in_domain", ("cfsp_released",)),
)
"""Label, part of the study, and names of the method in its table; the first that a model has is shown."""

SUMMARISED = ("", "_in_domain", "_cost", "_cost_in_domain")
"""The parts of the study that the table is of."""

Runs = Mapping[tuple[str, str], Mapping[str, Mapping[Path, Record]]]
"""(model, part) -> method -> its runs, by file."""


class Measured(NamedTuple):
    """A perplexity, with the loss of each window."""

    value: float
    outcomes: Outcomes | None


def summary(runs: Runs, first: str, second: str) -> str:
    """Return the table: perplexities of both models, minutes and memory of the first.

    Bold: the best of a column, and those that the windows cannot tell from it.
    """
    head = [f"{share:.0%}".replace("%", " %") for share in SIZES]
    lines = [
        f"| | {' | '.join(head)} | minutes | GB | {' | '.join(f'Gemma, {one}' for one in head)} |",
        "|---|" + "---|" * (2 * len(SIZES) + 2),
    ]
    values = [[*cells(runs, first, *row[1:]), *cells(runs, second, *row[1:])] for row in ROWS]
    best = [min((one for one in column if one), key=itemgetter(0)) for column in zip(*values, strict=True)]
    for (label, part, names), row in zip(ROWS, values, strict=True):
        shown = [text(one, least) for one, least in zip(row, best, strict=True)]
        shown[len(SIZES) : len(SIZES)] = cost(runs, first, part, names)
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def cells(runs: Runs, model: str, part: str, names: Sequence[str]) -> list[Measured | None]:
    """Return what the row has at each size; None where it was not run.

    Raises ValueError if a size has several runs.
    """
    found: dict[float, tuple[Path, Record]] = {}
    for path, one in of(runs, model, part, names).items():
        if (size := one.config["sparsity"]) in found:
            raise ValueError(f"{names[0]} of {model} without {size:.0%}: several runs; expected one")
        found[size] = path, one
    return [measured(*found[size]) if size in found else None for size in SIZES]


def measured(path: Path, record: Record) -> Measured:
    (measure,) = perplexities([record])
    kept = read_outcomes(path, record).read("pruned", measure.names[0]) if record.outcomes else None
    return Measured(measure.read(record), kept)


def of(runs: Runs, model: str, part: str, names: Sequence[str]) -> Mapping[Path, Record]:
    methods = runs.get((model, part), {})
    return next((methods[name] for name in names if name in methods), {})


def text(one: Measured | None, best: Measured) -> str:
    if one is None:
        return "-"
    shown = f"{one.value:,.0f}" if one.value >= 1000 else f"{one.value:.2f}"
    both = one.outcomes is not None and best.outcomes is not None
    alike = one is best or (both and not paired(best.outcomes, one.outcomes).distinguishable)
    return f"**{shown}**" if alike else shown


def cost(runs: Runs, model: str, part: str, names: Sequence[str]) -> list[str]:
    """Return the minutes and the memory of the plan."""
    for one in of(runs, model, f"_cost{part}", names).values():
        return [f"{one.seconds['plan'] / 60:.1f}", f"{max(one.peak_bytes.values()) / 1e9:.1f}"]
    return ["-", "-"]


def put(page: Path, table: str) -> None:
    """Replace what stands between the page's marks."""
    before, after = re.split(r"(?<=<!-- real models -->\n).*(?=<!-- end -->)", page.read_text(), flags=re.S)
    with replacing(page) as part:
        part.write_text(f"{before}\n{table}\n\n{after}")
