"""The few runs of the study that the README and the documentation's first page show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfsp.records.record import Record
from cfsp.report.groups import perplexities
from cfsp.storage.atomic import replacing

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
    (
        "`+experiment=refit compensation.ridge=1` ᵃ",
        "_in_domain",
        ("refit (ridge 1, relative)", "refit (ridge 1)"),
    ),
    ("`+experiment=obs_fisher` ᵃ", "_in_domain", ("obs_fisher",)),
    ("CFSP as released ᵃ", "_in_domain", ("cfsp_released",)),
)
"""Label, part of the study, and names of the method in its table; the first that a model has is shown."""

SUMMARISED = ("", "_in_domain", "_cost", "_cost_in_domain")
"""The parts of the study that the table is of."""

Runs = Mapping[tuple[str, str], Mapping[str, Sequence[Record]]]
"""(model, part) -> method -> its runs."""


def summary(runs: Runs, first: str, second: str) -> str:
    """Return the table: perplexities of both models, minutes and memory of the first."""
    head = [f"{share:.0%}".replace("%", " %") for share in SIZES]
    lines = [
        f"| | {' | '.join(head)} | minutes | GB | {' | '.join(f'Gemma, {one}' for one in head)} |",
        "|---|" + "---|" * (2 * len(SIZES) + 2),
    ]
    values = [[*cells(runs, first, *row[1:]), *cells(runs, second, *row[1:])] for row in ROWS]
    best = [min(value for value in column if value) for column in zip(*values, strict=True)]
    for (label, part, names), row in zip(ROWS, values, strict=True):
        shown = [number(value, value == least) for value, least in zip(row, best, strict=True)]
        shown[len(SIZES) : len(SIZES)] = cost(runs, first, part, names)
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def cells(runs: Runs, model: str, part: str, names: Sequence[str]) -> list[float | None]:
    """Return the perplexity of the row at each size; None where it was not run."""
    found = {one.config["sparsity"]: one for one in of(runs, model, part, names)}
    if not found:
        return [None] * len(SIZES)
    (measure,) = perplexities([*found.values()])
    return [measure.read(found[size]) if size in found else None for size in SIZES]


def of(runs: Runs, model: str, part: str, names: Sequence[str]) -> Sequence[Record]:
    methods = runs.get((model, part), {})
    return next((methods[name] for name in names if name in methods), ())


def number(value: float | None, best: bool) -> str:
    text = "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
    return f"**{text}**" if best else text


def cost(runs: Runs, model: str, part: str, names: Sequence[str]) -> list[str]:
    """Return the minutes and the memory of the plan."""
    for one in of(runs, model, f"_cost{part}", names):
        return [f"{one.seconds['plan'] / 60:.1f}", f"{max(one.peak_bytes.values()) / 1e9:.1f}"]
    return ["-", "-"]


def put(page: Path, text: str) -> None:
    """Replace what stands between the page's marks."""
    before, after = re.split(r"(?<=<!-- real models -->\n).*(?=<!-- end -->)", page.read_text(), flags=re.S)
    with replacing(page) as part:
        part.write_text(f"{before}\n{text}\n\n{after}")
