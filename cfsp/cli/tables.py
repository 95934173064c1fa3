"""`cfsp-tables`: compare records, and figures of papers if asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cfsp.records.reading import read_records
from cfsp.records.record import Record
from cfsp.storage.atomic import replacing
from cfsp.tables.against_run import against_run
from cfsp.tables.compare import Comparison, comparisons
from cfsp.tables.filters import Filter, is_filter, select
from cfsp.tables.formats import FORMS, render
from cfsp.tables.frame import find_metrics, frame
from cfsp.tables.published_figures import against, find_folder, load_papers, with_papers

EXAMPLES = """
examples:
  cfsp-tables results/records
      criteria by sparsity, a table for every perplexity that was measured
  cfsp-tables results/records --rows criterion,allocator --metric perplexity/wikitext2
  cfsp-tables results/*/records criterion=cfsp,flap 'sparsity>=0.3' seed!=2
      only these; filters read like Hydra's overrides, globs too: 'allocator=*_released'
  cfsp-tables results/records --rows allocator.round_to --columns criterion,sparsity
      any key of the config is a row or a column: calibration.samples, recovery, sites, model, ...
  cfsp-tables results/records --metric 'acc*' --format latex --output tables.tex
      a table for every metric that the glob means
  cfsp-tables results/records --papers --papers-model LLaMA-7B
      what papers report for this model, metric, window and these sparsities, in rows below ours
  cfsp-tables results/records --papers --against taylor='LLM-Pruner Element1',flap=FLAP
      paper / ours / difference in the cells of these rows; with several fields in --rows any value
      that tells the row from the others will do: --rows criterion,criterion.order --against first=...

  cfsp-tables results/records --metric 'acc*' --against dense --paired
      test every cell on the same questions or windows, and mark what is not distinguishable (≈),
      not compared (?) or the run itself (≡); csv has the interval, p and the flip rate
  cfsp-tables results/records --against best --paired
      the same against the best of each column; --against takes the id of a record too, or its beginning.
      Runs whose removed or active shares differ by more than a point are not compared, except with dense

A cell is the mean ± standard deviation over seeds, and the measured share of all parameters that is
gone; of a routed model, the share of its units that a token uses. Runs that differ in more than their
seeds do not share a cell, unless --average averages them, and a line below the table says over what.
Protocols and dense models do not share a table. The exit code is 1 if a file is not a record; it is named,
and the others are shown.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write tables; an error becomes one line and exit code 1."""
    options = parser().parse_intermixed_args(arguments)
    try:
        faults = show_tables(options)
    except (ValueError, OSError) as error:
        print(f"cfsp-tables: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    if faults:
        raise SystemExit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="cfsp-tables",
        description="Compare records: a table per metric, protocol and dense model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("places", nargs="+", metavar="PLACE|FILTER", help="folders or globs of records, then field=value")
    add("--rows", default="criterion", metavar="FIELDS", help="what makes a row (criterion)")
    add("--columns", default="sparsity", metavar="FIELDS", help="what makes a column (sparsity)")
    add(
        "--metric",
        metavar="NAMES",
        help="name, unique beginning or glob; several with commas (all perplexities)",
    )
    add(
        "--format",
        default="markdown",
        choices=FORMS,
        help="markdown, latex, html, or csv with one row per cell",
    )
    add("--output", type=Path, metavar="FILE", help="write there instead of to stdout")
    add("--average", action="store_true", help="let unlike runs share a cell, and say so")
    add("--strict", action="store_true", help="refuse several protocols or dense models, do not split")
    add(
        "--papers",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="papers' figures below ours, from results/papers",
    )
    add("--papers-model", metavar="NAME", help="what papers call the model, if not as its folder is called")
    add("--against", nargs="?", const="", metavar="ROW=METHOD,...", help="paper / ours / difference in cells")
    add(
        "--paired",
        action="store_true",
        help="with --against RUN (id of a record, dense, or best): mark what cannot be told from it",
    )
    return made


def show_tables(options: argparse.Namespace) -> list[str]:
    """Print or write the tables. Return a line per file that could not be read, also printed on stderr."""
    places = [one for one in options.places if Path(one).exists() or not is_filter(one)]
    filters = [Filter.parse(one) for one in options.places if one not in places]
    if not places:
        raise ValueError("no place of records among the arguments; expected one, for example results/records")
    records, faults = read_records(places)
    for fault in faults:
        print(f"cfsp-tables: left out: {fault}", file=sys.stderr)
    table = frame(records.values())
    if table.empty:
        raise ValueError(f"{', '.join(places)}: no record with a metric")
    chosen = select(table, filters)
    made = paired_tables(chosen, options, records) if options.paired else tables(chosen, options, places)
    text = render(made, options.format)
    if options.output:
        with replacing(options.output) as part:
            part.write_text(text)
    else:
        print(text, end="")
    return faults


def compared(table: pd.DataFrame, options: argparse.Namespace) -> list[Comparison]:
    """Return the tables without other figures."""
    return [
        one
        for metric in find_metrics(table["metric"], options.metric)
        for one in comparisons(
            table, metric, options.rows, options.columns, average=options.average, strict=options.strict
        )
    ]


def paired_tables(
    table: pd.DataFrame, options: argparse.Namespace, records: Mapping[Path, Record]
) -> list[Comparison]:
    """Return the tables with a paired test of every cell. Raises ValueError for what does not go with it."""
    if not options.against or options.papers is not None:
        raise ValueError("--paired: expected --against RUN (id of a record, dense or best), no --papers")
    return [against_run(one, records, options.against) for one in compared(table, options)]


def tables(table: pd.DataFrame, options: argparse.Namespace, places: list[str]) -> list[Comparison]:
    """Return the tables that the options ask for. Raises ValueError for a run without --paired."""
    if options.against and "=" not in options.against:
        raise ValueError(
            f"--against {options.against!r}: expected --paired beside the id of a record, dense or best, or "
            "ROW=METHOD for papers' figures"
        )
    made = compared(table, options)
    if options.papers is None and options.against is None:
        return made
    papers = load_papers(find_folder(options.papers, places))
    if options.against is not None:
        made = [against(one, papers, options.papers_model, options.against) for one in made]
    if options.papers is not None:
        made = [with_papers(one, papers, options.papers_model) for one in made]
    return made


if __name__ == "__main__":
    main()
