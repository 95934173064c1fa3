"""Write the league page from records: methods by models by protocols, with intervals, cost and commands.

python experiments/league/league.py                      # results/league and the records that are published
python experiments/league/league.py my/results/records   # other records
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from table_row import HEAD, Pairs, Rows, mean_gone, table_row

from cfsp.cli.exits import one_line_exits
from cfsp.records.escapes import code_span, markdown_text
from cfsp.records.outcome_file import read_outcomes
from cfsp.records.protocols import HASHES, comparable, counted, in_words, named_files
from cfsp.records.reading import read_records
from cfsp.records.record import Record
from cfsp.report.names import IDLE, PARTS, joined_name, part_texts, short_name
from cfsp.report.paths import hide_paths, model_names
from cfsp.storage.atomic import replacing
from cfsp.tables.paired import Paired, paired

ROOT = Path(__file__).resolve().parents[2]
PARTS_OF_REAL = ("", "_in_domain", "_in_domain_256", "_with_attention", "_full")
REAL = [f"real_models{part}" for part in PARTS_OF_REAL]
PLACES = ("league", "calibration", *(f"{study}/*" for study in ("first_look", "fidelity", *REAL)))
"""Folders of results whose records are published."""
PAGE = ROOT / "results" / "tables" / "league.md"
MEASURES = ("perplexity", "acc", "acc_norm", "exact_match", "prompt_level_strict_acc", "kl", "agreement")
SAME_DENSE = 1e-4
"""Largest relative difference between figures of one dense model, which rounding explains."""
INTRODUCTION = """# League

Written by `make league` from records. A table is of one dense model (its path, size and figure), one metric
and one protocol. Rows are sorted by the share of all parameters that is gone, in steps of one per cent, then
by the figure.

- *method*: all that differs between the runs of the table, apart from seeds. What all of them share stands
  above it.
- *gone of all*: the measured share of all parameters, or of a routed model's units that a token uses.
- *figure*: the mean ± standard deviation over seeds, with their number n. With one seed, ± is Student's 95 %
  interval over questions or windows, where their number is known; it says nothing about other seeds.
- *vs dense*: the paired 95 % interval of the difference to the dense model on the same questions or windows
  (of perplexities, of their logarithms). With several seeds it spans their intervals. ≈ marks a row with a
  seed that cannot be told from the dense model, - one with a seed that keeps no outcomes.
- *plan minutes*: the time to measure statistics and choose units, with the training of a schedule that
  trains; without loading, recovery and evaluation. Of several seeds it is the longest, because a run that
  finds its statistics in the cache takes none.
- *peak GB*: the largest of the seeds, of the process or of the GPU, whichever is more.

To add rows, run a command of your own with `results=results/league`, then `make league`.
"""


def main() -> None:
    """Write the page; exit code 1 if something had to be left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", help="folders or globs of records (those that are published)")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    options = parser.parse_args()
    with one_line_exits("league"):
        places = options.places or published()
        if not places:
            raise ValueError(f"no records in {', '.join(PLACES)} of {ROOT / 'results'}; expected some")
        records, faults = read_records(places)
        pairs, more = read_pairs(records)
        with replacing(options.output) as part:
            part.write_text(page(records.values(), pairs, [*faults, *more]))
    print(options.output)
    for fault in (*faults, *more):
        print(f"league: left out: {fault}", file=sys.stderr)
    sys.exit(1 if faults or more else 0)


def published() -> list[Path]:
    """Return the folders of published records that there are."""
    found = [path for place in PLACES for path in sorted((ROOT / "results").glob(f"{place}/records"))]
    return [path for path in found if any(path.glob("*.json"))]


def read_pairs(records: Mapping[Path, Record]) -> tuple[dict[tuple[str, str], Paired], list[str]]:
    """Compare each run with its dense model, and return a line for each file of outcomes that fails."""
    pairs: dict[tuple[str, str], Paired] = {}
    faults = []
    for path, record in records.items():
        if record.outcomes is None:
            continue
        try:
            kept = read_outcomes(path, record)
            for name in measured(record):
                dense, pruned = kept.read("dense", name), kept.read("pruned", name)
                if dense is not None and pruned is not None:
                    pairs[record.outcomes["file"], name] = paired(dense, pruned)
        except ValueError as error:
            faults.append(f"outcomes of {record.id}: {error}")
    return pairs, faults


def measured(record: Record) -> list[str]:
    """Return the names of the record's metrics that the page shows."""
    return [name for name in record.metrics["pruned"] if name.split("/")[0] in MEASURES]


def page(records: Iterable[Record], pairs: Pairs, faults: Iterable[str] = ()) -> str:
    """Return the page of all metrics of the records that `MEASURES` names."""
    records = list(records)
    names = model_names(str(record.config["model"]["path"]) for record in records)
    groups: dict[tuple[str, int, str, str], list[Record]] = defaultdict(list)
    for record in records:
        path, size = str(record.config["model"]["path"]), record.parameters["dense"]["model"]
        for name in measured(record):
            protocol = json.dumps(comparable(record.metrics["pruned"][name].protocol), sort_keys=True)
            groups[path, size, name, protocol].append(record)
    parts = [INTRODUCTION]
    for (path, size, name, protocol), rows in sorted(groups.items()):
        title = f"{names[path]}, {size:,} parameters"
        parts += [section(title, name, json.loads(protocol), some, pairs) for some in one_dense(rows, name)]
    shown = [record for record in records if measured(record)]
    return "\n".join([*parts, commands(shown), *map(left_out, faults)])


def one_dense(rows: Rows, name: str) -> list[list[Record]]:
    """Split the rows of a table by the figure of the dense model, up to rounding."""
    groups: list[list[Record]] = []
    last = None
    for record in sorted(rows, key=lambda row: row.metrics["dense"][name].value):
        dense = record.metrics["dense"][name].value
        if last is None or dense - last > SAME_DENSE * abs(dense):
            groups.append([])
        groups[-1].append(record)
        last = dense
    return groups


def left_out(fault: str) -> str:
    return f"\nLeft out: {markdown_text(hide_paths(fault))}\n"


def commands(records: Rows) -> str:
    """Return the commands of all runs that keep theirs, and how many do not."""
    ids = {record.id for record in records}
    kept = {record.id: record.command for record in records if record.command}
    told = counted(len(kept), "run names its command", "runs name their commands")
    silent = "What a command leaves out had the default of the run's commit; its record has it."
    without = len(ids) - len(kept)
    none = f" {counted(without, 'older run keeps', 'older runs keep')} no command." if without else ""
    return "\n".join(
        [
            "\n## Commands\n",
            f"{told}.{none} {silent}\n",
            "<details><summary>Commands</summary>\n",
            *(f"- `{name}`: {code_span(hide_paths(kept[name]))}" for name in sorted(kept)),
            "\n</details>\n",
        ]
    )


def section(title: str, name: str, protocol: dict[str, object], rows: Rows, pairs: Pairs) -> str:
    """Return the table of one dense model, metric and protocol."""
    told = protocol | named_files(row.metrics["pruned"][name].protocol for row in rows)
    words = ", ".join(in_words(told, one) for one in told if one != "measure" and one not in HASHES)
    metric = rows[0].metrics["dense"][name]
    sign = 1 if metric.better == "lower" else -1
    cells, repeated = folded(rows, name)
    order = sorted(
        cells.items(),
        key=lambda cell: (
            round(mean_gone(cell[1]), 2),
            sign * float(np.mean([record.metrics["pruned"][name].value for record in cell[1]])),
        ),
    )
    again = f" {counted(repeated, 'run repeats', 'runs repeat')} another with its seed." if repeated else ""
    lines = [
        f"\n## {markdown_text(title)}: {markdown_text(name)}, dense {metric.value:.4g}\n",
        f"{counted(len(rows), 'run', 'runs')}.{again} Protocol: {markdown_text(hide_paths(words))}. "
        f"All rows: {markdown_text(shared(rows))}.\n",
        HEAD,
        *(table_row(method, asked, some, name, pairs) for (method, asked), some in order),
    ]
    return "\n".join([*lines, ""])


def folded(rows: Rows, name: str) -> tuple[dict[tuple[str, str], list[Record]], int]:
    """Return (method, asked) -> its runs, one for each seed, and how many runs repeat another's seed.

    The newest run of a seed counts.
    """
    names = methods(rows)
    cells: dict[tuple[str, str], dict[tuple[object, ...], Record]] = defaultdict(dict)
    for record in sorted(rows, key=lambda row: (row.created, row.id)):
        cells[names[record.id], asked_of(record)][seeds_of(record)] = record
    found = {key: [runs[seed] for seed in sorted(runs, key=str)] for key, runs in cells.items()}
    return found, len(rows) - sum(map(len, found.values()))


def seeds_of(record: Record) -> tuple[object, ...]:
    """Return the seeds of the run and of its calibration, which may be set apart."""
    return record.config["seed"], (record.config.get("calibration") or {}).get("seed")


def asked_of(record: Record) -> str:
    """Return what the run was asked for: a share and of what it is one, or a size."""
    wanted = record.wanted
    base = f" of {record.config['sparsity_of']}" if wanted.kind == "sparsity" else ""
    return f"{wanted.text}{base}"


def methods(rows: Rows) -> dict[str, str]:
    """Return record id -> method: the criterion and each other part that differs between the rows.

    Other pages have shorter names, the fewest parts that tell methods apart; here nothing that differs is
    hidden. Runs that differ in a part have different names.
    """
    columns = {part: part_texts([row.config for row in rows], part) for part in method_parts()}
    varying = [part for part in columns if part == "criterion" or len(set(columns[part])) > 1]
    texts = [*zip(*(columns[part] for part in varying), strict=True)]
    names = {text: joined_name(varying, text) for text in texts}
    if len(set(names.values())) < len(names):
        names = {text: " / ".join(text) for text in texts}
    return {row.id: names[text] for row, text in zip(rows, texts, strict=True)}


def method_parts() -> list[str]:
    """Return the parts of a config that make a method; the base of the share stands in a column."""
    return [part for part in PARTS if part != "sparsity_of"]


def shared(rows: Rows) -> str:
    """Return the parts that all rows have in common, by name, without those that do nothing."""
    names = {part: {short_name(row.config.get(part), part) for row in rows} for part in method_parts()}
    same = {part: one for part, (one, *more) in names.items() if not more}
    told = [f"{part} {one}" for part, one in same.items() if one not in ("none", IDLE.get(part))]
    return ", ".join(told) or "nothing in common"


if __name__ == "__main__":
    main()
