"""Turn the records of this study into one markdown page on stdout."""

from __future__ import annotations

from pathlib import Path

from cfsp.records.record import Record, records
from cfsp.tables.compare import compare, part_name

RESULTS = Path(__file__).parents[2] / "results" / "first_look"
STUDIES = {
    "reference": "the embedded reference model on Python's documentation",
    "tinystories": "stories260K on TinyStories",
    "wikitext2": "stories260K on WikiText-2",
}


def criterion(record: Record) -> str:
    return part_name(record.config["criterion"])


def method(record: Record) -> str:
    """Return what an experiment file combines."""
    config = record.config
    names = [part_name(config[part]) for part in ("criterion", "allocator", "compensation")]
    compensation = names.pop().removesuffix("_compensation")
    return f"{' / '.join(names)} / {compensation}; {'+'.join(config['sites'])} of {config['sparsity_of']}"


def is_plain(record: Record) -> bool:
    """Return whether a record is of the first two sweeps: only criterion, allocator and seed are set."""
    config = record.config
    return (
        config["sites"] == ["mlp"]
        and config["allocator"]["round_to"] == 1
        and config["compensation"]["_target_"].endswith("NoCompensation")
        and config["criterion"].get("weights") != "consumers"
    )


def study_tables(folder: Path, title: str) -> str:
    found = list(records(folder / "records"))
    metrics = {name for record in found for name in record.metrics["pruned"]}
    (metric,) = [name for name in metrics if name.startswith("perplexity")]
    sections = [f"## {title[0].upper()}{title[1:]}", ""]
    for allocator in ("cfsp", "uniform"):
        chosen = [r for r in found if is_plain(r) and part_name(r.config["allocator"]) == allocator]
        heading = f"Criteria under `allocator={allocator}`, MLP only:"
        sections += [heading, "", compare(chosen, metric, criterion).to_markdown(), ""]
    table = compare([r for r in found if not is_plain(r)], metric, method)
    sections += ["Methods as `+experiment=` has them:", "", table.to_markdown(), ""]
    return "\n".join(sections)


def main() -> None:
    print("# First look: every criterion at 20 % and 50 %\n")
    print("Written by `experiments/first_look/run.sh`; see its README for data and reading.")
    print("Cells: perplexity, mean ± standard deviation over seeds, (share of all parameters gone).\n")
    for study, title in STUDIES.items():
        if (RESULTS / study).is_dir():
            print(study_tables(RESULTS / study, title))


if __name__ == "__main__":
    main()
