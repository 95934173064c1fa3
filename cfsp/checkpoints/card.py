"""Cards: the README.md of a saved model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from cfsp.checkpoints.gguf_input import GGUFInput, is_gguf
from cfsp.records.escapes import code_block, code_span, markdown_text
from cfsp.records.identity import part_name
from cfsp.records.record import Record
from cfsp.records.routed_words import asked_share, experts_text, measured_share, routed_method

PARTS = ("criterion", "allocator", "compensation", "schedule")


def model_card(record: Record, needs_remote_code: bool, *, license: str | None) -> str:
    """Return the README.md: what was removed or routed and how, what was measured, how to load the model."""
    config = record.config
    base = config["model"]["path"]
    made, size = record.made, "added" if record.routed else "removed"
    stored = f"\n\nIt was read from a GGUF file of {record.dequantised} weights, which were dequantised."
    source = stored if record.dequantised else ""
    return f"""---
{header(record, license).to_yaml()}
---

# {markdown_text(Path(base).name)}, {made}

{code_span(base)} {what_was_routed(record) if record.routed else what_was_removed(record)}.{source}

| parameters | dense | {made} | {size} |
|---|---|---|---|
{size_rows(record)}

{"" if record.routed else width_table(record)}{metric_rows(record)}

## Load

{ROUTED_LOAD if record.routed else ""}```python
{load_example(config["model"]["head"], needs_remote_code, record.routed)}
```
{adapters(record)}
`plan.json` lists {"the router of every MLP" if record.routed else "what every site keeps"}, `record.json` \
holds config, versions, protocol and metrics.

{made_by(record, license)}"""


def what_was_removed(record: Record) -> str:
    parts = ", ".join(f"{part} `{part_name(record.config[part])}`" for part in PARTS)
    return f"without {record.sparsity['model']:.1%} of its parameters, by cfsp: {parts}"


def what_was_routed(record: Record) -> str:
    asked, measured = asked_share(record), measured_share(record)
    known = [f"{asked} asked" if asked else "", f"{measured} measured" if measured else ""]
    shares = ", ".join(one for one in known if one) or "not measured"
    experts = experts_text(record)
    among = f" Each of {len(record.routes or ())} routers chooses among {experts}." if experts else ""
    return (
        f"with routed MLPs, by cfsp: {routed_method(record)}. No unit is removed: for every token a router "
        f"chooses the units that an MLP uses (active share: {shares}).{among} The routers are parameters "
        "too, so the model is larger than the dense one"
    )


ROUTED_LOAD = """Its MLPs are routed by code in this folder. Without `trust_remote_code=True` transformers
ignores the routers without an error, and the model loads as a dense one, which the figures above are not of.

"""


def header(record: Record, license: str | None) -> ModelCardData:
    """Return what the hub reads of a card."""
    model = record.config["model"]
    base = model["path"]
    kind = ("routed", "dynamic-sparsity") if record.routed else ("pruned", "structured-pruning")
    return ModelCardData(
        license=license or "unknown",
        library_name="transformers",
        pipeline_tag="text-generation" if model["head"] == "causal_lm" else None,
        base_model=None if Path(base).exists() or base == "reference" else base,
        tags=["cfsp", *kind],
    )


def made_by(record: Record, license: str | None) -> str:
    """The command, the calibration, the versions and the licence, as the last section."""
    calibration, versions = record.config["calibration"], record.environment["versions"]
    licence = (
        f"{code_span(license)}, as its base model"
        if license
        else "that of its base model, which was not found"
    )
    return f"""## Made by

{code_block(record.command or "the Python API")}

Calibration: {code_span(text_name(calibration["text"]))}, {calibration["samples"]} samples of \
{calibration["seqlen"]} tokens, seed {calibration.get("seed", record.config["seed"])}\
{written_by(calibration)}.
cfsp {versions["cfsp"]}, torch {versions["torch"]}, \
transformers {versions["transformers"]}.

Licence: {licence}.
"""


def written_by(calibration: Mapping[str, Any]) -> str:
    """Say what the model wrote of its calibration itself; '' if nothing."""
    prompts = calibration.get("prompt_tokens")
    return (
        "" if prompts is None else f"; the dense model wrote them, after prompts of at most {prompts} tokens"
    )


def text_name(text: Mapping[str, Any]) -> str:
    """Return what people call a text: its name, its files, or its class."""
    paths = text.get("paths") or []
    files = ", ".join(Path(path).name for path in ([paths] if isinstance(paths, str) else paths))
    return str(text.get("name") or files or text["_target_"].rsplit(".", 1)[-1])


def size_rows(record: Record) -> str:
    """Return the parameters of each base before and after, as table rows. Routers add some."""
    sign = -1 if record.routed else 1
    return "\n".join(
        f"| of the {base} | {dense:,} | {record.parameters['pruned'][base]:,} | "
        f"{sign * record.sparsity[base] + 0:.2%} |"
        for base, dense in record.parameters["dense"].items()
    )


def width_table(record: Record) -> str:
    """Return the kept and former units of every site, as a table and an empty line."""
    rows = "\n".join(
        f"| {markdown_text(name)} | {kept} | {units} |" for name, (units, kept) in record.widths.items()
    )
    return f"| site | kept | of |\n|---|---|---|\n{rows}\n\n"


def metric_rows(record: Record) -> str:
    """Return every metric before and after, with its protocol, as a table. A protocol is written once."""
    if not record.metrics["pruned"]:
        return "Nothing was measured."
    rows, before = [f"| metric | dense | {record.made} | protocol |", "|---|---|---|---|"], ""
    for name, metric in record.metrics["pruned"].items():
        dense = record.metrics["dense"][name].value
        protocol = markdown_text(", ".join(f"{key} {value}" for key, value in metric.protocol.items()))
        shown = "the same" if protocol and protocol == before else protocol
        rows.append(f"| {markdown_text(name)} | {dense:.4g} | {metric.value:.4g} | {shown} |")
        before = protocol
    return "\n".join(rows)


def load_example(head: str, needs_remote_code: bool, routed: bool = False) -> str:
    """Return Python code that loads the model with transformers alone."""
    auto = {
        "causal_lm": "AutoModelForCausalLM",
        "masked_lm": "AutoModelForMaskedLM",
        "sequence_classification": "AutoModelForSequenceClassification",
        "question_answering": "AutoModelForQuestionAnswering",
        "sequence_to_sequence": "AutoModelForSeq2SeqLM",
    }[head]
    why = "its MLPs are routed" if routed else "its blocks differ"
    note = f"  # {why}" if needs_remote_code else ""
    trust = ", trust_remote_code=True" if needs_remote_code else ""
    return (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("FOLDER"{trust}){note}\n'
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})'
    )


def adapters(record: Record) -> str:
    """Return how to load the adapters that are stored separately; '' if there are none."""
    trained = record.trained.get("adapters")
    if not trained:
        return ""
    return f"""
The figures above include the adapters ({trained:,} parameters), stored separately:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "FOLDER/adapters")
```
"""


def base_license(path: str) -> str | None:
    """Return the licence that the base model's card names; None if there is no card or it names none."""
    if path == "reference":
        return "apache-2.0"
    if is_gguf(path):
        return GGUFInput.read(path).keys.get("general.license")
    try:
        card = Path(path) / "README.md" if Path(path).is_dir() else hf_hub_download(path, "README.md")
        return ModelCard.load(card).data.to_dict().get("license")
    except (OSError, HfHubHTTPError, ValueError):  # no card, no network, or one without a header
        print(f"cfsp: {path} has no card that names a licence; the saved card says unknown", file=sys.stderr)
        return None
