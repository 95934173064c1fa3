"""Frames: records as flat rows with named columns."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from cfsp.records.identity import NOT_IDENTITY, method_name, part_name
from cfsp.records.protocols import FILES, comparable, named_files
from cfsp.records.record import Record

FOUND = ("metric", "value", "stderr", "dense", "better", "protocol", FILES, "overlaps")
MEASURED = ("removed", "parameters", "density", "active")
"""Both: columns of a frame that hold results; the others hold the run's config."""

FULL = 0.9995
"""Density from which on a model counts as dense: a few weights are zero by chance."""


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record and metric of the pruned model.

    Columns: `id`; every leaf of the config by its dotted key; a part's name under the key of the part
    (`recovery.parameters`), under `criterion` the method (`method_name`), and under `recovery` what it
    trains and learns from; `model`, the last part of its path; `sparsity`, or a target or an active share
    in words;
    `removed.sites|blocks|model`, measured fractions; `parameters.*` of the pruned model,
    `parameters.dense.*`; `density`, the fraction of its blocks' weights that are not zero; `active`,
    the measured share of their units that tokens use, 1 if nothing is routed; `metric`,
    `value`, `stderr`, `dense` (the dense model's value), `better`, `protocol` (JSON), `questions` (names of
    local files) and `overlaps`. Lists are written `a+b`; null, true and false as in YAML.
    """
    rows = []
    for record in records:
        run = {
            "id": record.id,
            **flat({key: value for key, value in record.config.items() if key != "target"}),
            **flat(record.sparsity, "removed."),
            **flat(record.parameters.get("pruned", {}), "parameters."),
            **flat(record.parameters.get("dense", {}), "parameters.dense."),
            "density": record.density,
            "active": record.active,
            "overlaps": "\n".join(record.overlaps or []),
        }
        if (wanted := record.wanted).kind != "sparsity":
            run |= {"sparsity": wanted.text, **flat(wanted.data, "target.")}
        run["criterion"] = method_name(record.config)
        for name, metric in record.metrics["pruned"].items():
            found = {
                "metric": name,
                "value": metric.value,
                "stderr": metric.stderr,
                "dense": record.metrics["dense"][name].value,
                "better": metric.better,
                "protocol": json.dumps(comparable(metric.protocol), sort_keys=True),
                FILES: metric.protocol.get(FILES, ""),
            }
            rows.append(run | found)
    return pd.DataFrame(rows)


def shared_protocol(table: pd.DataFrame) -> dict[str, Any]:
    """Return the protocol that the rows share, with the names of local files of questions."""
    protocol = json.loads(str(table["protocol"].iloc[0]))
    return protocol | named_files({FILES: str(one)} for one in table[FILES] if one)


def overlap_warnings(table: pd.DataFrame, protocol: Mapping[str, Any]) -> list[str]:
    """Return warnings of records whose model was made with the text that it is measured on."""
    text = protocol.get("text", "\0")  # without a text: what no warning begins with
    found = {line for lines in table["overlaps"] for line in lines.split("\n") if line.startswith(text)}
    return [f"careful: {line}" for line in sorted(found)]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all leaves by dotted keys, and the names of all parts."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == "_target_":
            continue
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            found[name] = leaf(value)
            continue
        if "_target_" in value:
            found[name] = called(name, value)
        found |= flat(value, f"{name}.")
    return found


def called(group: str, part: Mapping[str, Any]) -> str:
    """Return a part's name; a model's is the last part of its path."""
    return Path(part["path"]).name if group == "model" and "path" in part else part_name(part)


def leaf(value: Any) -> str | float:
    """Convert a config's value to one that can be grouped, compared and shown."""
    if isinstance(value, list | tuple):
        return "+".join(str(leaf(one)) for one in value) or "[]"
    if isinstance(value, bool) or value is None or isinstance(value, Mapping):
        return json.dumps(value)
    return value


def dense_models(table: pd.DataFrame) -> pd.Series:
    """Return each row's dense model as its size and the rank of its value, up to rounding differences.

    Paths do not count. For times only the size counts: no two measurements of one model agree.
    """
    timed = table["protocol"].map(lambda text: json.loads(str(text)).get("measure") == "latency")
    ordered = table["dense"].mask(timed, 0.0).sort_values()
    figure = (ordered.diff() > 1e-4 * ordered.abs()).cumsum().reindex(table.index)
    sizes = table.get("parameters.dense.model", pd.Series(0, table.index)).fillna(0)
    return pd.Series([*zip(sizes, figure, strict=True)], table.index, dtype=object)


def figures_of_cells(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return column of the cells -> the column of records that it is made from, and how."""
    found = {"mean": ("value", "mean"), "std": ("value", "std"), "n": ("value", "count")}
    found["removed"] = ("removed.model", "mean")
    if not table["active"].eq(1).all():
        found["active"] = ("active", "mean")
    if pd.to_numeric(table["density"]).lt(FULL).any():
        found["density"] = ("density", "mean")
    return found


def columns_of_a_run(columns: Iterable[str]) -> list[str]:
    """Return the columns that say what a run computed, without its seeds and evaluations."""
    where_and_how = {*NOT_IDENTITY, *FOUND, *MEASURED, "evaluation", "id", "model.device"}
    return [
        name
        for name in columns
        if not {name, name.split(".")[0]} & where_and_how and name.split(".")[-1] != "seed"
    ]


def find_fields(columns: Sequence[str], names: str | Iterable[str]) -> list[str]:
    """Return comma-separated names of columns as a list.

    Raises:
        ValueError: there is no such column; the message suggests the nearest.
    """
    fields = names.split(",") if isinstance(names, str) else [*names]
    for name in fields:
        if name not in columns:
            raise ValueError(f"no field {name!r}; {suggestions(name, columns)}")
    return fields


def find_metrics(there: Iterable[str], names: str | None = None) -> list[str]:
    """Return the metrics for comma-separated names, unique prefixes or globs.

    names: None means all perplexities, or all metrics if there is no perplexity.

    Raises:
        ValueError: no metric or several match; the message lists them.
    """
    there = list(dict.fromkeys(there))
    if names is None:
        return [one for one in there if one.startswith("perplexity/")] or there
    found = []
    for name in names.split(","):
        chosen = [one for one in there if fnmatch(one, name)] or [
            one for one in there if one.startswith(name)
        ]
        if len(chosen) > 1 and not set(name) & set("*?["):
            raise ValueError(
                f"metric {name!r} may be {', '.join(chosen)}; expected one of them, or "
                f"--metric '{name}*' for all"
            )
        if not chosen:
            raise ValueError(f"no metric {name!r}; {suggestions(name, there)}")
        found += chosen
    return list(dict.fromkeys(found))


def suggestions(name: str, there: Sequence[str]) -> str:
    """Return a hint for an unknown name: similar names and those that contain it, else all names."""
    near = difflib.get_close_matches(name, there, n=5, cutoff=0.5)
    inside = [one for one in there if name in one.split(".") or name in one]
    likely = list(dict.fromkeys([*near, *inside]))[:8]
    return f"did you mean {', '.join(likely)}?" if likely else f"expected one of {', '.join(there)}"
