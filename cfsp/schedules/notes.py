"""Notes: what readers of a plan learn of the measurements behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cfsp.model.sites import Site
from cfsp.statistics.base import Stats


def notes_of(sites: Sequence[Site], stats: Stats) -> dict[str, Any]:
    """Return the plan's notes for readers: block statistics as lists over blocks, and error curves."""
    first_of_block = {site.block: site for site in reversed(sites) if site.block is not None}
    columns: dict[str, list[float]] = {}
    for block in sorted(first_of_block):
        for name, value in stats[first_of_block[block].name].items():
            if name.startswith("block_") and value.dim() == 0:
                columns.setdefault(name, []).append(float(value))
    curves = {name: stat["error_probes"].tolist() for name, stat in stats.items() if "error_probes" in stat}
    return {"block_statistics": columns} | ({"error_curves": curves} if curves else {})
