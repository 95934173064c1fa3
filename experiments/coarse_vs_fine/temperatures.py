"""Print the temperatures at which all coarse metrics are as steep as CFSP's angular distance.

    temperature_m = 13.1072 std(I_angular) / std(I_m)      I: the distance per block, std over the blocks

Distances have different units: a constant for angles does not suit squared differences. With equal
spreads the metrics differ only in which blocks they favour.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import pstdev

from calibrated import calibrated

ANGULAR = 13.1072
METRICS = ("angular", "cosine", "mse", "mae")


def temperatures(distances: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return temperatures of three digits, so that rounding in a statistic does not make another run."""
    spread = {metric: pstdev(values) for metric, values in distances.items()}
    return {metric: float(f"{ANGULAR * spread['angular'] / spread[metric]:.3g}") for metric in METRICS} | {
        "angular": ANGULAR
    }


def main() -> None:
    _, sites, stats = calibrated(sys.argv[1:], {f"block_{metric}" for metric in METRICS})
    found = temperatures(
        {metric: [float(stats[site.name][f"block_{metric}"]) for site in sites] for metric in METRICS}
    )
    print("{" + ",".join(f"{metric}:{value:g}" for metric, value in found.items()) + "}")


if __name__ == "__main__":
    main()
