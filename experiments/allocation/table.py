"""Write how many units each allocator keeps in each block: a page, and a .csv to plot from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cfsp.records.record import Record, records

RESULTS = Path(__file__).parents[2] / "results"
TITLE = """# What each allocator leaves of each block

Written by `experiments/allocation/run.sh`; see its README for the reading. Cells: units kept, and what
that is of the site. Global ranking goes by the scores of the criterion in brackets."""


def allocator(record: Record) -> str:
    """Return the allocator's name with its metric or criterion."""
    config = record.config["allocator"]
    name = config["_target_"].rsplit(".", 1)[1]
    if "metric" in config:
        steps = f" in steps of {config['round_to']}" if name == "CFSPReleased" else ""
        return f"{name}, {config['metric']}{steps}"
    if name.startswith("GlobalRank"):
        return f"{name} ({record.config['criterion']['_target_'].rsplit('.', 1)[1]})"
    return name


def widths() -> pd.DataFrame:
    """Return a row per run and site."""
    return pd.DataFrame(
        {
            "sites": "+".join(record.config["sites"]),
            "sparsity": record.config["sparsity"],
            "allocator": allocator(record),
            "kind": site.rsplit(".", 1)[1],
            "block": int(site.split(".")[-2]),
            "units": units,
            "kept": kept,
            "removed": record.sparsity["sites"],
        }
        for record in records(RESULTS / "allocation" / "records")
        for site, (units, kept) in record.widths.items()
    )


def page(table: pd.DataFrame) -> str:
    sections = [TITLE]
    cells = table.assign(
        cell=[f"{kept} ({kept / units:.0%})" for kept, units in zip(table.kept, table.units, strict=True)],
        column=[f"{kind} {block}" for kind, block in zip(table.kind, table.block, strict=True)],
        removed=[f"−{removed:.1%}" for removed in table.removed],
    )
    for (sites, sparsity), part in cells.groupby(["sites", "sparsity"]):
        wide = part.pivot(index=["allocator", "removed"], columns="column", values="cell")
        columns = part.sort_values(["kind", "block"], ascending=[False, True])["column"].unique()
        sections += [
            f"## {sites}, {sparsity:.0%} asked",
            wide[[*columns]].reset_index("removed").to_markdown(),
        ]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    table = widths().sort_values(["sites", "sparsity", "allocator", "kind", "block"])
    (RESULTS / "tables" / "allocation.md").write_text(page(table))
    table.to_csv(RESULTS / "tables" / "allocation.csv", index=False)


if __name__ == "__main__":
    main()
