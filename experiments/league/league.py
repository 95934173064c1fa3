"""Write the league page from records: methods by models by protocols, with intervals, cost and commands.

python experiments/league/league.py                      # results/league and the records that are published
python experiments/league/league.py my/results/records   # other records
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from cfsp.records.escapes import markdown_text
from cfsp.records.identity import part_name
from cfsp.records.outcome_file import read_outcomes
from cfsp.records.protocols import counted, in_words
from cfsp.records.reading import read_records
from cfsp.records.record import Metric, Record
from cfsp.storage.atomic import replacing
from cfsp.tables.paired import paired

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("league", "first_look/*", "fidelity/*")
"""Folders of results whose records are published."""
PAGE = ROOT / "results" / "tables" / "league.md"
MEASURES = ("perplexity", "acc", "acc_norm", "exact_match", "prompt_level_strict_acc", "kl", "agreement")
INTRODUCTION = """# League

Written by `make league` from records. A table is of one dense model, one metric and one protocol; rows are
sorted by the share of all parameters that is gone, in steps of one per cent, then by the figure. ± is 1.96
standard errors over questions or windows, of one run; it says nothing about other seeds or calibrations. *vs
dense* is the paired interval of the difference to the dense model on the same questions or windows (of
perplexities, of their logarithms); ≈ marks what it does not tell apart, - a record that keeps no outcomes.

To add rows, run a command of your own with `results=results/league`, then `make league`.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", help="folders or globs of records (those that are published)")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    options = parser.parse_args()
    places = options.places or published()
    records, faults = read_records(places)
    with replacing(options.output) as part:
        part.write_text(page(records, faults))
    print(options.output)


def published() -> list[Path]:
    """Return the folders of published records that there are."""
    found = [path for place in PLACES for path in sorted((ROOT / "results").glob(f"{place}/records"))]
    return [path for path in found if any(path.glob("*.json"))]


def page(records: Mapping[Path, Record], faults: Iterable[str] = ()) -> str:
    """Return the page of all metrics of the records that `MEASURES` names."""
    groups: dict[tuple[str, ...], list[tuple[Path, Record, str]]] = {}
    for path, record in records.items():
        for name, metric in record.metrics["pruned"].items():
            if name.split("/")[0] in MEASURES:
                protocol = json.dumps(metric.protocol, sort_keys=True)
                dense = f"{record.metrics['dense'][name].value:.4g}"
                key = (Path(record.config["model"]["path"]).name, name, dense, protocol)
                groups.setdefault(key, []).append((path, record, name))
    parts = [INTRODUCTION, *(section(key, groups[key]) for key in sorted(groups)), *(map(left_out, faults))]
    return "\n".join(parts)


def left_out(fault: str) -> str:
    return f"\nLeft out: {markdown_text(fault)}\n"


def section(key: tuple[str, ...], rows: list[tuple[Path, Record, str]]) -> str:
    """Return the table of one dense model, metric and protocol, and the commands of its rows."""
    model, name, dense, protocol = key
    shown = json.loads(protocol)
    words = ", ".join(in_words(shown, one) for one in shown if one != "measure" and "sha256" not in one)
    sign = 1 if rows[0][1].metrics["pruned"][name].better == "lower" else -1
    order = sorted(
        rows,
        key=lambda row: (round(row[1].sparsity["model"], 2), sign * row[1].metrics["pruned"][name].value),
    )
    lines = [
        f"\n## {markdown_text(model)}: {markdown_text(name)}, dense {dense}\n",
        f"{counted(len(rows), 'run', 'runs')}. Protocol: {markdown_text(words)}.\n",
        "| method | asked | gone of all | figure | vs dense | minutes | peak GB | run |",
        "|---|---|---|---|---|---|---|---|",
        *(line(path, record, name) for path, record, _ in order),
        "\n<details><summary>Commands</summary>\n",
        *(f"- `{record.id}`: `{record.command or 'not kept'}`" for _, record, _ in order),
        "\n</details>\n",
    ]
    return "\n".join(lines)


def line(path: Path, record: Record, name: str) -> str:
    """Return a row: the method, its sizes, the figure with its interval, its costs."""
    metric = record.metrics["pruned"][name]
    peak = max(record.peak_bytes.values(), default=0)
    cells = [
        markdown_text(method(record)),
        f"{record.config['sparsity']:.0%} of {record.config['sparsity_of']}",
        f"{record.sparsity['model']:.1%}",
        figure(metric),
        against_dense(path, record, name),
        f"{sum(record.seconds.values()) / 60:.1f}",
        f"{peak / 1e9:.1f}" if peak else "-",
        f"`{record.id}`",
    ]
    return f"| {' | '.join(cells)} |"


def method(record: Record) -> str:
    """Return the names of the parts that make the method, without those that do nothing."""
    config = record.config
    parts = [config["criterion"], config["allocator"], config["compensation"]]
    parts += [config[name] for name in ("schedule", "recovery") if name in config]
    names = [part_name(part) for part in parts]
    return (
        " / ".join(one for one in names if one not in ("none", "one_shot"))
        + f" ({'+'.join(config['sites'])})"
    )


def figure(metric: Metric) -> str:
    """Return the value with its 95 % interval."""
    digits = 4 if metric.value < 2 else 2
    reach = "" if metric.stderr is None else f" ± {1.96 * metric.stderr:.{digits}f}"
    return f"{metric.value:.{digits}f}{reach}"


def against_dense(path: Path, record: Record, name: str) -> str:
    """Return the paired interval of the difference to the dense model; "-" without outcomes."""
    if record.outcomes is None:
        return "-"
    kept = read_outcomes(path, record)
    dense, pruned = kept.read("dense", name), kept.read("pruned", name)
    if dense is None or pruned is None:
        return "-"
    pair = paired(dense, pruned)
    interval = "one item" if pair.low is None else f"{pair.low:+.4f} to {pair.high:+.4f}"
    return interval + ("" if pair.distinguishable else " ≈")


if __name__ == "__main__":
    main()
