"""Turn the records of this study into one markdown page on stdout."""

from __future__ import annotations

from pathlib import Path

from cfsp.records.record import Record, records
from cfsp.tables.compare import compare, part_name

RESULTS = Path(__file__).parents[2] / "results" / "fidelity"
STUDIES = {
    "reference": "the embedded reference model on Python's documentation (5 blocks)",
    "stories260k": "stories260K on TinyStories (5 blocks)",
    "llama_6m": "a Llama of 5.8 M parameters on WikiText-2 (6 blocks)",
}
METHODS = {
    "cfsp": "CFSP",
    "flap": "FLAP",
    "wanda_sp": "Wanda-sp",
    "taylor": "LLM-Pruner",
    "magnitude": "magnitude",
}


def method(record: Record) -> str:
    """Return the method, and whether it is as released, which its allocator shows."""
    config = record.config
    released = part_name(config["allocator"]).endswith("released")
    name = METHODS[part_name(config["criterion"])]
    return f"{name}, {'released' if released else 'corrected'}"


def main() -> None:
    print("# Five methods, as released and corrected\n")
    print("Written by `experiments/fidelity/run.sh`; see its README for data and reading.")
    print("Cells: perplexity, mean ± standard deviation over seeds, (share of all parameters gone).\n")
    for study, title in STUDIES.items():
        if (RESULTS / study).is_dir():
            found = list(records(RESULTS / study / "records"))
            (metric,) = {name for one in found for name in one.metrics["pruned"] if "perplexity" in name}
            print(f"## {title[0].upper()}{title[1:]}\n")
            print(compare(found, metric, method).sort_index().to_markdown(), "\n")


if __name__ == "__main__":
    main()
