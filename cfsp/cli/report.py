"""`cfsp-report`: records as one page, and as figures for papers."""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cfsp.records.failures import Failure, read_failures
from cfsp.records.protocols import differing, in_words
from cfsp.records.reading import read_records
from cfsp.records.record import Record
from cfsp.report.base import Section, measured
from cfsp.report.costs import (
    MASKS,
    ROUTERS,
    by_clock,
    latency_section,
    recovery_section,
    schedule_section,
)
from cfsp.report.groups import Measure, latencies, perplexities, ranked, studies, zero_shots
from cfsp.report.names import method_names
from cfsp.report.overview import Compared, overview_section
from cfsp.report.page import page
from cfsp.report.paths import model_names
from cfsp.report.plots.activity import routed_records
from cfsp.report.plots.base import Look, looks, save_figure
from cfsp.report.plots.importance import block_statistics
from cfsp.report.quality import perplexity_section, zero_shot_section
from cfsp.report.runs import runs_section
from cfsp.report.shape import activity_section, importance_section, knowledge_section, widths_section
from cfsp.storage.atomic import replacing

OPTIONAL = {"kept widths", "knowledge of sites", "active units", "trained masks", "trained routers"}
"""Sections of some methods alone: nobody misses them elsewhere."""

T = TypeVar("T", Record, Failure)
EPILOG = """\
examples:
  cfsp-report results/records                      the page is report.html
  cfsp-report results/records -o my/report.html --title 'Llama at 50 %'
  cfsp-report results/*/records --figures figures  and every figure as PDF and PNG

The page is one file and loads nothing: send it, print it, open it without a network. It shows
perplexity and zero-shot accuracy against measured parameters, kept widths, the importance of
blocks, latency, recovery and all runs, in so far as the records have them. Records of other dense
models, texts or protocols get sections of their own. Failed runs are read from failures/ beside
the folder of records.

exit code: 0; 1 if there is no record, or files were left out because they could not be read.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page. Exit code 1 if a file could not be read, or if there is nothing to show."""
    options = parser().parse_args(arguments)
    gc.freeze()  # otherwise each collection visits all imported modules
    try:
        unreadable = report(options.records, options.output, options.figures, options.title)
    except (ValueError, OSError) as error:
        print(f"cfsp-report: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    for problem in unreadable:
        print(f"cfsp-report: left out: {problem}", file=sys.stderr)
    print(options.output)
    if unreadable:
        raise SystemExit(1)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "cfsp-report",
        description="Turn records into one self-contained page with figures and sortable tables.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("records", nargs="+", metavar="PLACE", help="a folder, file or glob of records")
    found.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="the page (default: report.html)"
    )
    found.add_argument("--figures", type=Path, metavar="FOLDER", help="write each figure as PDF and PNG here")
    found.add_argument("--title", default="Structured pruning", help="the page's heading")
    return found


def report(places: Sequence[str | Path], output: Path, figures: Path | None, title: str) -> list[str]:
    """Write the page and the figures. Return a line for each file that could not be read.

    Raises:
        ValueError: there is no record in any of the places.
    """
    found, unreadable = read_records(places)
    failures: dict[str, Failure] = {}
    for results in sorted({path.resolve().parent.parent for path in found}):
        more, faults = read_failures(results)
        newest(failures, more)
        unreadable += faults
    records: dict[str, Record] = {}
    newest(records, found.values())
    sections = all_sections([*records.values()], [*failures.values()], unreadable)
    if figures:
        for plot in (plot for section in sections for plot in section.plots):
            save_figure(plot.figure, figures, plot.name)
    with replacing(output) as part:
        part.write_text(page(title, sections), "utf-8")
    return unreadable


def newest(known: dict[str, T], more: Iterable[T]) -> None:
    """Add runs by their id; of two with the same id keep the newer."""
    for one in more:
        if one.id not in known or known[one.id].created < one.created:
            known[one.id] = one


def all_sections(
    records: Sequence[Record], failures: Sequence[Failure], unreadable: Sequence[str]
) -> list[Section]:
    """Return the overview and the sections of each study."""
    groups = studies(records)
    titles = study_titles(groups)
    names = [method_names(group) for group in groups]
    styles = looks(name for group in names for name in group.values())
    compared, sections = [], []
    for group, title, methods in zip(groups, titles, names, strict=True):
        one, found = study_sections(group, title, methods, styles)
        compared.append(one)
        sections += found
    return [overview_section(compared, failures, unreadable), *sections]


def study_titles(groups: Sequence[Sequence[Record]]) -> list[str]:
    """The name of each dense model; where several studies share it, what is measured, and how it differs."""
    paths = [str(group[0].config["model"]["path"]) for group in groups]
    names = model_names(paths)
    titles: list[str] = []
    for path, group in zip(paths, groups, strict=True):
        first = next((one.title for one in [*perplexities(group), *zero_shots(group)]), "not measured")
        where = measured(f", {first}").replace(", perplexity on ", " on ")
        titles.append(names[path] if paths.count(path) == 1 else f"{names[path]}{where}")
    return apart(titles, groups)


def apart(titles: Sequence[str], groups: Sequence[Sequence[Record]]) -> list[str]:
    """Return the titles; equal ones with what tells the protocols of their studies apart, or a number."""
    firsts = [next(iter([*perplexities(group), *zero_shots(group)]), None) for group in groups]
    found: list[str] = []
    for title, first in zip(titles, firsts, strict=True):
        rivals = [one.protocol for name, one in zip(titles, firsts, strict=True) if name == title and one]
        keys = [key for key in differing(rivals) if key != "text" and not key.endswith("_sha256")]
        named = title + "".join(f", {in_words(first.protocol, key)}" for key in keys if first)
        taken = sum(other == named or other.startswith(f"{named} (") for other in found)
        found.append(f"{named} ({taken + 1})" if taken else named)
    return found


def study_sections(
    records: Sequence[Record], title: str, names: Mapping[str, str], styles: Mapping[str, Look]
) -> tuple[Compared, list[Section]]:
    """Return one study's entry in the overview, and its sections."""
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "study"
    qualities, accuracies = perplexities(records), zero_shots(records)
    names = ranked(names, [*qualities, *accuracies])
    found: dict[str, list[Section]] = {
        "perplexity": [
            perplexity_section(one, title, f"{prefix}-perplexity-{place}", names, styles)
            for place, one in enumerate(qualities, start=1)
        ],
        "zero-shot accuracy": [
            zero_shot_section(one, title, f"{prefix}-zero-shot-{place}", names, styles)
            for place, one in enumerate(accuracies, start=1)
        ],
        **model_sections(records, title, prefix, names, styles),
        **cost_sections(records, qualities, title, prefix, names, styles),
    }
    missing = [what for what, sections in found.items() if not sections and what not in OPTIONAL]
    sections = [section for sections in found.values() for section in sections]
    sections.append(runs_section(records, title, f"{prefix}-runs", names))
    return Compared(title, records, names, [*qualities, *accuracies], missing), sections


def model_sections(
    records: Sequence[Record], title: str, prefix: str, names: Mapping[str, str], styles: Mapping[str, Look]
) -> dict[str, list[Section]]:
    """Return topic -> sections about what is left of the models."""
    analysed = [record for record in records if "knowledge" in record.notes]
    cut = [record for record in records if record.widths and not record.routed]
    return {
        "kept widths": [widths_section(cut, title, f"{prefix}-widths", names)] if cut else [],
        "active units": (
            [activity_section(records, title, f"{prefix}-activity", names, styles)]
            if routed_records(records)
            else []
        ),
        "importance of blocks": (
            [importance_section(records, title, f"{prefix}-importance")]
            if any(block_statistics(record) for record in records)
            else []
        ),
        "knowledge of sites": [knowledge_section(analysed, title, f"{prefix}-knowledge")] if analysed else [],
    }


def cost_sections(
    records: Sequence[Record],
    qualities: Sequence[Measure],
    title: str,
    prefix: str,
    names: Mapping[str, str],
    styles: Mapping[str, Look],
) -> dict[str, list[Section]]:
    """Return topic -> sections about time and training."""
    clocks = by_clock([*latencies(records, "prefill"), *latencies(records, "decode")])
    trained = [record for record in records if record.training]
    curves = [one for one in trained if one.trained["curve"] or one.trained["held_out_curve"]]
    taught = [one for one in records if (one.schedule_training or {}).get("curve")]
    masked = [one for one in taught if not one.routed]
    routed = [one for one in taught if one.routed]
    return {
        "latency": [
            latency_section(one, qualities, title, f"{prefix}-latency-{place}", names, styles)
            for place, one in enumerate(clocks, start=1)
        ],
        "recovery": [recovery_section(curves, title, f"{prefix}-recovery", names, styles)] if curves else [],
        "trained masks": (
            [schedule_section(MASKS, masked, title, f"{prefix}-masks", names, styles)] if masked else []
        ),
        "trained routers": (
            [schedule_section(ROUTERS, routed, title, f"{prefix}-routers", names, styles)] if routed else []
        ),
    }


if __name__ == "__main__":
    main()
